"""Sequences of different lengths side by side, without their padding: steps as rows of blocks that a loop goes through.

On a CPU the padding of a batch costs as much as its steps. Here the sequences are sorted by length and cut into blocks
of a few sequences at one time each; only blocks with a step in them are ever worked on, which is the same arithmetic.
On other devices, where many short products cost more than a large one, all rows are worked on at once.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = ["Packing", "pack", "row_of_prefix", "spread", "spread_prefixes", "take", "with_empty"]

# A width that products are fast at, and few enough groups that a loop can be compiled for every number of them.
_WIDTH, _GROUPS = 8, 4


class Packing(NamedTuple):
    """Where the steps of sequences ``[B, T]`` stand among ``N`` blocks of ``W`` rows each, times in order.

    Attributes:
      sequence: of every row, integer ``[N, W]``.
      time: of every block, integer ``[N]``.
      starts: the first block of every time, integer ``[T]``; those of the groups that are left follow each other.
      ends: steps of every group of ``W`` sequences, the longest first, integer ``[G]``.
      used: whether a row is a step of a sequence, boolean ``[N, W]``.
      blocks: in use, the first of all, integer ``[]``.
      row: of every step among ``N W``, integer ``[B, T]``; any past the end.
      inside: whether a step is one of its sequence, boolean ``[B, T]``.
    """

    sequence: Array
    time: Array
    starts: Array
    ends: Array
    used: Array
    blocks: Array
    row: Array
    inside: Array

    @property
    def rows(self) -> Array:
        """Rows of the blocks in use, ``[]``."""
        return self.blocks * self.sequence.shape[1]

    def times(self, groups: int) -> tuple[Array, Array]:
        """The first time at which that many groups have steps, and the one after the last, ``[]`` each."""
        shorter = self.ends[groups] if groups < self.ends.shape[0] else jnp.zeros_like(self.ends[0])
        return shorter, self.ends[groups - 1]


def pack(lengths: Array, horizon: int) -> Packing:
    """Returns the packing of sequences.

    Args:
      lengths: of the sequences, integer ``[B]``, at most ``horizon``.
      horizon: ``T``, the length to which they are padded.
    """
    chex.assert_rank(lengths, 1)
    count = lengths.shape[0]
    width = min(max(_WIDTH, -(-count // _GROUPS)), count)
    groups = -(-count // width)
    order = jnp.argsort(-lengths)
    rank = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32))
    alive = jnp.sum(lengths[None, :] > jnp.arange(horizon)[:, None], axis=1)
    until = jnp.cumsum(-(-alive // width))
    starts = jnp.concatenate([jnp.zeros(1, until.dtype), until[:-1]])

    block = jnp.arange(horizon * groups)
    time = jnp.minimum(jnp.searchsorted(until, block, side="right"), horizon - 1)
    group = jnp.clip(block - starts[time], 0, groups - 1)
    place = group[:, None] * width + jnp.arange(width)[None, :]
    return Packing(
        sequence=order[jnp.minimum(place, count - 1)],
        time=time,
        starts=starts,
        ends=lengths[order[::width]],
        used=(block < until[-1])[:, None] & (place < alive[time][:, None]),
        blocks=until[-1],
        row=(starts[None, :] + (rank // width)[:, None]) * width + (rank % width)[:, None],
        inside=lengths[:, None] > jnp.arange(horizon)[None, :],
    )


@jax.custom_vjp
def take(packing: Packing, x: Array) -> Array:
    """Returns the steps of padded sequences ``[B, T, ...]`` as rows ``[N W, ...]``, zeros where there is none."""
    rows = x[packing.sequence, packing.time[:, None]].reshape(-1, *x.shape[2:])
    return jnp.where(_beside(packing.used.reshape(-1), rows), rows, jnp.zeros((), x.dtype))


@jax.custom_vjp
def spread(packing: Packing, rows: Array) -> Array:
    """Returns rows ``[N W, ...]`` as padded sequences ``[B, T, ...]``, zeros past their ends; undoes `take`."""
    x = rows.at[packing.row].get(mode="clip")
    return jnp.where(_beside(packing.inside, x), x, jnp.zeros((), rows.dtype))


# Each hands back what it receives by the other: an exchange of rows, not a sum over places.
take.defvjp(lambda packing, x: (take(packing, x), packing), lambda packing, received: (None, spread(packing, received)))
spread.defvjp(
    lambda packing, x: (spread(packing, x), packing), lambda packing, received: (None, take(packing, received))
)


def with_empty(packing: Packing, rows: Array) -> tuple[Array, Array]:
    """Puts what stands for no step, zeros, before the rows of all steps: a row for every prefix of every sequence.

    Returns:
      ``(rows [W + N W, ...], how many count [])``: one more block, the first.
    """
    width = packing.sequence.shape[1]
    return jnp.concatenate([jnp.zeros_like(rows[:width]), rows]), packing.rows + width


def row_of_prefix(packing: Packing, lengths: Array) -> Array:
    """The row, as `with_empty` orders them, of the prefix of some length of every sequence, integer ``[B]``."""
    row = jnp.take_along_axis(packing.row, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    return jnp.where(lengths > 0, row + packing.sequence.shape[1], 0)


def spread_prefixes(packing: Packing, rows: Array) -> Array:
    """Returns rows of prefixes, as `with_empty` orders them, by sequence ``[B, T+1, ...]``; zeros past the ends."""
    empty = jnp.broadcast_to(rows[0], (packing.row.shape[0], 1, *rows.shape[1:]))
    return jnp.concatenate([empty, spread(packing, rows[packing.sequence.shape[1] :])], axis=1)


def _beside(flags: Array, x: Array) -> Array:
    """Flags of the leading axes of ``x``, to be broadcast with it."""
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - flags.ndim))
