"""Linear values by least-squares temporal differences."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = ["temporal_difference_coefficients"]


def temporal_difference_coefficients(
    features: Array,
    next_features: Array,
    reward: Array,
    discount: Array,
    weight: Array,
    *,
    gamma: Array | float,
    ridge: Array | float = 0.0,
) -> Array:
    """Coefficients ``theta`` of the linear value whose weighted temporal differences average to zero.

    ``sum_n w_n phi_n (r_n + gamma d_n phi'_n theta - phi_n theta) = lambda S theta`` with
    ``S = diag(sum_n w_n phi_n^2)``, so that the ridge ``lambda`` means the same in every unit of a feature.

    Off policy, with ``w_n = pi(a_n | s_n) / b(a_n | s_n)``, this is the fixed point of the Bellman operator of ``pi``
    projected on the features under the states of ``b``: the value itself where it is linear in them.

    Args:
      features: ``phi(s)``, ``[N, F]``.
      next_features: ``phi(s')``, ``[N, F]``.
      reward: ``[N]``.
      discount: 0 iff the step terminated the episode, ``[N]``.
      weight: of every step, not negative, 0 leaves it out, ``[N]``.
      gamma: discount factor.
      ridge: ``lambda``; positive where features may depend on each other.

    Returns:
      ``theta``, ``[F]``.

    Raises:
      AssertionError: other ranks, unequal lengths or integer arrays.

    Source: Bradtke and Barto 1996, Linear least-squares algorithms for temporal difference learning.
    """
    chex.assert_rank([features, next_features, reward, discount, weight], [2, 2, 1, 1, 1])
    chex.assert_equal_shape([features, next_features])
    chex.assert_equal_shape([reward, discount, weight, features[:, 0]])
    chex.assert_type([features, next_features, reward, discount, weight], float)
    square = weight @ jnp.square(features)
    seen = square > 0
    # In units in which every feature has weighted square one: the matrix is then as regular as it can be.
    scale = jnp.sqrt(jnp.where(seen, square, 1.0))
    scaled = features / scale[None]
    weighted = scaled * weight[:, None]
    change = scaled - gamma * discount[:, None] * next_features / scale[None]
    # A feature that was never seen gets the coefficient zero.
    diagonal = jnp.where(seen, ridge, 1.0)
    return jnp.linalg.solve(weighted.T @ change + jnp.diag(diagonal), weighted.T @ reward) / scale
