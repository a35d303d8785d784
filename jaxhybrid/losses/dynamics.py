"""Likelihood losses of probabilistic dynamics models."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = ["gaussian_nll", "soft_clip"]


def gaussian_nll(mean: Array, log_variance: Array, target: Array) -> Array:
    """Negative log-likelihood of a diagonal Gaussian, averaged over dimensions, without constants.

    ``mean_d [(mean_d - target_d)^2 exp(-log_variance_d) + log_variance_d]``: twice the negative log-density per
    dimension, up to ``log 2 pi``.

    Args:
      mean: predicted mean, ``[D]``.
      log_variance: logarithm of the predicted variance, ``[D]``.
      target: what happened, ``[D]``.

    Returns:
      Loss, ``[]``.

    Raises:
      AssertionError: unequal shapes or integer arrays.

    Source: Chua et al. 2018, Deep reinforcement learning in a handful of trials, section 4.
    """
    chex.assert_rank([mean, log_variance, target], 1)
    chex.assert_equal_shape([mean, log_variance, target])
    chex.assert_type([mean, log_variance, target], float)
    return jnp.mean(jnp.square(mean - target) * jnp.exp(-log_variance) + log_variance)


def soft_clip(x: Array, low: Array, high: Array) -> Array:
    """Differentiable clip, ``low + softplus(high - softplus(high - x) - low)``: slope in (0, 1) everywhere.

    Used for the log-variance of ensemble members, so that neither far extrapolation nor a single fitted point drives
    the predicted variance to zero or infinity.

    Source: Chua et al. 2018, appendix A.1.
    """
    x = high - jax.nn.softplus(high - x)
    return low + jax.nn.softplus(x - low)
