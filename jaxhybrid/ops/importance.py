"""Importance ratios in log space, effective sample size and the step weights of gradient-aware likelihood."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = [
    "effective_sample_size",
    "gradient_aware_weights",
    "per_decision_coefficients",
    "per_decision_log_ratios",
    "self_normalised_log_ratios",
    "truncated_weights",
]


def per_decision_log_ratios(target_log_prob: Array, behaviour_log_prob: Array) -> Array:
    """Log of ``rho_{0:t} = prod_{l<=t} pi(a_l | s_l) / b(a_l | s_l)`` for every t; the last one is the trajectory's.

    Args:
      target_log_prob: ``log pi(a_t | s_t)``, ``[T]``.
      behaviour_log_prob: ``log b(a_t | s_t)``, ``[T]``.

    Returns:
      Cumulative log-ratios, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.
    """
    chex.assert_rank([target_log_prob, behaviour_log_prob], 1)
    chex.assert_equal_shape([target_log_prob, behaviour_log_prob])
    chex.assert_type([target_log_prob, behaviour_log_prob], float)
    return jnp.cumsum(target_log_prob - behaviour_log_prob)


def self_normalised_log_ratios(log_ratio: Array, *, axis: int = 0) -> Array:
    """Log of ``w_i = rho_i / mean_j rho_j`` over trajectories: bounded by N, biased by O(1/N), no over- or underflow.

    Args:
      log_ratio: log-ratios, ``[N, ...]``.
      axis: the axis of trajectories, ``N``.

    Returns:
      Logarithms of weights of mean one along ``axis``, or of mean zero where every ratio is 0, same shape.
    """
    return jax.nn.log_softmax(log_ratio, axis=axis, where=_possible(log_ratio)) + jnp.log(log_ratio.shape[axis])


def truncated_weights(log_ratio: Array, *, maximum: Array | float) -> Array:
    """``min(rho, maximum)``: bounded variance, biased towards the behaviour policy wherever the bound is met.

    Args:
      log_ratio: log-ratios, any shape.
      maximum: largest weight, positive.

    Returns:
      Weights, same shape.
    """
    return jnp.exp(jnp.minimum(log_ratio, jnp.log(maximum)))


def effective_sample_size(log_ratio: Array, *, axis: int = 0) -> Array:
    """Kish's ``(sum w)^2 / sum w^2``, between 1 and N, or 0 where no trajectory has any weight.

    Args:
      log_ratio: log-ratios of the trajectories, ``[N, ...]``.
      axis: the axis of trajectories, ``N``.

    Returns:
      Effective number of trajectories, the shape without ``axis``.

    Source: Kish 1965, Survey sampling.
    """
    # Weights that sum to one first: the difference of two large logarithms would lose digits.
    shares = jax.nn.softmax(log_ratio, axis=axis, where=_possible(log_ratio))
    squares = jnp.sum(jnp.square(shares), axis=axis)
    return jnp.where(squares == 0, 0.0, 1.0 / squares)


def gradient_aware_weights(
    log_ratio: Array, score_norm: Array, *, gamma: Array | float, cumulative: bool = True
) -> Array:
    """``omega_t = gamma^t rho_{0:t} sum_{l<=t} |grad log pi(a_l | s_l)|_q``, the weight of step t's likelihood.

    Computed in log space, so that neither factor under- or overflows before the product.

    Args:
      log_ratio: cumulated ``log rho_{0:t}``, ``[T]``.
      score_norm: per-step norm of the score, non-negative, ``[T]``.
      gamma: discount factor, in [0, 1].
      cumulative: False weighs step t by its own score norm only (a variant that forgets that a transition matters to
        every decision before it).

    Returns:
      Step weights, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 3.
    """
    chex.assert_rank([log_ratio, score_norm], 1)
    chex.assert_equal_shape([log_ratio, score_norm])
    chex.assert_type([log_ratio, score_norm], float)
    score = jnp.cumsum(score_norm) if cumulative else score_norm
    return jnp.exp(_log_discounts(log_ratio, gamma) + log_ratio + jnp.log(score))


def per_decision_coefficients(
    log_ratio: Array, reward: Array, *, gamma: Array | float, past_rewards: bool = False
) -> Array:
    """What multiplies the score of step t in the policy gradient from off-policy returns, ratios per decision.

    ``c_t = sum_{k>=t} gamma^k rho_{0:k} r_k``; with the rewards before t, whose product with the score has mean zero,
    additionally ``rho_{0:t} sum_{k<t} gamma^k r_k``.

    Args:
      log_ratio: cumulated ``log rho_{0:t}``, ``[T]``.
      reward: rewards, zero past the end, ``[T]``.
      gamma: discount factor, in [0, 1].
      past_rewards: False is the policy-gradient theorem's form (PGT, GPOMDP), True is REINFORCE's.

    Returns:
      Coefficients, ``[T]``.

    Raises:
      AssertionError: ranks other than 1, unequal lengths or integer arrays.

    Source: Precup, Sutton and Singh 2000, Eligibility traces for off-policy policy evaluation, section 3.
    """
    chex.assert_rank([log_ratio, reward], 1)
    chex.assert_equal_shape([log_ratio, reward])
    chex.assert_type([log_ratio, reward], float)
    log_discount = _log_discounts(reward, gamma)
    weighted = jnp.exp(log_discount + log_ratio) * reward
    to_go = jnp.cumsum(weighted[::-1])[::-1]
    if not past_rewards:
        return to_go
    discounted = jnp.exp(log_discount) * reward
    return to_go + jnp.exp(log_ratio) * (jnp.cumsum(discounted) - discounted)


def _possible(log_ratio: Array) -> Array:
    """Which ratios are not 0; a softmax of such alone would be NaN."""
    return log_ratio != -jnp.inf


def _log_discounts(like: Array, gamma: Array | float) -> Array:
    """``t log gamma``, ``[T]``; at gamma = 0 it is 0 for the first step and minus infinity after it."""
    t = jnp.arange(like.shape[0], dtype=like.dtype)
    return jax.scipy.special.xlogy(t, jnp.asarray(gamma, like.dtype))
