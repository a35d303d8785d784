"""Linear algebra and selection over pytrees of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxhybrid.types import Array, PyTree

__all__ = ["all_finite", "axpy", "cosine", "dot", "fill", "lerp", "norm", "relative_change", "where"]


def dot(x: PyTree, y: PyTree) -> Array:
    """Returns the inner product ``sum_i x_i y_i`` over all leaves, ``[]``."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), x, y)), jnp.zeros(()))


def norm(x: PyTree) -> Array:
    """Returns the Euclidean norm ``sqrt(<x, x>)``, ``[]``; its gradient at the origin is zero, and NaN stays NaN."""
    squared = dot(x, x)
    zero = squared == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squared)))


def cosine(x: PyTree, y: PyTree, *, epsilon: float = 0.0) -> Array:
    """Returns ``<x, y> / (|x| |y| + epsilon)``, ``[]``; 0 when either is the zero vector, NaN when either holds one."""
    scale = norm(x) * norm(y) + epsilon
    zero = scale == 0
    return jnp.where(zero, 0.0, dot(x, y) / jnp.where(zero, 1.0, scale))


def relative_change(before: PyTree, after: PyTree) -> Array:
    """Returns ``|after - before| / |before|``, ``[]``; 0 from the origin, where it has no meaning."""
    scale = norm(before)
    zero = scale == 0
    change = norm(jax.tree.map(jnp.subtract, after, before))
    return jnp.where(zero, 0.0, change / jnp.where(zero, 1.0, scale))


def axpy(a: Array | float, x: PyTree, y: PyTree) -> PyTree:
    """Returns ``a x + y``, leaf by leaf."""
    return jax.tree.map(lambda x_i, y_i: a * x_i + y_i, x, y)


def lerp(x: PyTree, y: PyTree, weight: Array | float) -> PyTree:
    """Returns ``(1 - weight) x + weight y``: the soft target update with ``weight = tau``."""
    return jax.tree.map(lambda x_i, y_i: x_i + weight * (y_i - x_i), x, y)


def where(condition: Array, x: PyTree, y: PyTree) -> PyTree:
    """Returns ``x`` where the boolean scalar ``condition`` holds, else ``y``; leaves may be typed keys."""
    return jax.tree.map(lambda x_i, y_i: jnp.where(condition, x_i, y_i), x, y)


def fill(inside: Array, rows: PyTree) -> PyTree:
    """Returns the rows of every leaf, ``[T, ...]``, the first of those ``inside [T]`` in place of the others.

    For functions of padded sequences. A select of their results keeps the padding out of the loss, but where its slope
    is not finite zero times that is NaN: so no function is to meet it.
    """
    first = jax.tree.map(lambda x: jnp.asarray(x)[jnp.argmax(inside)], rows)
    return jax.vmap(where, in_axes=(0, 0, None))(inside, rows, first)


def all_finite(x: PyTree) -> Array:
    """Returns whether no leaf holds a NaN or an infinity, boolean ``[]``."""
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # One reduction: those of many leaves take long to compile, each with all that its leaf was computed from.
    return jnp.all(jnp.isfinite(jnp.concatenate(leaves))) if leaves else jnp.asarray(True)
