"""Encoders of pictures that are made of sprites, from the cells that the sprites stand for.

`tabulated` is exact and does a fraction of the work: up to the first pooling, a block of pixels depends on its own cell
and its neighbours below and to the right, so that there are no more different blocks than such neighbourhoods.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.abstract_networks import convolve, max_pool
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.types import Array, PyTree

__all__ = ["drawn", "tabulated"]

_SPRITE = 6  # pixels a side: the encoder pools by 2 and by 3, so that a cell becomes a position of its map


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


def tabulated(encoder: Network, sprites: np.ndarray) -> Network:
    """Returns the encoder of cells ``[C, C]`` whose first two convolutions are a table over 2 x 2 neighbourhoods.

    Exact where the last row and the last column hold cells of kind 2, walls, and kind 0 fills a picture whole or is not
    in it. Any other picture is encoded wrongly: use `drawn` for it.

    Args:
      encoder: of `abstract_networks.map_networks`, for pictures of six pixels a cell.
      sprites: pixels of every kind of cell, ``[K, 6, 6]``; kind 0 is a blank.

    Raises:
      InputError: sprites of another size.
    """
    if sprites.ndim != 3 or sprites.shape[1:] != (_SPRITE, _SPRITE):
        raise InputError(f"sprites has shape {sprites.shape}, expected [K, {_SPRITE}, {_SPRITE}]; or use drawn cells.")
    inside, blank_and_wall = _neighbourhoods(sprites), _pictures(sprites)

    def apply(params: PyTree, cells: Array) -> Array:
        layers = params["params"]["_Torso_0"]

        def front(picture: Array) -> Array:
            x = jnp.tanh(convolve(layers["Conv_0"], picture[..., None]))
            return jnp.tanh(max_pool(convolve(layers["Conv_1"], x), 2))

        # The pixels past a neighbourhood's own block, which pad the convolutions, are not looked at.
        table = jax.vmap(front)(jnp.asarray(inside))[:, :3, :3]
        edges = jax.vmap(front)(jnp.asarray(blank_and_wall))  # [2, 6, 6, 16]
        table = jnp.concatenate([table, edges[:, 3:, :3], edges[:, :3, 3:], edges[:, 3:, 3:]])
        blocks = table[_rows(cells.astype(jnp.int32), sprites.shape[0])]  # [C, C, 3, 3, 16]
        side = 3 * cells.shape[0]
        x = jnp.swapaxes(blocks, 1, 2).reshape(side, side, -1)
        x = jnp.tanh(max_pool(convolve(layers["Conv_2"], x), 3))
        return convolve(params["params"]["Conv_0"], x)

    return Network(encoder.init, apply)


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
