"""Labyrinths drawn ahead of time: two generators, and pools of mazes that an environment draws from inside jit."""

from __future__ import annotations

import functools
import heapq
from typing import Literal, NamedTuple

import numpy as np

from jaxhybrid.errors import InputError, unknown

__all__ = ["GENERATORS", "NUM_KEYS", "SIDES", "SIZE", "START", "MazePool", "check_pool", "held_out", "make_pool"]

SIZE = 8  # cells a side, the outer ring of walls included
SIDES = (6, SIZE)
NUM_KEYS = 3
START = (1, 1)
GENERATORS = ("fair", "deer")
_STEP_COST = 10  # of the search whose leak the "deer" generator keeps; its heuristic is scaled alike
_BATCH = 1024  # proposals drawn together
_NEIGHBOURS = ((1, 0), (0, 1), (-1, 0), (0, -1))

Generator = Literal["fair", "deer"]


class MazePool(NamedTuple):
    """Mazes as bitmaps.

    Attributes:
      walls: where walls are, boolean ``[P, C, C]``, in the papers ``C = 8``.
      keys: row and column of the keys in the order in which they were drawn, integer ``[P, G, 2]``, ``G = 3`` there.
    """

    walls: np.ndarray
    keys: np.ndarray


@functools.lru_cache(maxsize=16)
def make_pool(
    generator: Generator, size: int, seed: int, split: str = "train", *, side: int = SIZE, num_keys: int = NUM_KEYS
) -> MazePool:
    """Draws ``size`` mazes: 12 walls among the cells {1..5}^2 without the start, then 3 keys on free cells.

    Cells 6 of either coordinate never hold a wall, since the original draws walls one cell short of the interior. A
    smaller side has as many walls to a third of its interior.

    Args:
      generator: "fair" redraws a maze unless every key can be reached (a quarter pass). "deer" passes the one in sixty
        that the original does: its three searches share one open and one closed list, so that a key on a cell that an
        earlier search has expanded counts as out of reach. The first key is then near the start and the last one far.
      size: mazes ``P``. The "deer" generator draws about a hundred a second.
      seed: any integer from 0.
      split: mazes of another split are other draws: "train" or "test". Of small mazes there are so few that other
        draws are often equal ones; see `held_out`.
      side: cells a side ``C``, the ring included, 6 or 8: the pictures are pooled by two and three, and once more.
      num_keys: keys ``G``, from 1 to 3.

    Returns:
      The pool. It is shared between callers and must not be changed.

    Raises:
      InputError: an unknown generator or split, a size below 1, a negative seed, or a side or a number of keys out of
        range.

    Source: the labyrinths of Francois-Lavet et al. 2019 (CRAR), section 5.2, as released.
    """
    if generator not in GENERATORS:
        raise unknown("generator", generator, GENERATORS)
    splits = ("train", "test")
    if split not in splits:
        raise unknown("split", split, splits)
    if size < 1:
        raise InputError(f"pool_size={size} must be at least 1.")
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative.")
    if side not in SIDES:
        raise InputError(f"side={side} must be one of {SIDES}.")
    if not 1 <= num_keys <= NUM_KEYS:
        raise InputError(f"num_keys={num_keys} must lie between 1 and {NUM_KEYS}.")
    rng = np.random.default_rng([seed, splits.index(split)])
    walls, keys, count = [], [], 0
    while count < size:
        proposed = _propose(rng, side, num_keys)
        good = np.flatnonzero(_reachable(proposed))
        if generator == "deer":
            good = np.array([i for i in good if _leaky_search(proposed.walls[i], proposed.keys[i])], int)
        walls.append(proposed.walls[good])
        keys.append(proposed.keys[good])
        count += len(good)
    pool = MazePool(np.concatenate(walls)[:size], np.concatenate(keys)[:size])
    for array in pool:
        array.setflags(write=False)
    return pool


def check_pool(pool: MazePool) -> MazePool:
    """Returns mazes made by hand if they can exist.

    Raises:
      InputError: another shape, an open ring, a key on a wall, on the start or on another key, or one out of reach.
    """
    walls, keys = np.asarray(pool.walls), np.asarray(pool.keys)
    side = walls.shape[-1] if walls.ndim == 3 else 0
    if side not in SIDES or walls.shape[1] != side or walls.dtype != bool:
        raise InputError(
            f"walls has shape {walls.shape} and type {walls.dtype}, expected bool [P, C, C], C in {SIDES}."
        )
    num_keys = keys.shape[1] if keys.ndim == 3 else 0
    if not 1 <= num_keys <= NUM_KEYS or keys.shape != (len(walls), num_keys, 2) or keys.dtype.kind not in "iu":
        raise InputError(
            f"keys has shape {keys.shape} and type {keys.dtype}, expected int [{len(walls)}, G, 2], G up to {NUM_KEYS}."
        )
    for i, (wall, key) in enumerate(zip(walls, keys)):
        if not wall[_ring(side)].all():
            raise InputError(f"maze {i} has a hole in its outer ring: the agent would leave the map.")
        if wall[START]:
            raise InputError(f"maze {i} has a wall on the start, {START}.")
        if key.min() < 0 or key.max() >= side:
            raise InputError(f"maze {i} has a key outside of the map: {key.tolist()}.")
        if len({tuple(k) for k in key} | {START}) <= num_keys:
            raise InputError(f"maze {i} has keys {key.tolist()}: they must differ from each other and from {START}.")
    reachable = _reachable(MazePool(walls, keys))
    if not reachable.all():
        i = int(np.argmin(reachable))
        raise InputError(f"maze {i} cannot be solved: no way from the start to each of its keys {keys[i].tolist()}.")
    return MazePool(walls, keys)


