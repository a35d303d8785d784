"""The best that can be done in a maze: exact shortest tours over the keys that are left."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.envs.maze import MOVES, MazeState
from jaxhybrid.envs.maze_pool import NUM_KEYS
from jaxhybrid.types import Array

__all__ = ["Tour", "best_action", "best_return", "survey", "tour_length"]


class Tour(NamedTuple):
    """Rows and columns of the keys at the start ``[G, 2]``, and steps from every cell to each of them ``[G, C, C]``."""

    keys: Array
    distances: Array


def survey(state: MazeState, num_keys: int = NUM_KEYS) -> Tour:
    """Measures a maze at the start of an episode.

    ``d(x) = 0`` at the key, else ``1 + min d(neighbour)``, repeated until it holds everywhere; infinite on walls.

    Args:
      state: of the start.
      num_keys: that the maze has, ``G``.
    """
    rows, columns = jnp.nonzero(state.keys, size=num_keys)
    keys = jnp.stack([rows, columns], axis=1)

    def distance(place: Array) -> Array:
        zero = jnp.full(state.walls.shape, jnp.inf).at[place[0], place[1]].set(0.0)

        def relax(_: int, d: Array) -> Array:
            # The ring of walls is infinitely far, so what the roll brings round the edge does not matter.
            near = jnp.stack([jnp.roll(d, move, axis=(0, 1)) for move in MOVES])
            return jnp.where(state.walls, jnp.inf, jnp.minimum(d, 1.0 + jnp.min(near, axis=0)))

        return jax.lax.fori_loop(0, state.walls.size, relax, zero)

    return Tour(keys, jax.vmap(distance)(keys))


def tour_length(tour: Tour, position: Array, keys: Array) -> Array:
    """Fewest steps from ``position [2]`` over every key that is left in ``keys [C, C]``, float ``[]``."""
    left = keys[tour.keys[:, 0], tour.keys[:, 1]]
    lengths = []
    for order in itertools.permutations(range(len(tour.keys))):
        place, length = position, jnp.zeros(())
        for key in order:
            length = length + jnp.where(left[key], tour.distances[key, place[0], place[1]], 0.0)
            place = jnp.where(left[key], tour.keys[key], place)
        lengths.append(length)
    return jnp.min(jnp.stack(lengths))


def best_action(tour: Tour, state: MazeState) -> Array:
    """The action after which the rest of the tour is shortest, integer ``[]``."""
    ahead = state.position[None] + jnp.asarray(MOVES)
    blocked = state.walls[ahead[:, 0], ahead[:, 1]]
    places = jnp.where(blocked[:, None], state.position[None], ahead)
    return jnp.argmin(jax.vmap(lambda place: tour_length(tour, place, state.keys))(places))


def best_return(tour: Tour, state: MazeState) -> Array:
    """Undiscounted return of the shortest tour, ``keys left - 0.1 (steps - keys left)``, if time allows it."""
    left = jnp.sum(state.keys)
    return left - 0.1 * (tour_length(tour, state.position, state.keys) - left)
