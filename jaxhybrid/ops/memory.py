"""Long short-term memory over sequences, with a reverse pass that takes the weights' gradient in one product.

Differentiating a scan adds to the gradient of the weights at every step; here the steps only hand back what they
received, and one product over all steps and sequences follows. The numbers are the same; it takes a third less time.
`lstm` is for padded sequences, `packed_lstm` for those of `ops.packing`, of which only the steps are computed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from jaxhybrid.ops import packing, products
from jaxhybrid.ops.packing import Packing
from jaxhybrid.types import Array

__all__ = ["Weights", "advance", "lstm", "packed_lstm"]


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
    received = jnp.moveaxis(received, -2, 0)
    to_steps = _to_steps(received, _step_before(cells), _beside(gates, candidate), kernel)
    # The first step meets a state of zeros, which teaches the weights nothing.
    width = kernel.shape[0]
    to_kernel = outputs[:-1].reshape(-1, width).T @ to_steps[1:].reshape(-1, 4 * width)
    return jnp.moveaxis(to_steps, 0, -2), to_kernel


def _to_steps(received: Array, before: Array, acts: Array, kernel: Array) -> Array:
    """What the pre-activations of all steps receive, ``[T, ..., 4H]``, from what outputs do and `_to_step`'s."""
    back = products.transposed(kernel)

    def one(carry: tuple[Array, Array], step: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        to_output, to_cell = carry
        got, before, acts = step
        to_step, to_cell = _to_step(to_output + got, to_cell, before, acts)
        return (to_step @ back, to_cell), to_step

    nothing = jnp.zeros_like(received[0])
    return jax.lax.scan(one, (nothing, nothing), (received, before, acts), reverse=True)[1]


def _activations(summed: Array) -> tuple[Array, Array]:
    gates, candidate = jnp.split(summed, [3 * (summed.shape[-1] // 4)], axis=-1)
    return jax.nn.sigmoid(gates), jnp.tanh(candidate)


lstm.defvjp(_forward, _backward)


class Weights(NamedTuple):
    """What a memory learns.

    Attributes:
      project: of the inputs, ``[I, 4H]``.
      bias: ``[4H]``.
      kernel: ``U``, of the outputs of the step before, ``[H, 4H]``.
    """

    project: Array
    bias: Array
    kernel: Array


class _Saved(NamedTuple):
    """What the reverse pass needs of every row.

    Attributes:
      met: the input, and the output of the step before, ``[N W, I + H]``.
      cell: of the step before, ``[N W, H]``.
      acts: gates and candidate, ``[N W, 4H]``.
    """

    met: Array
    cell: Array
    acts: Array


@jax.custom_vjp
def packed_lstm(x: Array, weights: Weights, places: Packing) -> Array:
    """Returns the outputs of all steps of packed sequences from a state of zeros, ``[N W, H]``; the step is `advance`.

    Gradient flows through: ``x`` and ``weights``, in reverse mode. What rows receive that are no step of a sequence
    must be zero.

    Args:
      x: rows of inputs ``[N W, I]``, finite everywhere.
      weights: of inputs and outputs.
      places: of the steps among the rows, from `ops.packing.pack`.

    Raises:
      AssertionError: widths that do not fit.
    """
    return _packed_forward(x, weights, places)[0]


def _packed_forward(x: Array, weights: Weights, places: Packing) -> tuple[Array, tuple]:
    width = weights.kernel.shape[0]
    chex.assert_shape(x, (places.sequence.size, None))
    chex.assert_shape(list(weights), [(x.shape[1], 4 * width), (4 * width,), (width, 4 * width)])
    outputs, saved = jax.lax.platform_dependent(x, weights, places, cpu=_loops_forward, default=_steps_forward)
    return outputs, (saved, weights, places)


def _packed_backward(saved: tuple[_Saved, Weights, Packing], received: Array) -> tuple[Array, Weights, None]:
    args = (*saved, received)
    to_x, to_steps, to_kernel = jax.lax.platform_dependent(*args, cpu=_loops_backward, default=_steps_backward)
    inputs = to_x.shape[1]
    return to_x, Weights(to_kernel[:inputs], jnp.sum(to_steps, axis=0), to_kernel[inputs:]), None


packed_lstm.defvjp(_packed_forward, _packed_backward)


def _steps_forward(x: Array, weights: Weights, places: Packing) -> tuple[Array, _Saved]:
    """All sequences at once, step by step."""
    projected = packing.spread(places, x @ weights.project + weights.bias[None])
    output, cell, gates, candidate, _ = _forward(projected, weights.kernel)[1]

    def rows(steps: Array) -> Array:
        return packing.take(places, jnp.moveaxis(steps, 0, -2))

    met = _beside(x, rows(_step_before(output)))
    return rows(output), _Saved(met, rows(_step_before(cell)), _beside(rows(gates), rows(candidate)))


def _steps_backward(saved: _Saved, weights: Weights, places: Packing, received: Array) -> tuple[Array, Array, Array]:
    cell, acts, received = (jnp.moveaxis(packing.spread(places, x), -2, 0) for x in (*saved[1:], received))
    to_steps = packing.take(places, jnp.moveaxis(_to_steps(received, cell, acts, weights.kernel), 0, -2))
    return to_steps @ weights.project.T, to_steps, products.gram(saved.met, to_steps)


@sequential_vmap
def _loops_forward(x: Array, weights: Weights, places: Packing) -> tuple[Array, _Saved]:
    """Time by time, as many groups of sequences at once as are left: a loop for every number of groups."""
    (rows, inputs), states = x.shape, weights.kernel.shape[0]
    kernel = jnp.concatenate(weights[::2])
    scale, shift = _as_tanh(states, x.dtype)
    zeros = partial(jnp.zeros, dtype=x.dtype)

    def one(count: int, t: Array, carry: tuple) -> tuple:
        output, cell, outputs, saved = carry
        place = places.starts[t] * _width(places)
        met = _beside(jax.lax.dynamic_slice_in_dim(x, place, count), output)
        acts = shift + scale * jnp.tanh(scale * (met @ kernel + weights.bias[None]))
        saved = _Saved(*(_put(old, new, place) for old, new in zip(saved, (met, cell, acts), strict=True)))
        write, keep, show, candidate = jnp.split(acts, 4, axis=1)
        cell = keep * cell + write * candidate
        output = show * jnp.tanh(cell)
        return output, cell, _put(outputs, output, place), saved

    saved = _Saved(zeros((rows, inputs + states)), zeros((rows, states)), zeros((rows, 4 * states)))
    carry = (*(zeros((places.ends.size * _width(places), states)),) * 2, zeros((rows, states)), saved)
    for groups in range(places.ends.size, 0, -1):
        count = groups * _width(places)
        carry = (carry[0][:count], carry[1][:count], *carry[2:])
        carry = jax.lax.fori_loop(*places.times(groups), partial(one, count), carry)
    return carry[2:]


@sequential_vmap
def _loops_backward(saved: _Saved, weights: Weights, places: Packing, received: Array) -> tuple[Array, Array, Array]:
    (rows, states), inputs = received.shape, weights.project.shape[0]
    back = products.transposed(jnp.concatenate(weights[::2]))
    zeros = partial(jnp.zeros, dtype=received.dtype)

    def one(count: int, times: tuple[Array, Array], turn: Array, carry: tuple) -> tuple:
        to_output, to_cell, to_x, to_steps = carry
        place = places.starts[times[1] - 1 - (turn - times[0])] * _width(places)
        cell, acts, got = (jax.lax.dynamic_slice_in_dim(x, place, count) for x in (*saved[1:], received))
        to_step, to_cell = _to_step(to_output + got, to_cell, cell, acts)
        to_met = to_step @ back
        return to_met[:, inputs:], to_cell, _put(to_x, to_met[:, :inputs], place), _put(to_steps, to_step, place)

    carry = (*(zeros((0, states)),) * 2, zeros((rows, inputs)), zeros((rows, 4 * states)))
    for groups in range(1, places.ends.size + 1):
        # A group more: what it remembers after its last step moves nothing.
        to_memory = (jnp.concatenate([x, zeros((_width(places), states))]) for x in carry[:2])
        times = places.times(groups)
        step = partial(one, groups * _width(places), times)
        carry = jax.lax.fori_loop(*times, step, (*to_memory, *carry[2:]))
    _, _, to_x, to_steps = carry
    return to_x, to_steps, products.gram(saved.met, to_steps, places.rows)


def _to_step(to_output: Array, to_cell: Array, before: Array, acts: Array) -> tuple[Array, Array]:
    """What a step's four pre-activations ``[..., 4H]`` and the cell before it receive.

    Args:
      to_output: what its output receives, ``[..., H]``.
      to_cell: what its cell receives from the step after it, ``[..., H]``.
      before: the cell before it.
      acts: gates and candidate.
    """
    write, keep, show, candidate = jnp.split(acts, 4, axis=-1)
    squashed = jnp.tanh(keep * before + write * candidate)
    to_cell = to_cell + to_output * show * (1.0 - jnp.square(squashed))
    to_step = _beside(
        to_cell * candidate * write * (1.0 - write),
        to_cell * before * keep * (1.0 - keep),
        to_output * squashed * show * (1.0 - show),
        to_cell * write * (1.0 - jnp.square(candidate)),
    )
    return to_step, to_cell * keep


def _as_tanh(states: int, dtype: Any) -> tuple[Array, Array]:
    """Scale and shift of gates and candidate as one function, ``shift + scale tanh(scale x)``, ``[1, 4H]``.

    ``sigmoid(x) = 1/2 + 1/2 tanh(x/2)``: one pass over a step in the place of two.
    """
    half = jnp.full((1, 3 * states), 0.5, dtype)
    one = jnp.ones((1, states), dtype)
    return _beside(half, one), _beside(half, 0.0 * one)


def _beside(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=-1)


def _put(x: Array, rows: Array, place: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, rows, place, axis=0)


def _step_before(x: Array) -> Array:
    """What was there a step before, ``[T, ..., H]``; zeros at the start."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def _width(places: Packing) -> int:
    return places.sequence.shape[1]
