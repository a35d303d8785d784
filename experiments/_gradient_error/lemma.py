"""Lemma 4.1 of the model-augmented actor-critic paper, evaluated: its constants measured, its bound derived anew."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._gradient_error.fits import Critic, build_ensemble, learned_q
from experiments._gradient_error.problem import GAIN, Sizes, Truth, policy, true_step
from jaxhybrid.dynamics import EnsembleState
from jaxhybrid.envs import lqr
from jaxhybrid.types import Array, Key

__all__ = ["Constants", "lemma_bound", "lemma_constants"]


class Constants(NamedTuple):
    """What Lemma 4.1 of the paper asks for, measured along paths of the true system under the fixed policy.

    Attributes:
      model_error: ``eps_f``, largest spectral error of the model's Jacobian (mean over members), ``[]``.
      critic_error: ``eps_Q``, mean error of the critic's slope at ``(s_H, a_H)``, one per horizon, ``[H]``.
      critic_slope: ``L_Q``, largest slope of the exact and of the learned critic, ``[2]``.
      reward_slope: ``L_r``, largest slope of the reward, ``[]``.
      growth: ``K``, the smallest number above 1 with ``|dx_t/dtheta| <= |dx_0/dtheta| K^t``, ``[]``.
    """

    model_error: Array
    critic_error: Array
    critic_slope: Array
    reward_slope: Array
    growth: Array


def _constants(
    exact: Truth, model: EnsembleState, critic: Critic, key: Key, *, horizons: tuple[int, ...], sizes: Sizes
) -> Constants:
    """Measures the constants for one seed."""
    ensemble = build_ensemble(sizes)
    problem = lqr.double_integrator()
    jacobian = jnp.concatenate([problem.A, problem.B], axis=1)

    def point(gain: Array, noise: Array) -> Array:
        """Returns ``x_t = (s_t, a_t)``, ``[T, D + A]``."""

        def step(obs: Array, e: Array) -> tuple[Array, Array]:
            action = policy(gain, obs).reparameterise(e)
            return true_step(obs, action, None)[0], jnp.concatenate([obs, action])

        return jax.lax.scan(step, jnp.ones(2), noise)[1]

    def model_jacobian(x: Array, member: Array) -> Array:
        return jax.jacrev(lambda y: y[:2] + ensemble.predict(model, member, y[:2], y[2:]).mean)(x)

    def model_error(x: Array) -> Array:
        learned = jax.vmap(model_jacobian, in_axes=(None, 0))(x, jnp.arange(sizes.members))
        return jnp.mean(jnp.linalg.norm(learned - jacobian[None], ord=2, axis=(1, 2)))

    def q_slope(x: Array) -> Array:
        return jax.grad(lambda y: learned_q(critic, sizes, y[:2], y[2:]))(x)

    noise = jax.random.normal(key, (32, max(horizons) + 1, 1))
    points = jax.vmap(point, in_axes=(None, 0))(jnp.array(GAIN), noise)
    sensitivity = jax.vmap(jax.jacrev(point), in_axes=(None, 0))(jnp.array(GAIN), noise)
    size = jnp.max(jnp.linalg.norm(sensitivity.reshape(points.shape + (-1,)), ord=2, axis=(2, 3)), axis=0)
    time = jnp.maximum(jnp.arange(size.shape[0]), 1)
    slopes = jnp.stack([points @ exact.critic.q_matrix, jax.vmap(jax.vmap(q_slope))(points)])
    slope_error = jnp.linalg.norm(slopes[1] - slopes[0], axis=2)
    return Constants(
        model_error=jnp.max(jax.vmap(jax.vmap(model_error))(points)),
        critic_error=jnp.mean(slope_error, axis=0)[jnp.array(horizons)],
        critic_slope=jnp.max(jnp.linalg.norm(slopes, axis=3), axis=(1, 2)),
        reward_slope=jnp.max(jnp.linalg.norm(points, axis=2)),
        growth=jnp.maximum(jnp.max((size / size[0]) ** (1.0 / time)), 1.0 + 1e-3),
    )


def lemma_bound(
    horizon: int,
    gamma: float,
    *,
    model_error: float,
    critic_error: float,
    critic_slope: float,
    reward_slope: float,
    growth: float,
) -> float:
    """The bound of Lemma 4.1 on the Euclidean error of the gradient, with its constant derived anew.

        |dx_0/dtheta| { eps_f L_r sum_{t<H} (g K)^t (L^{t+1} - 1) / (L - 1)
                        + (g K)^H [eps_Q + L_Q eps_f (L^H - 1) / (L - 1)] }

    with ``g = gamma`` and ``L = L_f (1 + L_pi)``. In closed form the sum is
    ``[L ((g K L)^H - 1) / (g K L - 1) - ((g K)^H - 1) / (g K - 1)] / (L - 1)``; the printed form loses ``L_r``, takes
    ``L`` out of both terms and so vanishes at ``H = 1``. The factor ``|dx_0/dtheta| = |s_0|`` is missing in print,
    where the sensitivity ``K^t`` starts at 1.

    Args:
      horizon: ``H``.
      gamma: discount.
      model_error: ``eps_f``, as the other constants described in `Constants`.
      critic_error: ``eps_Q`` at this horizon.
      critic_slope: ``L_Q``.
      reward_slope: ``L_r``.
      growth: ``K``.

    Source: Clavera, Fu and Abbeel (2020), "Model-Augmented Actor-Critic", Appendix A.1.
    """
    problem = lqr.double_integrator()
    model_slope = np.linalg.norm(np.concatenate([problem.A, problem.B], axis=1), ord=2)
    L = float(model_slope * (1.0 + np.linalg.norm(GAIN, ord=2)))
    # The error of the sensitivity after t model steps, in units of eps_f K^t.
    spread = [(L**t - 1.0) / (L - 1.0) for t in range(horizon + 1)]
    rewards = sum((gamma * growth) ** t * spread[t + 1] for t in range(horizon))
    terminal = critic_error + critic_slope * model_error * spread[horizon]
    start = float(np.sqrt(2.0))
    return start * (model_error * reward_slope * rewards + (gamma * growth) ** horizon * terminal)


@functools.partial(jax.jit, static_argnames=("horizons", "sizes"))
def lemma_constants(
    exact: Truth, model: EnsembleState, critic: Critic, keys: Key, *, horizons: tuple[int, ...], sizes: Sizes
) -> Constants:
    """Measures the constants for every seed, on 32 paths from (1, 1) each; every field gains a leading axis ``S``."""
    one = functools.partial(_constants, exact, horizons=horizons, sizes=sizes)
    return jax.vmap(one)(model, critic, keys)
