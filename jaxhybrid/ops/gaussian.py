"""Diagonal Gaussian and tanh-squashed Gaussian records: sampling, densities, entropy, divergence, noise inference."""

from __future__ import annotations

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.types import Array, Key

__all__ = ["Gaussian", "TanhGaussian"]

_LOG_2PI = math.log(2.0 * math.pi)
# Nodes x and weights of E[f(x)], x standard normal, by the trapezoidal rule of step h. For the log-slope of tanh at
# m + s x, whose nearest singularity has the imaginary part pi / (2 s), its error is about exp(-pi^2 / (s h)): below
# float32's resolution up to s = exp(2), the widest policy of `networks`. Beyond |x| = 6.5 lies a mass of 1e-10.
_NODES = np.linspace(-6.5, 6.5, 161)
_WEIGHTS = np.exp(-0.5 * np.square(_NODES))
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def _log_normal(noise: Array) -> Array:
    return -0.5 * jnp.sum(jnp.square(noise) + _LOG_2PI, axis=-1)


def _log_tanh_slope(u: Array) -> Array:
    """``log(1 - tanh(u)^2)`` without cancellation: ``2 (log 2 - u - softplus(-2 u))``, elementwise."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


class Gaussian(NamedTuple):
    """Diagonal Gaussian ``N(mean, exp(log_std)^2)`` over the last axis.

    Every method refuses arguments of other shapes, which would be broadcast and summed over, by an AssertionError.

    Attributes:
      mean: ``[A]``.
      log_std: logarithm of the standard deviation, ``[A]``.
    """

    mean: Array
    log_std: Array

    def mode(self) -> Array:
        """Most likely action, ``[A]``."""
        return self.mean

    def reparameterise(self, noise: Array) -> Array:
        """``mean + std * noise`` for standard normal ``noise [A]``; differentiable in the parameters, ``[A]``."""
        chex.assert_equal_shape([self.mean, self.log_std, noise])
        return self.mean + jnp.exp(self.log_std) * noise

    def sample(self, key: Key) -> Array:
        """Draws a reparameterised action, ``[A]``."""
        return self.reparameterise(jax.random.normal(key, self.mean.shape, self.mean.dtype))

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """Draws a reparameterised action ``[A]`` with its log-probability ``[]``."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.reparameterise(noise), self.log_prob_of_noise(noise)

    def log_prob(self, action: Array) -> Array:
        """Log-density at ``action [A]``, ``[]``."""
        chex.assert_equal_shape([self.mean, action])
        return self.log_prob_of_noise(self.infer_noise(action))

    def log_prob_of_noise(self, noise: Array) -> Array:
        """Log-density of ``reparameterise(noise)``, ``[]``."""
        chex.assert_equal_shape([self.mean, self.log_std, noise])
        return _log_normal(noise) - jnp.sum(self.log_std, axis=-1)

    def entropy(self) -> Array:
        """Differential entropy in nats, ``[]``."""
        chex.assert_equal_shape([self.mean, self.log_std])
        return jnp.sum(self.log_std + 0.5 * (1.0 + _LOG_2PI), axis=-1)

    def infer_noise(self, action: Array) -> Array:
        """Noise that ``reparameterise`` maps to ``action``, ``(action - mean) / std``, ``[A]``."""
        return (action - self.mean) * jnp.exp(-self.log_std)

    def kl(self, other: Gaussian) -> Array:
        """``KL(self || other)`` in nats, ``[]``."""
        chex.assert_equal_shape([*self, *other])
        ratio = jnp.exp(2.0 * (self.log_std - other.log_std))
        shift = jnp.square((self.mean - other.mean) * jnp.exp(-other.log_std))
        return 0.5 * jnp.sum(ratio + shift - 1.0, axis=-1) + jnp.sum(other.log_std - self.log_std, axis=-1)


class TanhGaussian(NamedTuple):
    """``tanh(u)`` with ``u ~ N(mean, exp(log_std)^2)``: actions in the open box (-1, 1)^A.

    Attributes:
      mean: mean before the squash, ``[A]``.
      log_std: logarithm of the standard deviation before the squash, ``[A]``.
    """

    mean: Array
    log_std: Array

    @property
    def base(self) -> Gaussian:
        """The Gaussian before the squash."""
        return Gaussian(self.mean, self.log_std)

    def mode(self) -> Array:
        """``tanh(mean)``, the median action and the usual deterministic policy, ``[A]``."""
        return jnp.tanh(self.mean)

    def reparameterise(self, noise: Array) -> Array:
        """``tanh(mean + std * noise)`` for standard normal ``noise [A]``, ``[A]``."""
        return jnp.tanh(self.base.reparameterise(noise))

    def sample(self, key: Key) -> Array:
        """Draws a reparameterised action, ``[A]``."""
        return jnp.tanh(self.base.sample(key))

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """Draws a reparameterised action ``[A]`` with its exact log-probability ``[]``, also where tanh saturates."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.reparameterise(noise), self.log_prob_of_noise(noise)

    def log_prob(self, action: Array) -> Array:
        """Log-density at ``action [A]``, ``[]``.

        The inverse of tanh loses digits near the corners (at ``|action| = 1 - 1e-4`` about four of float32's seven);
        ``sample_and_log_prob`` and ``log_prob_of_noise`` do not.
        """
        return self.log_prob_of_noise(self.infer_noise(action))

    def log_prob_of_noise(self, noise: Array) -> Array:
        """Log-density of ``reparameterise(noise)``, exact for any ``noise [A]``, ``[]``."""
        slope = _log_tanh_slope(self.base.reparameterise(noise))
        return self.base.log_prob_of_noise(noise) - jnp.sum(slope, axis=-1)

    def entropy(self) -> Array:
        """Differential entropy in nats, by quadrature of the log-Jacobian, ``[]``."""
        nodes = jnp.asarray(_NODES, self.mean.dtype).reshape((-1,) + (1,) * self.mean.ndim)
        u = self.mean[None] + jnp.exp(self.log_std)[None] * nodes
        slope = jnp.tensordot(jnp.asarray(_WEIGHTS, self.mean.dtype), _log_tanh_slope(u), axes=1)
        return self.base.entropy() + jnp.sum(slope, axis=-1)

    def infer_noise(self, action: Array) -> Array:
        """Noise that ``reparameterise`` maps to ``action``, ``(atanh(action) - mean) / std``, ``[A]``.

        A saturated action (``|action| >= 1``) has no finite noise: it is read as the largest float below 1.
        """
        chex.assert_equal_shape([self.mean, action])
        largest = float(np.nextafter(np.ones((), action.dtype), np.zeros((), action.dtype)))
        return self.base.infer_noise(jnp.arctanh(jnp.clip(action, -largest, largest)))

    def kl(self, other: TanhGaussian) -> Array:
        """``KL(self || other)`` in nats, ``[]``: that of the bases, since both share the (invertible) squash."""
        return self.base.kl(other.base)
