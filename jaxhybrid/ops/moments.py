"""Streaming mean and variance of gradient pytrees, and what is read off them: SNR, standard error, bias z-score."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.ops import trees
from jaxhybrid.types import Array, PyTree

__all__ = ["Moments", "empty", "merge", "of_batch", "signal_to_noise", "standard_error", "variance", "z_score"]


class Moments(NamedTuple):
    """Count, mean and summed squared deviation of the pytrees seen so far.

    Attributes:
      count: number of pytrees, float ``[]``.
      mean: their mean, shaped like one of them.
      squared_deviation: ``sum_n (x_n - mean)^2``, elementwise.
    """

    count: Array  # type: ignore[assignment]  # shadows tuple.count, which nobody calls on a record
    mean: PyTree
    squared_deviation: PyTree


def empty(example: PyTree) -> Moments:
    """Returns the moments of nothing, for pytrees shaped like ``example``."""
    zeros = jax.tree.map(jnp.zeros_like, example)
    return Moments(jnp.zeros(()), zeros, zeros)


def of_batch(draws: PyTree) -> Moments:
    """Returns the moments of a batch of draws; every leaf has the leading axis ``N``."""
    count = jax.tree.leaves(draws)[0].shape[0]
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), draws)
    squared_deviation = jax.tree.map(lambda x, m: jnp.sum(jnp.square(x - m[None]), axis=0), draws, mean)
    return Moments(jnp.asarray(float(count)), mean, squared_deviation)


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both samples together.

    Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance, equation 1.5.
    """
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    delta = jax.tree.map(jnp.subtract, b.mean, a.mean)
    mean = trees.axpy(share, delta, a.mean)
    squared_deviation = jax.tree.map(
        lambda x, y, d: x + y + a.count * share * jnp.square(d), a.squared_deviation, b.squared_deviation, delta
    )
    return Moments(count, mean, squared_deviation)


def variance(moments: Moments) -> PyTree:
    """Unbiased elementwise variance of one draw; NaN below two draws."""
    divisor = jnp.where(moments.count > 1, moments.count - 1.0, jnp.nan)
    return jax.tree.map(lambda x: x / divisor, moments.squared_deviation)


def standard_error(moments: Moments) -> PyTree:
    """Elementwise standard error of the mean."""
    return jax.tree.map(lambda v: jnp.sqrt(v / moments.count), variance(moments))


def signal_to_noise(moments: Moments) -> Array:
    """``|mean|^2 / sum of variances`` of one draw, ``[]``: a batch of n draws has n times this ratio."""
    total = sum(jax.tree.leaves(jax.tree.map(jnp.sum, variance(moments))), jnp.zeros(()))
    return trees.dot(moments.mean, moments.mean) / total


def z_score(moments: Moments, truth: PyTree) -> PyTree:
    """Elementwise ``(mean - truth) / standard error``; standard normal for many draws of an unbiased estimator."""
    return jax.tree.map(lambda m, t, s: (m - t) / s, moments.mean, truth, standard_error(moments))
