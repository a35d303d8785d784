"""Layers of networks that find out which task they are in: embedders of small integers, a linear one, a memory.

The first layer on an embedded integer is a table with a row per value, so that the whole layer is one product with the
indicators of the values: exact, and a tenth of the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.networks import Network
from jaxhybrid.ops import memory, products
from jaxhybrid.ops.packing import Packing
from jaxhybrid.types import Array, Key

__all__ = [
    "CODE",
    "EMBEDDED",
    "LSTM",
    "Embedder",
    "Hidden",
    "Linear",
    "Look",
    "PictureEmbedder",
    "Tuples",
    "look_up",
    "state_embedder",
]

CODE = 64
"""Numbers that describe a task."""
EMBEDDED = 32
"""Width of an embedded integer."""
_HIDDEN = 256

Hidden = tuple[Array, ...]
Tuples = tuple[tuple[int, ...], ...]
"""Small integers, ``[S, C]``."""


class Look(NamedTuple):
    """Observations as pictures.

    Attributes:
      draw: ``draw(obs [C]) -> picture``.
      encoder: ``apply(params, picture) -> [CODE]``.
    """

    draw: Callable[[Array], Array]
    encoder: Network


class Embedder(nn.Module):
    """Maps a tuple of integers ``[..., C]`` to ``[..., out]``: a table for each, a hidden layer, a linear one.

    Attributes:
      sizes: number of values of every component.
      out: width of the output.
      possible: the tuples that there are, ``[S, C]``; None: all. Where they are embedded once each, any other becomes
        NaN, which a train step refuses to learn from, and counts.
    """

    sizes: Sequence[int]
    out: int = CODE
    possible: Tuples | None = None

    def __call__(self, values: Array) -> Array:
        """Embeds every tuple."""
        table, place = self.table(values)
        return look_up(table, place)

    @nn.compact
    def table(self, values: Array) -> tuple[Array, Array]:
        """Embeds what has to be embedded: rows ``[S, out]``, and which of them each tuple is, for `look_up`."""
        values, place = _distinct(values, self.sizes, self.possible)
        rows = []
        for i, size in enumerate(self.sizes):
            table = self.param(f"table_{i}", nn.initializers.normal(1.0), (size, EMBEDDED))
            kernel = self.param(f"kernel_{i}", _uniform(EMBEDDED * len(self.sizes)), (EMBEDDED, _HIDDEN))
            rows.append(table @ kernel)
        bias = self.param("bias", _uniform(EMBEDDED * len(self.sizes)), (_HIDDEN,))
        hot = [jax.nn.one_hot(values[:, i], size) for i, size in enumerate(self.sizes)]
        first = products.product(jnp.concatenate(hot, axis=-1), jnp.concatenate(rows))
        return Linear((_HIDDEN,), self.out, name="out")(nn.relu(first + bias[None])), place


class PictureEmbedder(nn.Module):
    """What `Embedder` is, for observations that are looked at: a picture is drawn of each and encoded.

    Attributes:
      sizes: number of values of every component.
      look: pictures and their encoder.
      possible: as for `Embedder`.
    """

    sizes: Sequence[int]
    look: Look
    possible: Tuples | None = None

    def __call__(self, values: Array) -> Array:
        """Embeds every tuple."""
        table, place = self.table(values)
        return look_up(table, place)

    @nn.compact
    def table(self, values: Array) -> tuple[Array, Array]:
        """What `Embedder.table` is."""
        values, place = _distinct(values, self.sizes, self.possible)
        encoder = self.param("picture", self.look.encoder.init)
        return jax.vmap(lambda obs: self.look.encoder.apply(encoder, self.look.draw(obs)))(values), place


def _distinct(values: Array, sizes: Sequence[int], possible: Tuples | None) -> tuple[Array, Array]:
    """Tuples ``[S, C]``, and which of them each of ``values [..., C]`` is.

    Of many tuples every possible one is embedded once, and looked up: exact, and less work.
    """
    shape, total = tuple(sizes), math.prod(sizes)
    every = np.stack(np.unravel_index(np.arange(total), shape), axis=-1) if possible is None else np.array(possible)
    count = math.prod(values.shape[:-1])
    if count <= len(every):
        return values.reshape(count, len(shape)), jnp.arange(count).reshape(values.shape[:-1])
    row = np.full(total, len(every), np.int32)  # past the end, where a look-up finds NaN
    row[np.ravel_multi_index(tuple(every.T), shape)] = np.arange(len(every))
    parts = tuple(jnp.moveaxis(values, -1, 0))
    inside = jnp.stack([(part >= 0) & (part < size) for part, size in zip(parts, shape)]).all(axis=0)
    place = jnp.ravel_multi_index(parts, shape, mode="clip")
    return jnp.asarray(every, jnp.int32), jnp.where(inside, jnp.asarray(row)[place], len(every))


def look_up(table: Array, place: Array) -> Array:
    """Rows of an embedder's table, NaN where what was to be embedded cannot be."""
    return table.at[place].get(mode="fill", fill_value=jnp.nan)


