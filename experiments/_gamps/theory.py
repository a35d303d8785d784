"""Exact sides of the bound on random problems, the counter-example, and the finite-sample error of equation 5."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import trajectories
from jaxhybrid.envs import finite
from jaxhybrid.estimators import model_value
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.types import Array, Key

__all__ = ["Bounds", "Errors", "bounds", "counter_example", "draw", "finite_sample_errors", "summary"]

_STATES, _ACTIONS = 3, 2
_LENGTH, _GAMMA = 20, 0.5  # the part of the gradient after the recording is 1e-6 of the whole


class Bounds(NamedTuple):
    """Both sides of the theorem, float64, ``[P]`` each.

    Attributes:
      error: Euclidean norm of the error of the model-value gradient.
      corrected: bound with ``(1 - gamma)^-3``.
      printed: bound with ``(1 - gamma)^-2``.
      gamma: discount factor.
    """

    error: np.ndarray
    corrected: np.ndarray
    printed: np.ndarray
    gamma: np.ndarray


class Errors(NamedTuple):
    """Root mean squared error of the mean of N estimates, and N.

    Attributes:
      trajectories: per estimate, ``[K]``.
      error: relative to the norm of the exact model-value gradient, ``[K]``.
    """

    trajectories: np.ndarray
    error: np.ndarray


def counter_example(gamma: Array, switch: Array, model_switch: Array) -> tuple[finite.Problem, Array]:
    """A decision between two states that pay 1 and -1 and swap with a small probability; and a model of it."""

    def transition(eps: Array) -> Array:
        zero = jnp.zeros(())
        first = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        second = jnp.stack([jnp.stack([zero, 1 - eps, eps])] * 2)
        third = jnp.stack([jnp.stack([zero, eps, 1 - eps])] * 2)
        return jnp.stack([first, second, third])

    reward = jnp.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    problem = finite.Problem(transition(switch), reward, jnp.array([1.0, 0.0, 0.0]), gamma)
    return problem, transition(model_switch)


def _sides(
    problem: finite.Problem, model: Array, params: Array, probs_fn: finite.ProbsFn
) -> tuple[Array, Array, Array]:
    """The error and the two bounds."""
    truth = finite.policy_gradient(problem, probs_fn, params)
    error = jnp.linalg.norm(truth - finite.model_value_gradient(problem, model, probs_fn, params))
    norms = finite.score_norms(probs_fn, params)
    bound = partial(finite.gradient_error_bound, problem, probs_fn(params), norms, model)
    return error, bound(), bound(power=2)


def bounds(problems: int, seed: int) -> Bounds:
    """Evaluates both sides on random problems: half of them drawn at large, half near the counter-example."""

    def at_large(key: Key) -> tuple[Array, ...]:
        problem_key, model_key, policy_key, gamma_key, mix_key = jax.random.split(key, 5)
        gamma = 1.0 - 10.0 ** jax.random.uniform(gamma_key, minval=-3.0, maxval=-0.05)
        problem = finite.random_problem(problem_key, _STATES, _ACTIONS, gamma=gamma, sharpness=3.0)
        other = finite.random_problem(model_key, _STATES, _ACTIONS, gamma=gamma, sharpness=3.0).transition
        mix = 1e-3 + 0.999 * jax.random.uniform(mix_key) ** 4
        table = jax.random.normal(policy_key, (_STATES, _ACTIONS))
        return *_sides(problem, (1 - mix) * problem.transition + mix * other, table, jax.nn.softmax), gamma

    def near_the_example(key: Key) -> tuple[Array, ...]:
        gamma_key, switch_key, ratio_key, policy_key = jax.random.split(key, 4)
        gamma = 1.0 - 10.0 ** jax.random.uniform(gamma_key, minval=-3.0, maxval=-0.05)
        switch = (1.0 - gamma) * jax.random.uniform(switch_key, minval=0.02, maxval=0.5)
        model_switch = switch * jax.random.uniform(ratio_key, minval=1.2, maxval=1.95)
        problem, model = counter_example(gamma, switch, model_switch)
        theta = 0.3 * jax.random.normal(policy_key, (1,))
        return *_sides(problem, model, theta, _logistic), gamma

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), problems)
        half = problems // 2
        parts = [jax.jit(jax.vmap(draw))(k) for draw, k in ((at_large, keys[:half]), (near_the_example, keys[half:]))]
        return Bounds(*(np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(4)))


def finite_sample_errors(count: int, seed: int) -> Errors:
    """Draws that many single-trajectory estimates off policy and averages them in groups of every size."""
    with jax.enable_x64(True):
        problem_key, model_key, policy_key, behaviour_key, data_key = jax.random.split(jax.random.key(seed), 5)
        problem = finite.random_problem(problem_key, _STATES, _ACTIONS, gamma=_GAMMA)
        model = finite.random_problem(model_key, _STATES, _ACTIONS, gamma=_GAMMA).transition
        target = jax.random.normal(policy_key, (_STATES, _ACTIONS))
        behaviour = target + 0.3 * jax.random.normal(behaviour_key, target.shape)
        env = finite.make(problem, max_episode_steps=_LENGTH)
        q = finite.q_values(problem._replace(transition=model), jax.nn.softmax(target))

        def policy_fn(table: Array, obs: Array) -> Categorical:
            return Categorical(table[jnp.round(obs[0]).astype(int)])

        def draw_one(key: Key) -> Array:
            trajectory = trajectories.collect(
                env, key, act_fn=lambda s, k: policy_fn(behaviour, s).sample_and_log_prob(k), length=_LENGTH
            )
            q_fn = lambda s, a, k: q[jnp.round(s[0]).astype(int), a]  # noqa: E731  # one line of the equation
            return model_value(target, trajectory, key, policy_fn=policy_fn, q_fn=q_fn, gamma=_GAMMA)[0]

        draws = np.asarray(jax.jit(jax.vmap(draw_one))(jax.random.split(data_key, count)))
        truth = np.asarray(finite.model_value_gradient(problem, model, jax.nn.softmax, target))
    counts = np.array([n for n in (10, 25, 50, 100, 200, 500, 1000) if n * 10 <= count])
    found = []
    for n in counts:
        means = draws[: count // n * n].reshape((-1, n) + truth.shape).mean(axis=1)
        found.append(np.sqrt(np.square(means - truth[None]).sum(axis=(1, 2)).mean()) / np.linalg.norm(truth))
    return Errors(counts, np.array(found))


def summary(sides: Bounds, errors: Errors) -> dict[str, Any]:
    """Returns counts of violations, the tightest corrected bound, the counter-example and the log-log slope."""
    table = []
    with jax.enable_x64(True):
        for gamma, switch in ((0.9, 0.01), (0.99, 0.001), (0.999, 1e-4)):
            problem, model = counter_example(*map(jnp.asarray, (gamma, switch, 2 * switch)))
            error, corrected, printed = map(float, _sides(problem, model, jnp.zeros(1), _logistic))
            table.append({"gamma": gamma, "error": error, "printed": printed, "corrected": corrected})
    slack = 1e-12 + 1e-9 * sides.corrected
    return {
        "problems": len(sides.error),
        "corrected_violations": int(np.sum(sides.error > sides.corrected + slack)),
        "printed_violations": int(np.sum(sides.error > sides.printed + slack)),
        "tightest_corrected": float(np.min(sides.corrected / np.maximum(sides.error, 1e-300))),
        "counter_example": table,
        "trajectories": errors.trajectories,
        "relative_error": errors.error,
        "slope": float(np.polyfit(np.log(errors.trajectories), np.log(errors.error), 1)[0]),
    }


def _logistic(theta: Array) -> Array:
    """One parameter, at the first state; the others are certain."""
    p = jax.nn.sigmoid(theta[0])
    certain = jnp.array([1.0, 0.0])
    return jnp.stack([jnp.stack([p, 1 - p]), certain, certain])


def draw(sides: Bounds, errors: Errors, path: Path) -> None:
    """Draws the ratio of error and bound over the discount, and the error of the estimator over N."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), layout="constrained")
    horizon = 1.0 / (1.0 - sides.gamma)
    for bound, label, colour in (
        (sides.printed, "printed constant", "#D55E00"),
        (sides.corrected, "corrected constant", "#0072B2"),
    ):
        ratio = sides.error / np.maximum(bound, 1e-300)
        left.plot(horizon, np.maximum(ratio, 1e-6), ".", markersize=2, alpha=0.35, color=colour, label=label)
    left.axhline(1.0, color="0.2", linewidth=1.2)
    left.annotate("above this line the bound is broken", (1.15, 4.0), fontsize=9)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(1e-6, 60.0)
    left.set_xlabel("1 / (1 - gamma)")
    left.set_ylabel("error of the gradient / bound")
    left.set_title(f"Theorem 3.2 on {len(sides.error):,} random problems")
    left.legend(frameon=False, markerscale=6, loc="lower left")
    right.plot(errors.trajectories, errors.error, "o-", color="#009E73", label="model-value gradient, equation 5")
    guide = errors.error[0] * np.sqrt(errors.trajectories[0] / errors.trajectories)
    right.plot(errors.trajectories, guide, "--", color="0.4", label="slope -1/2")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("trajectories N")
    right.set_ylabel("root mean squared error / |exact|")
    right.set_title("Error of the estimator, off policy")
    right.legend(frameon=False)
    for panel in (left, right):
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
