"""Judges that several tests share: Monte-Carlo means against the truth, finite differences, linear-quadratic models."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import lqr
from jaxhybrid.ops.gaussian import Gaussian

__all__ = ["check_monte_carlo_mean", "finite_difference", "linear_policy", "lqr_start", "lqr_step"]


def check_monte_carlo_mean(draws, truth, *, sigmas: float = 5.0, visible_bias: float = 0.05) -> None:
    """Asserts that ``draws`` are independent, unbiased estimates of ``truth``, and that a bias would have shown.

    Passes iff ``|mean - truth| < sigmas * se`` in every coordinate **and** ``sigmas * se`` is at most ``visible_bias``
    times the largest coordinate of the truth. The second half keeps a noisy test from passing because it is noisy.

    Args:
      draws: pytree of ``[N, ...]``, one leading axis of independent draws.
      truth: pytree of ``[...]`` with the same structure.
      sigmas: standard errors that count as a deviation; 5 is wrong once in two million coordinates.
      visible_bias: relative bias that the number of draws must be able to reveal.
    """
    flat_draws = np.concatenate([np.asarray(d, np.float64).reshape(len(d), -1) for d in jax.tree.leaves(draws)], axis=1)
    flat_truth = np.concatenate([np.asarray(t, np.float64).ravel() for t in jax.tree.leaves(truth)])
    assert flat_draws.shape[1] == flat_truth.size, (
        f"{flat_draws.shape[1]} coordinates drawn, {flat_truth.size} expected"
    )
    assert np.isfinite(flat_draws).all(), "draws are not finite"
    error = flat_draws.mean(axis=0) - flat_truth
    se = flat_draws.std(axis=0, ddof=1) / np.sqrt(len(flat_draws))
    scale = np.abs(flat_truth).max()
    assert (sigmas * se <= visible_bias * scale).all(), (
        f"{len(flat_draws)} draws are too few to show {visible_bias:.0%} of a truth up to {scale:.3g}: "
        f"{sigmas} se = {sigmas * se.max():.3g}"
    )
    # Draws without any noise still round.
    tolerance = sigmas * se + 1e-9 * scale
    assert (np.abs(error) < tolerance).all(), f"bias of {error / np.maximum(se, 1e-300)} standard errors: {error}"


def finite_difference(fn: Callable[[jax.Array], jax.Array], at: jax.Array, *, step: float = 1e-4) -> jax.Array:
    """Returns the gradient of a scalar ``fn`` by central differences of fourth order; needs float64.

    f'(x) = (8 (f(x + h) - f(x - h)) - (f(x + 2h) - f(x - 2h))) / (12 h) + O(h^4)
    """
    assert at.dtype == jnp.float64, "finite differences need float64"
    directions = jnp.eye(at.size).reshape(at.size, *at.shape)
    offsets = jnp.array([1.0, -1.0, 2.0, -2.0]) * step
    values = jax.jit(jax.vmap(lambda d: jax.vmap(lambda o: fn(at + o * d))(offsets)))(directions)
    return (values @ jnp.array([8.0, -8.0, -1.0, 1.0]) / (12.0 * step)).reshape(at.shape)


def lqr_step(problem: lqr.Problem) -> Callable:
    """Returns the problem as a model, ``step_fn(obs, action, key) -> (next_obs, reward, discount)``."""
    env = lqr.make(problem)

    def step_fn(obs, action, key):
        _, time_step = env.step(lqr.LQRState(obs, jnp.zeros((), jnp.int32)), action, key)
        return time_step.obs, time_step.reward, jnp.ones_like(time_step.reward)

    return step_fn


def lqr_start(problem: lqr.Problem, key: jax.Array) -> jax.Array:
    """Draws a start state."""
    return lqr.make(problem).reset(key)[1]


def linear_policy(noise_std: float) -> Callable:
    """Returns ``policy_fn(gain, obs)``, the Gaussian around ``gain @ obs`` whose closed forms `envs.lqr` knows."""
    return lambda gain, obs: Gaussian(gain @ obs, jnp.full(gain.shape[:1], jnp.log(noise_std)))
