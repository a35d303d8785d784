"""Numbers of many orders of magnitude, such as the gradients of a network, made fit to be read by another network."""

from __future__ import annotations

import chex
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = ["rms_normalised", "sign_and_log"]


def sign_and_log(x: Array, *, orders: float = 10.0) -> Array:
    """Splits every number into sign and logarithm of its size, ``[..., 2]`` in [-1, 1] for sizes up to ``e^orders``.

        (log|x| / p, sign x)   where |x| >= e^-p, else (-1, e^p x)

    The two meet at ``|x| = e^-p``, so that the map is continuous, and zero stays in the middle.

    Args:
      x: float, any shape.
      orders: ``p``: natural orders of magnitude below one that are told apart.

    Raises:
      AssertionError: ``x`` is not float.

    Source: Andrychowicz et al. 2016, Learning to learn by gradient descent by gradient descent, appendix A.
    """
    chex.assert_type(x, float)
    size = jnp.abs(x)
    large = size >= jnp.exp(-orders)
    # The logarithm is taken of one where it is not used: that of zero has no slope.
    logarithm = jnp.where(large, jnp.log(jnp.where(large, size, 1.0)) / orders, -1.0)
    return jnp.stack([logarithm, jnp.where(large, jnp.sign(x), jnp.exp(orders) * x)], axis=-1)


def rms_normalised(x: Array, *, floor: float = 1e-6) -> Array:
    """Divides by the root of the mean square of all numbers, ``x / sqrt(mean x^2 + floor^2)``; zeros stay zeros.

    Args:
      x: float, any shape.
      floor: sizes that are noise.

    Raises:
      AssertionError: ``x`` is not float.
    """
    chex.assert_type(x, float)
    return x / jnp.sqrt(jnp.mean(jnp.square(x)) + floor**2)