def held_out(pool: MazePool, trained: MazePool) -> MazePool:
    """Returns the mazes of a pool that are not among those of another one, of the same size.

    Raises:
      InputError: none is left.
    """

    def words(mazes: MazePool) -> list[bytes]:
        return [wall.tobytes() + np.sort(key @ [SIZE, 1]).tobytes() for wall, key in zip(mazes.walls, mazes.keys)]

    known = set(words(trained))
    new = np.array([word not in known for word in words(pool)])
    if not new.any():
        raise InputError(f"all of the {len(new)} test mazes are among the {len(known)} of training: train on fewer.")
    return MazePool(pool.walls[new], pool.keys[new])


def _ring(side: int) -> np.ndarray:
    ring = np.ones((side, side), bool)
    ring[1:-1, 1:-1] = False
    return ring


def _propose(rng: np.random.Generator, side: int, num_keys: int) -> MazePool:
    """Draws walls and keys of ``_BATCH`` mazes, of which most cannot be solved."""
    rows = np.arange(_BATCH)[:, None]
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1).reshape(-1, 2)
    free = ~_ring(side).ravel()
    free[START[0] * side + START[1]] = False
    candidates = np.flatnonzero(free & (cells < side - 2).all(axis=1))
    chosen = rng.permuted(np.tile(candidates, (_BATCH, 1)), axis=1)[:, : (side - 2) ** 2 // 3]
    walls = np.tile(_ring(side).ravel(), (_BATCH, 1))
    walls[rows, chosen] = True
    # The keys are the free cells with the smallest of random numbers.
    order = np.where(walls | ~free[None], np.inf, rng.random(walls.shape))
    keys = cells[np.argsort(order, axis=1)[:, :num_keys]]
    return MazePool(walls.reshape(-1, side, side), keys)


def _reachable(pool: MazePool) -> np.ndarray:
    """Whether every key can be reached from the start, ``[P]``: a flood that grows by one cell at a time."""
    flood = np.zeros_like(pool.walls)
    flood[:, START[0], START[1]] = True
    for _ in range(flood[0].size):
        grown = flood.copy()
        for axis in (1, 2):
            grown |= np.roll(flood, 1, axis) | np.roll(flood, -1, axis)
        # The closed ring keeps the flood from going round the edges.
        grown &= ~pool.walls
        if (grown == flood).all():
            break
        flood = grown
    rows = np.arange(len(flood))[:, None]
    return flood[rows, pool.keys[..., 0], pool.keys[..., 1]].all(axis=1)


class _Cell:
    """A cell of the search; cells are ordered by ``f`` alone, so that ties fall as the heap has them."""

    def __init__(self, place: tuple[int, int]):
        self.place, self.f, self.g, self.closed = place, 0, 0, False

    def __lt__(self, other: _Cell) -> bool:
        return self.f < other.f


def _leaky_search(walls: np.ndarray, keys: np.ndarray) -> bool:
    """Whether best-first searches for each key in turn all succeed, with lists that are never cleared.

    ``f = g + h`` with ``h`` the distance along both axes to the current key. The open list may hold stale ``f``; a cell
    that is in it with its present ``f`` is only improved, any other is pushed again.
    """
    cells = {(i, j): _Cell((i, j)) for i in range(len(walls)) for j in range(len(walls)) if not walls[i, j]}
    opened: list[tuple[int, _Cell]] = []
    start = cells[START]
    for goal in map(tuple, keys.tolist()):
        heapq.heappush(opened, (start.f, start))
        found = False
        while opened and not found:
            cell = heapq.heappop(opened)[1]
            cell.closed = True
            found = cell.place == goal
            for near in [] if found else _around(cells, cell):
                if near.closed:
                    continue
                listed = any(entry is near and f == near.f for f, entry in opened)
                if listed and near.g <= cell.g + _STEP_COST:
                    continue
                near.g = cell.g + _STEP_COST
                near.f = near.g + _STEP_COST * (abs(near.place[0] - goal[0]) + abs(near.place[1] - goal[1]))
                if not listed:
                    heapq.heappush(opened, (near.f, near))
        if not found:
            return False
    return True


def _around(cells: dict[tuple[int, int], _Cell], cell: _Cell) -> list[_Cell]:
    i, j = cell.place
    return [cells[i + di, j + dj] for di, dj in _NEIGHBOURS if (i + di, j + dj) in cells]
