"""Returns, advantages and value-expansion targets along one trajectory.

``discount`` is 0 iff the step terminated the episode; the problem's ``gamma`` is a separate keyword, so that the same
recording serves every gamma. With ``D_t = gamma * discount_t`` below.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = [
    "discounted_returns",
    "discounted_sum",
    "generalised_advantages",
    "interpolate_horizons",
    "lambda_returns",
    "n_step_returns",
]


def _check(reward: Array, discount: Array) -> None:
    chex.assert_rank([reward, discount], 1)
    chex.assert_equal_shape([reward, discount])
    chex.assert_type([reward, discount], float)


def discounted_returns(
    reward: Array, discount: Array, *, gamma: Array | float, bootstrap: Array | float = 0.0
) -> Array:
    """Returns to go, ``G_t = r_t + D_t G_{t+1}`` with ``G_T = bootstrap``.

    Args:
      reward: rewards, ``[T]``.
      discount: 0 iff the step terminated, ``[T]``.
      gamma: discount factor of the problem.
      bootstrap: value of the observation after the last step, ``[]``.

    Returns:
      Returns to go, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.
    """
    _check(reward, discount)
    return lambda_returns(reward, discount, jnp.full_like(reward, 0.0).at[-1].set(bootstrap), gamma=gamma, lambda_=1.0)


def discounted_sum(reward: Array, discount: Array, *, gamma: Array | float, bootstrap: Array | float = 0.0) -> Array:
    """Value of the first step, ``sum_t (prod_{i<t} D_i) r_t + (prod_{i<T} D_i) bootstrap``, ``[]``.

    Args:
      reward: rewards, ``[T]``; ``T`` may be 0, then the value is ``bootstrap``.
      discount: 0 iff the step terminated, ``[T]``.
      gamma: discount factor of the problem.
      bootstrap: value of the observation after the last step, ``[]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.
    """
    _check(reward, discount)
    reached = jnp.concatenate([jnp.ones((1,), reward.dtype), jnp.cumprod(gamma * discount)])
    return jnp.sum(reached[:-1] * reward) + reached[-1] * bootstrap


def lambda_returns(
    reward: Array, discount: Array, next_value: Array, *, gamma: Array | float, lambda_: Array | float
) -> Array:
    """TD(lambda) returns, ``G_t = r_t + D_t ((1 - lambda) V_{t+1} + lambda G_{t+1})`` with ``G_T = V_T``.

    Args:
      reward: rewards, ``[T]``.
      discount: 0 iff the step terminated, ``[T]``.
      next_value: ``V(next_obs_t)`` of the true next observation (before any reset), ``[T]``.
      gamma: discount factor of the problem.
      lambda_: 0 gives one-step targets, 1 the bootstrapped return.

    Returns:
      Returns, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., equation 12.2.
    """
    _check(reward, discount)
    chex.assert_equal_shape([reward, next_value])

    def backward(following: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        r, d, v = step
        value = r + gamma * d * ((1.0 - lambda_) * v + lambda_ * following)
        return value, value

    return jax.lax.scan(backward, next_value[-1], (reward, discount, next_value), reverse=True)[1]


def n_step_returns(reward: Array, discount: Array, next_value: Array, *, gamma: Array | float, num_steps: int) -> Array:
    """n-step returns, ``G_t = sum_{i<n} (prod_{j<i} D_{t+j}) r_{t+i} + (prod_{j<n} D_{t+j}) V_{t+n}``.

    Windows that reach past the recording are cut at its end and bootstrapped there.

    Args:
      reward: rewards, ``[T]``.
      discount: 0 iff the step terminated, ``[T]``.
      next_value: ``V(next_obs_t)``, ``[T]``.
      gamma: discount factor of the problem.
      num_steps: ``n >= 1``, static.

    Returns:
      Returns, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths, integer arrays, or ``num_steps < 1``.
    """
    _check(reward, discount)
    chex.assert_equal_shape([reward, next_value])
    chex.assert_scalar_positive(num_steps)
    length = reward.shape[0]
    target = next_value[jnp.minimum(jnp.arange(length) + num_steps - 1, length - 1)]
    for i in reversed(range(num_steps)):
        # Past the end there is no step: the value that was bootstrapped at the end is carried unchanged.
        inside = jnp.arange(length) + i < length
        index = jnp.minimum(jnp.arange(length) + i, length - 1)
        target = jnp.where(inside, reward[index] + gamma * discount[index] * target, target)
    return target


def generalised_advantages(
    reward: Array, discount: Array, value: Array, next_value: Array, *, gamma: Array | float, lambda_: Array | float
) -> Array:
    """GAE, ``A_t = delta_t + D_t lambda A_{t+1}`` with ``delta_t = r_t + D_t V(next_obs_t) - V(obs_t)``.

    Args:
      reward: rewards, ``[T]``.
      discount: 0 iff the step terminated, ``[T]``.
      value: ``V(obs_t)``, ``[T]``.
      next_value: ``V(next_obs_t)`` of the true next observation, ``[T]``.
      gamma: discount factor of the problem.
      lambda_: 1 gives the (unbiased) return minus the baseline.

    Returns:
      Advantages, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.

    Source: Schulman et al. 2016, High-dimensional continuous control using GAE, equation 16.
    """
    chex.assert_equal_shape([reward, value])
    return lambda_returns(reward, discount, next_value, gamma=gamma, lambda_=lambda_) - value


def interpolate_horizons(values: Array, epsilon: Array | float = 1e-8) -> tuple[Array, Array]:
    """Stochastic ensemble value expansion: mixes targets of depth 0..H by inverse variance.

    ``mu_h = mean_n values[h, n]``, ``v_h = var_n values[h, n]``, ``w_h`` proportional to ``1 / (v_h + epsilon)``,
    ``target = sum_h w_h mu_h``.

    Args:
      values: candidate targets of each depth over all pairs of model and critic, ``[H+1, N]``.
      epsilon: variance floor, in squared units of the return. Where depth 0 has one source only, its variance is zero
        and the default floor gives it all the weight (the mistake of the released MAAC): pass a floor on the scale of
        the targets, such as ``1e-4`` times their variance over the batch.

    Returns:
      ``(target [], weights [H+1])``; the weights sum to one.

    Raises:
      AssertionError: another rank than 2 or integer values.

    Source: Buckman et al. 2018, Sample-efficient RL with stochastic ensemble value expansion, equations 4-5.
    """
    chex.assert_rank(values, 2)
    chex.assert_type(values, float)
    precision = 1.0 / (jnp.var(values, axis=1) + epsilon)
    weights = precision / jnp.sum(precision)
    return jnp.sum(weights * jnp.mean(values, axis=1)), weights
