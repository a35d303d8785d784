"""A running filter of observations: standardised by the moments of all that were seen, which the caller freezes."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxhybrid.ops.moments import Moments
from jaxhybrid.types import Array

__all__ = ["scales", "standardise"]

# A coordinate that never moved has no deviation of its own; the rounding of its mean must not be blown up.
_LEAST_STD = 1e-6


def scales(seen: Moments) -> tuple[Array, Array]:
    """Mean and standard deviation of what was seen, ``[D]`` each; 0 and 1 before the second observation.

    Args:
      seen: moments of observations ``[D]``; see `ops.moments`.
    """
    known = seen.count > 1
    std = jnp.sqrt(seen.squared_deviation / jnp.maximum(seen.count - 1.0, 1.0))
    return jnp.where(known, seen.mean, 0.0), jnp.where(known & (std > _LEAST_STD), std, 1.0)


def standardise(seen: Moments, obs: Array, *, limit: Array | float = 5.0) -> Array:
    """``clip((obs - mean) / std, -limit, limit)``, ``[D]``.

    Gradient flows through: ``obs`` within the limits; not through the moments, which are constants of the update.

    Args:
      seen: moments of the observations so far. An update and the collection before it use the same ones: the policy is
        a function of the raw observation, and another filter would be another policy.
      obs: observation, ``[D]``.
      limit: bound on the standardised observation.

    Raises:
      AssertionError: an observation of another shape than the moments.
    """
    chex.assert_equal_shape([seen.mean, obs])
    mean, std = scales(seen)
    return jnp.clip((obs - mean) / std, -limit, limit)
