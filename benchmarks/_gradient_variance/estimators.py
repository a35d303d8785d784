"""The estimators on the double integrator, each with the exact gradient of the objective that it estimates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import lqr
from jaxhybrid.envs.lqr_functions import ExactCritic, exact_critic, policy_fn, q_fn, step_fn, value_fn
from jaxhybrid.estimators import of_loss, pathwise, score_function
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.types import Array, Key

__all__ = ["GAIN", "NOISE_STD", "Estimator", "Exact", "estimators", "exact", "finite_gradient"]

GAIN = ((-0.1, -0.3),)
NOISE_STD = 0.3


class Exact(NamedTuple):
    """What is known of one discount, computed in float64 and cast.

    Attributes:
      gamma: the discount, ``[]``.
      start_value: expected return from the start, ``[]``.
      critic: exact critics of the policy.
    """

    gamma: Array
    start_value: Array
    critic: ExactCritic


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


def exact(gamma: float) -> tuple[Exact, np.ndarray]:
    """Returns what the estimators are given and the gradient of the return without end, ``[A, D]`` in float64."""
    with jax.enable_x64(True):
        problem, gain = lqr.double_integrator(gamma), jnp.array(GAIN)
        start_value = lqr.value(problem, gain, problem.start_mean, NOISE_STD)
        known = Exact(problem.gamma, start_value, exact_critic(problem, gain, NOISE_STD))
        full = np.asarray(lqr.policy_gradient(problem, gain, noise_std=NOISE_STD))
        arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), known)
    return jax.tree.map(jnp.asarray, arrays), full


def finite_gradient(gamma: float, horizon: int) -> np.ndarray:
    """Returns the exact gradient of ``E sum_{t<H} gamma^t r_t``, ``[A, D]``.

    ``E r_t = -1/2 [tr((Q + K' R K) S_t) + tr(R Sigma)]`` with the second moments ``S_t``, differentiated in ``K``.
    """
    with jax.enable_x64(True):
        problem = lqr.double_integrator(gamma)

        def expected_return(gain: Array) -> Array:
            moments = lqr.second_moments(problem, gain, horizon=horizon - 1, noise_std=NOISE_STD)
            cost = problem.Q + gain.T @ problem.R @ gain
            return -0.5 * jnp.sum(gamma ** jnp.arange(horizon) * jnp.einsum("ij,tij->t", cost, moments))

        return np.asarray(jax.grad(expected_return)(jnp.array(GAIN)))


def estimators(gamma: float, horizon: int, maac_horizons: Sequence[int]) -> list[Estimator]:
    """Returns the rows of the benchmark.

    Args:
      gamma: discount.
      horizon: steps ``T`` of the score-function and the pathwise roll-outs.
      maac_horizons: horizons of the model-augmented objective.
    """
    problem, gain = lqr.double_integrator(), jnp.array(GAIN)
    start = problem.start_mean
    policy = functools.partial(policy_fn, noise_std=NOISE_STD)
    model = functools.partial(step_fn, problem=problem)

    def truncated(h: int) -> np.ndarray:
        with jax.enable_x64(True):
            exact_problem = lqr.double_integrator(gamma)
            return np.asarray(lqr.policy_gradient(exact_problem, jnp.array(GAIN), horizon=h, noise_std=NOISE_STD))

    def rollout(
        estimator: Callable, *, baseline: str = "none", terminal: bool = False
    ) -> Callable[[Exact, Key], Array]:
        def draw(known: Exact, key: Key) -> Array:
            exact_value = functools.partial(value_fn, critic=known.critic)
            baselines = {"none": None, "constant": lambda obs: known.start_value, "value": exact_value}
            bound = {} if baseline == "none" else {"baseline_fn": baselines[baseline]}
            return estimator(
                gain,
                start,
                key,
                policy_fn=policy,
                step_fn=model,
                horizon=horizon,
                gamma=known.gamma,
                value_fn=exact_value if terminal else None,
                **bound,
            )[0]

        return draw

    def augmented(h: int) -> Callable[[Exact, Key], Array]:
        def draw(known: Exact, key: Key) -> Array:
            critic = functools.partial(q_fn, critic=known.critic)
            bound = {"policy_fn": policy, "step_fn": model, "q_fn": critic, "horizon": h, "gamma": known.gamma}
            return of_loss(maac_loss)(gain, start, key, **bound)[0]

        return draw

    ends, finite = f"return of {horizon} steps", finite_gradient(gamma, horizon)
    bootstraps, frozen = f"truncated at {horizon - 1}", truncated(horizon - 1)
    rows = [
        Estimator("score function", ends, finite, rollout(score_function)),
        Estimator("score function, constant baseline", ends, finite, rollout(score_function, baseline="constant")),
        Estimator("score function, value baseline", ends, finite, rollout(score_function, baseline="value")),
        Estimator(
            "score function, value baseline and tail",
            bootstraps,
            frozen,
            rollout(score_function, baseline="value", terminal=True),
        ),
        Estimator("pathwise", ends, finite, rollout(pathwise)),
        Estimator("pathwise, value tail", bootstraps, frozen, rollout(pathwise, terminal=True)),
    ]
    rows += [Estimator(f"MAAC, H = {h}", f"truncated at {h}", truncated(h), augmented(h)) for h in maac_horizons]
    return rows