def state_embedder(sizes: Sequence[int], look: Look | None, possible: Tuples | None) -> nn.Module:
    """Returns what embeds observations, by their numbers or as pictures."""
    if look is None:
        return Embedder(sizes, possible=possible)
    return PictureEmbedder(sizes, look, possible=possible)


class Linear(nn.Module):
    """A linear layer whose weights and biases are uniform within ``1 / sqrt(fan)``, by default of its inputs.

    Attributes:
      inputs: widths of what stands side by side in the input.
      out: width of the output.
      fan: see above.
    """

    inputs: Sequence[int]
    out: int
    fan: int | None = None

    def setup(self) -> None:
        """Names the weights."""
        init = _uniform(self.fan or sum(self.inputs))
        self.kernel = self.param("kernel", init, (sum(self.inputs), self.out))
        self.bias = self.param("bias", init, (self.out,))

    def __call__(self, x: Array, rows: Array | None = None) -> Array:
        """Maps ``[..., I]``, or of ``[R, I]`` the first ``rows`` rows; past them anything may come out."""
        y = products.product(x.reshape(-1, x.shape[-1]), self.kernel, rows) + self.bias[None]
        return y.reshape(*x.shape[:-1], self.out)

    def apart(self, *parts: Array) -> list[Array]:
        """Maps what stands side by side part by part: the outputs add up to that of the whole."""
        ends = [sum(self.inputs[: i + 1]) for i in range(len(self.inputs) - 1)]
        first, *others = (products.product(*each) for each in zip(parts, jnp.split(self.kernel, ends), strict=True))
        return [first + self.bias[None], *others]


class LSTM(nn.Module):
    """Long short-term memory over sequences ``[..., T, I] -> [..., T, width]``, from a state of zeros.

    Attributes:
      inputs: ``I``.
      width: of the state.
    """

    inputs: int
    width: int

    def setup(self) -> None:
        """Names the layers."""
        self.project = Linear((self.inputs,), 4 * self.width, fan=self.width)
        self.kernel = self.param("kernel", _uniform(self.width), (self.width, 4 * self.width))

    def __call__(self, x: Array) -> Array:
        """Returns the output after every input."""
        return memory.lstm(self.project(x), self.kernel)

    def packed(self, x: Array, places: Packing) -> Array:
        """The same for the rows of packed sequences, ``[R, I] -> [R, width]``."""
        weights = memory.Weights(self.project.kernel, self.project.bias, self.kernel)
        return memory.packed_lstm(x, weights, places)

    def step(self, hidden: Hidden, x: Array) -> Hidden:
        """Returns output and cell after one more input ``[I]``."""
        output, cell = hidden
        return memory.advance(output, cell, self.project(x), self.kernel)


def _uniform(fan: int) -> Any:
    def init(key: Key, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan**-0.5), fan**-0.5)

    return init
