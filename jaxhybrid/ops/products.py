"""Products of matrices whose last rows do not count, and whose gradient is taken in the order that a CPU is fast at.

The gradient of ``x @ kernel`` in the kernel is ``x^T g``. Automatic differentiation asks for ``(g^T x)^T``, which XLA
lays out anew before a slower product; the numbers are the same. Of several runs side by side each has its own number of
rows, so that on a CPU they take turns.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxhybrid.types import Array

__all__ = ["gram", "product", "transposed"]

_CHUNK = 128


@jax.custom_vjp
def product(x: Array, kernel: Array, rows: Array | None = None) -> Array:
    """Returns ``x @ kernel``, ``[R, O]``, or only its first ``rows`` rows; in others it may as well be zero.

    Gradient flows through: ``x`` and ``kernel``, in reverse mode, any number of times. What rows past the first ones
    receive must be zero.

    Args:
      x: ``[R, I]``, finite past the first rows too.
      kernel: ``[I, O]``.
      rows: integer ``[]``; None: all of them.

    Raises:
      AssertionError: shapes that do not fit.
    """
    chex.assert_rank([x, kernel], 2)
    chex.assert_equal(x.shape[1], kernel.shape[0])
    if rows is None:
        return x @ kernel
    return jax.lax.platform_dependent(x, kernel, rows, cpu=_product_by_chunks, default=lambda x, y, _: x @ y)


@jax.custom_vjp
def gram(x: Array, y: Array, rows: Array | None = None) -> Array:
    """Returns ``x^T y`` over all rows or the first ``rows``, ``[I, O]``.

    Gradient flows through: as for `product`.

    Args:
      x: ``[R, I]``.
      y: ``[R, O]``; past the first rows one of both is zero and the other finite.
      rows: integer ``[]``; None: all of them.
    """
    chex.assert_rank([x, y], 2)
    chex.assert_equal_shape_prefix([x, y], 1)
    if rows is None:
        return _gram(x, y)
    return jax.lax.platform_dependent(x, y, rows, cpu=_gram_by_chunks, default=lambda x, y, _: _gram(x, y))


def transposed(x: Array) -> Array:
    """Returns ``x^T``, laid out once: a product in a loop would otherwise lay it out every time."""
    return jax.lax.optimization_barrier(x.T)


def _product_back(saved: tuple[Array, Array, Any], received: Array) -> tuple[Array, Array, None]:
    x, kernel, rows = saved
    return product(received, transposed(kernel), rows), gram(x, received, rows), None


def _gram_back(saved: tuple[Array, Array, Any], received: Array) -> tuple[Array, Array, None]:
    x, y, rows = saved
    return product(y, transposed(received), rows), product(x, received, rows), None


product.defvjp(lambda x, kernel, rows=None: (product(x, kernel, rows), (x, kernel, rows)), _product_back)
gram.defvjp(lambda x, y, rows=None: (gram(x, y, rows), (x, y, rows)), _gram_back)


def _gram(x: Array, y: Array) -> Array:
    return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))


@sequential_vmap
def _product_by_chunks(x: Array, kernel: Array, rows: Array) -> Array:
    size, start = _chunk(x.shape[0]), jnp.zeros((x.shape[0], kernel.shape[1]), x.dtype)

    def one(i: Array, out: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, i * size, size)
        return jax.lax.dynamic_update_slice_in_dim(out, part @ kernel, i * size, 0)

    return jax.lax.fori_loop(0, -(-rows // size), one, start)


@sequential_vmap
def _gram_by_chunks(x: Array, y: Array, rows: Array) -> Array:
    size, start = _chunk(x.shape[0]), jnp.zeros((x.shape[1], y.shape[1]), x.dtype)

    def one(i: Array, total: Array) -> Array:
        parts = [jax.lax.dynamic_slice_in_dim(each, i * size, size) for each in (x, y)]
        return total + _gram(*parts)

    return jax.lax.fori_loop(0, -(-rows // size), one, start)


def _chunk(rows: int) -> int:
    """The largest number of rows up to `_CHUNK` that divides all."""
    return max(size for size in range(1, min(_CHUNK, rows) + 1) if rows % size == 0)
