"""Long short-term memory over sequences, with a reverse pass that takes the weights' gradient in one product.

Differentiating a scan adds to the gradient of the weights at every step; here the steps only hand back what they
received, and one product over all steps and sequences follows. The numbers are the same; it takes a third less time.
`lstm` is for padded sequences, `packed_lstm` for those of `ops.packing`, of which only the steps are computed.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxhybrid.ops import packing, products
from jaxhybrid.ops.packing import Packing
from jaxhybrid.types import Array

__all__ = ["advance", "lstm", "packed_lstm"]


def advance(output: Array, cell: Array, projected: Array, kernel: Array) -> tuple[Array, Array]:
    """One step: ``i, f, o = sigmoid(.)``, ``c' = f c + i tanh(.)``, ``h' = o tanh(c')`` of ``x + h U``.

    Args:
      output: ``h``, ``[..., H]``.
      cell: ``c``, ``[..., H]``.
      projected: ``x``, what the input and the bias contribute to the three gates and the candidate, ``[..., 4H]``.
      kernel: ``U``, ``[H, 4H]``.

    Returns:
      ``(h', c')``.
    """
    return _step(output, cell, projected, kernel)[:2]


def _step(output: Array, cell: Array, projected: Array, kernel: Array) -> tuple[Array, Array, Array, Array]:
    """``(h', c', gates, candidate)``."""
    gates, candidate = _activations(projected + output @ kernel)
    write, keep, show = jnp.split(gates, 3, axis=-1)
    cell = keep * cell + write * candidate
    return show * jnp.tanh(cell), cell, gates, candidate


@jax.custom_vjp
def lstm(projected: Array, kernel: Array) -> Array:
    """Returns the outputs of all steps from a state of zeros, ``[..., T, H]``; the step is `advance`.

    Gradient flows through: both arguments, in reverse mode.

    Args:
      projected: ``[..., T, 4H]``.
      kernel: ``U``, ``[H, 4H]``.

    Raises:
      AssertionError: widths that do not fit.
    """
    return _forward(projected, kernel)[0]


def _forward(projected: Array, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
    width = kernel.shape[0]
    chex.assert_shape(kernel, (width, 4 * width))
    chex.assert_axis_dimension(projected, -1, 4 * width)
    steps = jnp.moveaxis(projected, -2, 0)
    start = jnp.zeros((*steps.shape[1:-1], width), projected.dtype)

    def one(carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        saved = _step(*carry, x, kernel)
        return (saved[0], saved[1]), saved

    _, saved = jax.lax.scan(one, (start, start), steps)
    return jnp.moveaxis(saved[0], 0, -2), (*saved, kernel)


def _backward(saved: tuple[Array, ...], received: Array) -> tuple[Array, Array]:
    outputs, cells, gates, candidate, kernel = saved
    write, keep, show = jnp.split(gates, 3, axis=-1)
    squashed = jnp.tanh(cells)
    before = jnp.concatenate([jnp.zeros_like(cells[:1]), cells[:-1]])
    # What a step's output and cell move by, per unit of each of the four pre-activations.
    by_write = candidate * write * (1.0 - write)
    by_keep = before * keep * (1.0 - keep)
    by_show = squashed * show * (1.0 - show)
    by_candidate = write * (1.0 - jnp.square(candidate))
    by_cell = show * (1.0 - jnp.square(squashed))

    back = products.transposed(kernel)

    def one(carry: tuple[Array, Array], step: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        to_output, to_cell = carry
        received, by_write, by_keep, by_show, by_candidate, by_cell, keep = step
        to_output = to_output + received
        to_cell = to_cell + to_output * by_cell
        to_step = jnp.concatenate(
            [to_cell * by_write, to_cell * by_keep, to_output * by_show, to_cell * by_candidate], axis=-1
        )
        return (to_step @ back, to_cell * keep), to_step

    steps = (jnp.moveaxis(received, -2, 0), by_write, by_keep, by_show, by_candidate, by_cell, keep)
    nothing = jnp.zeros_like(outputs[0])
    _, to_steps = jax.lax.scan(one, (nothing, nothing), steps, reverse=True)
    # The first step meets a state of zeros, which teaches the weights nothing.
    width = kernel.shape[0]
    to_kernel = outputs[:-1].reshape(-1, width).T @ to_steps[1:].reshape(-1, 4 * width)
    return jnp.moveaxis(to_steps, 0, -2), to_kernel


def _activations(summed: Array) -> tuple[Array, Array]:
    gates, candidate = jnp.split(summed, [3 * (summed.shape[-1] // 4)], axis=-1)
    return jax.nn.sigmoid(gates), jnp.tanh(candidate)


lstm.defvjp(_forward, _backward)


@jax.custom_vjp
def packed_lstm(projected: Array, kernel: Array, places: Packing) -> Array:
    """Returns the outputs of all steps of packed sequences from a state of zeros, ``[N W, H]``; the step is `advance`.

    Gradient flows through: ``projected`` and ``kernel``, in reverse mode. What rows receive that are no step of a
    sequence must be zero.

    Args:
      projected: rows ``[N W, 4H]``, finite everywhere.
      kernel: ``U``, ``[H, 4H]``.
      places: of the steps among the rows, from `ops.packing.pack`.

    Raises:
      AssertionError: widths that do not fit.
    """
    return _packed_forward(projected, kernel, places)[0]


def _packed_forward(projected: Array, kernel: Array, places: Packing) -> tuple[Array, tuple]:
    width = kernel.shape[0]
    chex.assert_shape(kernel, (width, 4 * width))
    chex.assert_shape(projected, (places.sequence.size, 4 * width))
    saved = jax.lax.platform_dependent(projected, kernel, places, cpu=_blocks_forward, default=_steps_forward)
    return saved[:, :width], (saved, kernel, places)


def _packed_backward(saved: tuple[Array, Array, Packing], received: Array) -> tuple[Array, Array, None]:
    args = (*saved, received)
    to_steps, to_kernel = jax.lax.platform_dependent(*args, cpu=_blocks_backward, default=_steps_backward)
    return to_steps, to_kernel, None


def _steps_forward(projected: Array, kernel: Array, places: Packing) -> Array:
    """All sequences at once, step by step: output, cell, gates and candidate of every row, ``[N W, 6H]``."""
    *saved, _ = _forward(packing.spread(places, projected), kernel)[1]
    return packing.take(places, jnp.moveaxis(jnp.concatenate(saved, axis=-1), 0, -2))


def _steps_backward(saved: Array, kernel: Array, places: Packing, received: Array) -> tuple[Array, Array]:
    padded = _apart(jnp.moveaxis(packing.spread(places, saved), -2, 0))
    to_steps, to_kernel = _backward((*padded, kernel), packing.spread(places, received))
    return packing.take(places, to_steps), to_kernel


@sequential_vmap
def _blocks_forward(projected: Array, kernel: Array, places: Packing) -> Array:
    """The same block by block; what a group of sequences remembers stands at its place."""
    (num_blocks, width), states = places.sequence.shape, kernel.shape[0]
    steps = projected.reshape(num_blocks, width, -1)

    def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        memories, saved = carry
        group = places.group[i]
        output, cell = jnp.split(memories[group], 2, axis=-1)
        new = jnp.concatenate(_step(output, cell, steps[i], kernel), axis=-1)
        return memories.at[group].set(new[:, : 2 * states]), saved.at[i].set(new)

    start = (_memories(places, states, projected.dtype), jnp.zeros((num_blocks, width, 6 * states), projected.dtype))
    _, saved = jax.lax.fori_loop(0, places.blocks, one, start)
    return saved.reshape(num_blocks * width, -1)


@sequential_vmap
def _blocks_backward(saved: Array, kernel: Array, places: Packing, received: Array) -> tuple[Array, Array]:
    (num_blocks, width), states = places.sequence.shape, kernel.shape[0]
    saved, received = (x.reshape(num_blocks, width, -1) for x in (saved, received))
    back = products.transposed(kernel)

    def one(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        memories, to_steps = carry
        block = places.blocks - 1 - i
        group = places.group[block]
        to_output, to_cell = jnp.split(memories[group], 2, axis=-1)
        _, cell, gates, candidate = _apart(saved[block])
        write, keep, show = jnp.split(gates, 3, axis=-1)
        before = jnp.where(places.time[block] > 0, saved[places.before[block], :, states : 2 * states], 0.0)
        squashed = jnp.tanh(cell)
        to_output += received[block]
        to_cell += to_output * show * (1.0 - jnp.square(squashed))
        to_step = jnp.concatenate(
            [
                to_cell * candidate * write * (1.0 - write),
                to_cell * before * keep * (1.0 - keep),
                to_output * squashed * show * (1.0 - show),
                to_cell * write * (1.0 - jnp.square(candidate)),
            ],
            axis=-1,
        )
        new = jnp.concatenate([to_step @ back, to_cell * keep], axis=-1)
        return memories.at[group].set(new), to_steps.at[block].set(to_step)

    start = (_memories(places, states, received.dtype), jnp.zeros((num_blocks, width, 4 * states), received.dtype))
    _, to_steps = jax.lax.fori_loop(0, places.blocks, one, start)
    outputs = saved.at[places.before, :, :states].get(mode="clip")
    before = jnp.where((places.time > 0)[:, None, None], outputs, 0.0)
    to_steps = to_steps.reshape(num_blocks * width, -1)
    return to_steps, products.gram(before.reshape(num_blocks * width, -1), to_steps, places.rows)


def _apart(saved: Array) -> tuple[Array, ...]:
    """Output, cell, gates and candidate of what was saved, ``[..., 6H]``."""
    width = saved.shape[-1] // 6
    return tuple(jnp.split(saved, [width, 2 * width, 5 * width], axis=-1))


def _memories(places: Packing, states: int, dtype: Any) -> Array:
    """Zeros for the two memories of every group of sequences, ``[G, W, 2H]``."""
    width = places.sequence.shape[1]
    return jnp.zeros((-(-places.row.shape[0] // width), width, 2 * states), dtype)


packed_lstm.defvjp(_packed_forward, _packed_backward)
