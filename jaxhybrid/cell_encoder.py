"""Encoders of pictures that are made of sprites, from the cells that the sprites stand for.

A position of the encoder's map depends on its own cell and on the eight around it, and of such patches few differ: 32
steps in the mazes have 4,096 positions and some 800 patches. `patch_encoder` is exact and encodes each of them once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.abstract_networks import convolve, max_pool
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.types import Array, PyTree

__all__ = ["Patches", "drawn", "find_patches", "patch_encoder"]

_SPRITE = 6  # pixels a side: the encoder pools by 2 and by 3, so that a cell becomes a position of its map
_MOST_KINDS = 9  # patches are told apart by a number of nine digits, which has to fit into 31 bits
_CHUNK = 128  # patches encoded together: few enough to stay in a processor's cache
# For the five rows (and columns) of pooled pixels that the last convolution sees around a cell: in which of the three
# cells each of them lies, and which of that cell's three it is.
_CELL, _PIXEL = np.array([0, 1, 1, 1, 2]), np.array([2, 0, 1, 2, 0])


class Patches(NamedTuple):
    """The different patches of 3 x 3 cells in a batch of pictures.

    Attributes:
      rows: for the cells of every patch, rows of the table of neighbourhoods, ``[P, 9]``; ``used`` of them count.
      places: the patch around every cell, ``[N, C, C]``.
      used: number of different patches, ``[]``.
    """

    rows: Array
    places: Array
    used: Array


def drawn(encoder: Network, sprites: np.ndarray) -> Network:
    """Returns the encoder of cells ``[C, C]`` that draws the picture and encodes that.

    Args:
      encoder: of pictures ``[C p, C p]``.
      sprites: pixels of every kind of cell, ``[K, p, p]``.
    """

    def apply(params: PyTree, cells: Array) -> Array:
        blocks = jnp.asarray(sprites)[cells.astype(jnp.int32)]  # [C, C, p, p]
        side = cells.shape[0] * sprites.shape[1]
        return encoder.apply(params, jnp.swapaxes(blocks, 1, 2).reshape(side, side))

    return Network(encoder.init, apply)


def find_patches(cells: Array, num_kinds: int) -> Patches:
    """Returns the different patches of pictures, for `patch_encoder`.

    Args:
      cells: integers below ``num_kinds``, ``[N, C, C]``; see `patch_encoder` for which pictures.
      num_kinds: kinds of cells ``K``, at most 9.

    Raises:
      InputError: too many kinds.
    """
    if num_kinds > _MOST_KINDS:
        raise InputError(f"num_kinds={num_kinds} must be at most {_MOST_KINDS}; or use drawn cells.")
    cells = cells.astype(jnp.int32)
    # Whatever is outside of a picture is one kind more, and the last row of the table.
    kinds = _around(cells, num_kinds)
    rows = _around(jax.vmap(lambda x: _rows(x, num_kinds))(cells), _table_size(num_kinds) - 1)
    code = kinds @ jnp.asarray((num_kinds + 1) ** np.arange(9), jnp.int32)
    size = -(-code.size // _CHUNK) * _CHUNK
    _, first, places = jnp.unique(code.ravel(), size=size, return_index=True, return_inverse=True)
    return Patches(rows.reshape(-1, 9)[first], places.reshape(cells.shape), jnp.max(places) + 1)


def patch_encoder(sprites: np.ndarray) -> Callable[[PyTree, Patches], Array]:
    """Returns ``encode(params, patches) -> [N, C, C, channels]``, the encoder of a batch of pictures, patch by patch.

    Its first two convolutions are a table over neighbourhoods of 2 x 2 cells. Exact, in value and reverse derivative,
    where the last row and the last column hold cells of kind 2, walls, and kind 0 fills a picture whole or is not in
    it. Any other picture is encoded wrongly: use `drawn` for it.

    Args:
      sprites: pixels of every kind of cell, ``[K, 6, 6]``; kind 0 is a blank. ``params`` are those of the encoder of
        `abstract_networks.map_networks`, for pictures of six pixels a cell.

    Raises:
      InputError: sprites of another size.
    """
    if sprites.ndim != 3 or sprites.shape[1:] != (_SPRITE, _SPRITE):
        raise InputError(f"sprites has shape {sprites.shape}, expected [K, {_SPRITE}, {_SPRITE}]; or use drawn cells.")
    inside, blank_and_wall = _neighbourhoods(sprites), _pictures(sprites)

    def encode(params: PyTree, patches: Patches) -> Array:
        layers = params["params"]["_Torso_0"]

        def front(picture: Array) -> Array:
            x = jnp.tanh(convolve(layers["Conv_0"], picture[..., None]))
            return jnp.tanh(max_pool(convolve(layers["Conv_1"], x), 2))

        # The pixels past a neighbourhood's own block, which pad the convolutions, are not looked at.
        table = jax.vmap(front)(jnp.asarray(inside))[:, :3, :3]
        edges = jax.vmap(front)(jnp.asarray(blank_and_wall))  # [2, 6, 6, 16]
        outside = jnp.zeros_like(table[:1])  # what the last convolution is padded with
        table = jnp.concatenate([table, edges[:, 3:, :3], edges[:, :3, 3:], edges[:, 3:, 3:], outside])
        weights = (table, layers["Conv_2"], params["params"]["Conv_0"])
        return _encode_patches(weights, patches.rows, patches.used)[patches.places]

    return encode


@jax.custom_vjp
def _encode_patches(weights: Any, rows: Array, used: Array) -> Array:
    """Codes of the patches ``[P, channels]``, of which the first ``used`` are computed, chunk by chunk.

    The number of chunks depends on the data, and a loop of that kind has no reverse derivative of its own.
    """

    def chunk(i: Array, codes: Array) -> Array:
        some = jax.lax.dynamic_slice_in_dim(rows, i * _CHUNK, _CHUNK)
        return jax.lax.dynamic_update_slice_in_dim(codes, _code(weights, some), i * _CHUNK, axis=0)

    bias = weights[2]["bias"]
    return jax.lax.fori_loop(0, _chunks(used), chunk, jnp.zeros((rows.shape[0], bias.shape[0]), bias.dtype))


def _forward(weights: Any, rows: Array, used: Array) -> tuple[Array, Any]:
    return _encode_patches(weights, rows, used), (weights, rows, used)


def _backward(saved: Any, slopes: Array) -> tuple[Any, None, None]:
    weights, rows, used = saved

    def chunk(i: Array, total: Any) -> Any:
        some = jax.lax.dynamic_slice_in_dim(rows, i * _CHUNK, _CHUNK)
        slope = jax.lax.dynamic_slice_in_dim(slopes, i * _CHUNK, _CHUNK)
        return jax.tree.map(jnp.add, total, jax.vjp(lambda w: _code(w, some), weights)[1](slope)[0])

    return jax.lax.fori_loop(0, _chunks(used), chunk, jax.tree.map(jnp.zeros_like, weights)), None, None


_encode_patches.defvjp(_forward, _backward)


def _chunks(used: Array) -> Array:
    return (used + _CHUNK - 1) // _CHUNK


def _code(weights: Any, rows: Array) -> Array:
    """Last convolution, pooling and projection for the middle of each patch, ``[P, channels]`` of ``[P, 9]``."""
    table, conv, projection = weights
    cell = (3 * _CELL[:, None] + _CELL[None]).ravel()
    pixel = jnp.asarray((3 * _PIXEL[:, None] + _PIXEL[None]).ravel(), rows.dtype)
    x = table.reshape(-1, table.shape[-1])[9 * rows[:, cell] + pixel[None]].reshape(-1, 5, 5, table.shape[-1])
    # The inner 3 x 3 of the 5 x 5 pixels, each with those around it.
    near = jnp.concatenate([x[:, i : i + 3, j : j + 3] for i in range(3) for j in range(3)], axis=-1)
    y = near.reshape(-1, near.shape[-1]) @ conv["kernel"].reshape(near.shape[-1], -1)
    # Equal pixels have equal surroundings, so it does not matter that the slope is shared among largest ones.
    y = jnp.tanh(jnp.max(y.reshape(len(rows), 9, -1), axis=1) + conv["bias"][None])
    return y @ projection["kernel"][0, 0] + projection["bias"][None]


def _around(x: Array, outside: int) -> Array:
    """The nine entries around every cell of pictures, ``[N, C, C, 9]`` of ``[N, C, C]``."""
    side = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    return jnp.stack([padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=-1)


def _table_size(num_kinds: int) -> int:
    """Rows of the table: one blank, all neighbourhoods of the other kinds, three edges of two pictures, and outside."""
    return 1 + (num_kinds - 1) ** 4 + 6 + 1


def _neighbourhoods(sprites: np.ndarray) -> np.ndarray:
    """The pixels that one block of nine pooled pixels depends on, 8 x 8, of a blank and of all kinds in all places."""
    kinds = np.indices((len(sprites) - 1,) * 4).reshape(4, -1).T + 1
    corners = sprites[np.concatenate([np.zeros((1, 4), int), kinds])].reshape(-1, 2, 2, _SPRITE, _SPRITE)
    return np.swapaxes(corners, 2, 3).reshape(-1, 2 * _SPRITE, 2 * _SPRITE)[:, :8, :8]


def _pictures(sprites: np.ndarray) -> np.ndarray:
    """Pictures of 2 x 2 cells, all blank and all wall: their last rows and columns are those of any picture."""
    return np.stack([np.tile(sprites[kind], (2, 2)) for kind in (0, 2)])


def _rows(cells: Array, num_kinds: int) -> Array:
    """Row of the table for every cell, ``[C, C]``: neighbourhoods, then bottom, right, corner, each blank and wall."""
    base, last = num_kinds - 1, (num_kinds - 1) ** 4
    right, below = jnp.roll(cells, -1, axis=1), jnp.roll(cells, -1, axis=0)
    beyond = jnp.roll(below, -1, axis=1)
    around = (((cells - 1) * base + right - 1) * base + below - 1) * base + beyond - 1
    row = jnp.where(cells == 0, 0, 1 + around)
    place = jnp.arange(cells.shape[0])
    bottom, side = (place == cells.shape[0] - 1)[:, None], (place == cells.shape[0] - 1)[None]
    edge = jnp.where(bottom & side, 2, jnp.where(side, 1, 0))
    return jnp.where(bottom | side, last + 1 + 2 * edge + (cells != 0), row)
