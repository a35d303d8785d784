"""The estimators on the double integrator, each with the exact gradient of the objective that it estimates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._gradient_variance.finite import FiniteValues, finite_gradient, finite_values, mean_to_go, value_to_go
from jaxhybrid import segments
from jaxhybrid.envs import lqr
from jaxhybrid.envs.lqr_functions import ExactCritic, exact_critic, policy_fn, q_fn, step_fn, value_fn
from jaxhybrid.estimators import of_loss, pathwise, score_function
from jaxhybrid.losses.control_variate import mscv_loss
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["GAIN", "NOISE_STD", "Estimator", "Exact", "estimators", "exact"]

GAIN = ((-0.1, -0.3),)
NOISE_STD = 0.3
_MSCV_HORIZONS = (1, 5)


class Exact(NamedTuple):
    """What is known of one discount, computed in float64 and cast.

    Attributes:
      gamma: the discount, ``[]``.
      critic: exact critics of the policy.
      finite: exact values of up to ``T`` steps.
      mean_to_go: the best constant baseline of the return of ``T`` steps, ``[]``.
    """

    gamma: Array
    critic: ExactCritic
    finite: FiniteValues
    mean_to_go: Array


class Estimator(NamedTuple):
    """One row of the benchmark.

    Attributes:
      name: as in the table.
      target: what it estimates without bias, in words.
      truth: that gradient by its closed form, ``[A, D]``, float64.
      draw: ``draw(exact, key) -> [A, D]``, one draw of the direction of ascent.
    """

    name: str
    target: str
    truth: np.ndarray
    draw: Callable[[Exact, Key], Array]


def exact(gamma: float, horizon: int) -> tuple[Exact, np.ndarray]:
    """Returns what the estimators are given and the gradient of the return without end, ``[A, D]`` in float64.

    Args:
      gamma: discount.
      horizon: steps ``T`` of the score-function and the pathwise roll-outs.
    """
    with jax.enable_x64(True):
        problem, gain = lqr.double_integrator(gamma), jnp.array(GAIN)
        known = Exact(
            problem.gamma,
            exact_critic(problem, gain, NOISE_STD),
            finite_values(problem, np.array(GAIN), NOISE_STD, horizon),
            jnp.asarray(mean_to_go(problem, np.array(GAIN), NOISE_STD, horizon)),
        )
        full = np.asarray(lqr.policy_gradient(problem, gain, noise_std=NOISE_STD))
        arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), known)
    return jax.tree.map(jnp.asarray, arrays), full


def estimators(gamma: float, horizon: int, maac_horizons: Sequence[int]) -> list[Estimator]:
    """Returns the rows of the benchmark.

    Args:
      gamma: discount.
      horizon: steps ``T`` of the score-function and the pathwise roll-outs.
      maac_horizons: horizons of the model-augmented objective.
    """
    with jax.enable_x64(True):
        problem = lqr.double_integrator(gamma)
        finite = finite_gradient(problem, np.array(GAIN), NOISE_STD, horizon)
        truncated = {
            h: np.asarray(lqr.policy_gradient(problem, jnp.array(GAIN), horizon=h, noise_std=NOISE_STD))
            for h in {*maac_horizons, horizon - 1}
        }
    ends, bootstraps, frozen = f"return of {horizon} steps", f"truncated at {horizon - 1}", truncated[horizon - 1]
    score = functools.partial(_rollout, score_function, horizon)
    rows = [
        Estimator("score function", ends, finite, score()),
        Estimator("score function, constant baseline", ends, finite, score(baseline="constant")),
        Estimator("score function, exact value baseline", ends, finite, score(baseline="value to go")),
        Estimator("score function, value baseline and tail", bootstraps, frozen, score(baseline="value", tail=True)),
        Estimator("pathwise", ends, finite, _rollout(pathwise, horizon)),
        Estimator("pathwise, value tail", bootstraps, frozen, _rollout(pathwise, horizon, tail=True)),
    ]
    # The same return and baseline, so what the control variate saves is the difference to the row "value baseline".
    steps = [k for k in _MSCV_HORIZONS if k <= horizon]
    rows += [Estimator(f"MSCV, k = {k}", bootstraps, frozen, _mscv(horizon, k)) for k in steps]
    return rows + [Estimator(f"MAAC, H = {h}", f"truncated at {h}", truncated[h], _maac(h)) for h in maac_horizons]


def _policy(gain: Array, obs: Array) -> Gaussian:
    # A third coordinate, where there is one, counts the steps to go; the policy does not look at it.
    return policy_fn(gain, obs[:2], noise_std=NOISE_STD)


def _step(obs: Array, action: Array, noise: PyTree) -> tuple[Array, Array, Array]:
    next_obs, reward, discount = step_fn(obs[:2], action, noise, problem=lqr.double_integrator())
    return jnp.concatenate([next_obs, obs[2:] - 1.0]), reward, discount


def _rollout(
    estimator: Callable[..., Any], horizon: int, *, baseline: str | None = None, tail: bool = False
) -> Callable[[Exact, Key], Array]:
    """Returns one draw of a roll-out estimator; ``tail`` continues the return with the exact value."""
    start = [1.0, 1.0, horizon] if baseline == "value to go" else [1.0, 1.0]

    def draw(known: Exact, key: Key) -> Array:
        value = functools.partial(value_fn, critic=known.critic)
        baselines = {
            "constant": lambda obs: known.mean_to_go,
            "value to go": lambda obs: value_to_go(known.finite, obs[:2], obs[2]),
            "value": value,
        }
        bound = {"baseline_fn": baselines[baseline]} if baseline else {}
        return estimator(
            jnp.array(GAIN),
            jnp.array(start),
            key,
            policy_fn=_policy,
            step_fn=_step,
            horizon=horizon,
            gamma=known.gamma,
            value_fn=value if tail else None,
            **bound,
        )[0]

    return draw


def _mscv(horizon: int, model_steps: int) -> Callable[[Exact, Key], Array]:
    """Returns one draw of the control-variate estimator with the true model and the exact value, at coefficient 1."""

    def step(obs: Array, action: Array, noise: PyTree) -> tuple[Array, Array, Array]:
        # The steps are so small that the compiler would fuse several, and compute each again for all of its uses.
        return jax.lax.optimization_barrier(_step(obs, action, noise))

    def draw(known: Exact, key: Key) -> Array:
        noise_key, loss_key = jax.random.split(key)
        noise, gain = jax.random.normal(noise_key, (horizon, 1)), jnp.array(GAIN)
        value = functools.partial(value_fn, critic=known.critic)
        path = unroll(
            jnp.ones(2), (noise, noise), act_fn=lambda s, e: _policy(gain, s).reparameterise(e), step_fn=_step
        )
        next_obs = jnp.concatenate([path.obs[1:], path.final_obs[None]])
        episode = Transition(path.obs, path.action, path.reward, path.discount, next_obs)
        steps = segments.of_recording(
            episode, jnp.zeros(horizon, bool), noise, horizon=model_steps, gamma=known.gamma, value_fn=value
        )
        loss = functools.partial(
            mscv_loss, policy_fn=_policy, step_fn=step, value_fn=value, horizon=model_steps, gamma=known.gamma
        )
        keys = jax.random.split(loss_key, horizon)
        each = jax.vmap(of_loss(loss), in_axes=(None, 0, 0))(gain, steps, keys)[0]
        return jnp.tensordot(known.gamma ** jnp.arange(horizon), each, axes=1)

    return draw


def _maac(horizon: int) -> Callable[[Exact, Key], Array]:
    """Returns one draw of the model-augmented estimator with the true model and the exact critic."""

    def draw(known: Exact, key: Key) -> Array:
        critic = functools.partial(q_fn, critic=known.critic)
        loss = functools.partial(
            maac_loss, policy_fn=_policy, step_fn=_step, q_fn=critic, horizon=horizon, gamma=known.gamma
        )
        return of_loss(loss)(jnp.array(GAIN), jnp.ones(2), key)[0]

    return draw
