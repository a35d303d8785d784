"""A distribution of labyrinths with three keys, seen as 48 x 48 pixels: every episode is another maze.

The state holds bitmaps of 8 x 8 cells. Pixels are a table of sprites away (`render`), so experience can be kept as
cells and drawn when a batch is needed: 64 bytes a picture instead of 9,216.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import maze_pool
from jaxhybrid.envs.maze_pool import START, Generator, MazePool
from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = [
    "AGENT",
    "BLANK",
    "FREE",
    "KEY",
    "MOVES",
    "UNLIMITED",
    "WALL",
    "MazeState",
    "cells",
    "make",
    "render",
    "sprites",
    "start",
]

BLANK, FREE, WALL, AGENT, KEY = range(5)
MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))  # row and column of actions 0 to 3
UNLIMITED = np.iinfo(np.int32).max
"""Time limit of an environment whose episodes end with the last key only."""

_BLOCK = 6  # pixels a cell
_STEP_REWARD, _KEY_REWARD = -0.1, 1.0
# Brightness in tenths, rows from the top; a picture holds 2 x - 1 of it.
_AGENT_SPRITE = ("008000", "999990", "099900", "099900", "090900", "990990")
_KEY_SPRITE = ("066600", "070700", "066600", "070000", "077000", "077700")

Observation = Literal["image", "cells"]


class MazeState(NamedTuple):
    """Where walls are and keys are left, boolean ``[C, C]``; row and column of the agent ``[2]``; steps ``[]``."""

    walls: Array
    keys: Array
    position: Array
    step: Array


def make(
    *,
    generator: Generator = "fair",
    split: Literal["train", "test"] = "test",
    pool_size: int = 256,
    seed: int = 0,
    max_episode_steps: int | None = 50,
    observation: Observation = "image",
    pool: MazePool | None = None,
) -> Env:
    """Returns the maze: walk to three keys, one point each, every other step costs a tenth.

        r = 1 where the step enters a cell with a key, which is then taken, else -0.1
        terminated iff no key is left

    Actions 0 to 3 change the row by +1, the column by +1, the row by -1, the column by -1; a wall leaves the agent
    where it is. In 50 steps of a "deer" maze the shortest tour returns 1.89 on average, random moves -4.1, and who
    finds no key -5.

    Args:
      generator: see `maze_pool.make_pool`; "deer" for numbers that compare with the released CRAR.
      split: "train" or "test"; mazes of one are never drawn for the other, but for chance.
      pool_size: mazes that episodes draw from. Random moves need some 400 steps a maze: 256 last for 100,000 steps.
      seed: of the pool.
      max_episode_steps: steps after which an episode is truncated, 50 in evaluation; None for no limit, as in the data
        that CRAR learns from.
      observation: "image" ``[48, 48]`` in [-1, 1], or "cells" ``[8, 8]``, which `render` turns into the image: 1 free,
        2 wall, 3 agent, 4 key; 0 is none of them and drawn as 0.
      pool: mazes of your own, or smaller ones from `maze_pool.make_pool`, instead of drawn ones.

    Raises:
      InputError: an unknown name, a count below 1, or a maze that cannot exist.
    """
    if observation not in ("image", "cells"):
        raise unknown("observation", observation, ("image", "cells"))
    if max_episode_steps is not None and max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1, or None for no limit.")
    if pool is None:
        pool = maze_pool.make_pool(generator, pool_size, seed, split)
    mazes = maze_pool.check_pool(pool)
    limit = UNLIMITED if max_episode_steps is None else max_episode_steps

    def observe(state: MazeState) -> Array:
        return render(cells(state)) if observation == "image" else cells(state)

    def reset(key: Key) -> tuple[MazeState, Array]:
        state = start(mazes, jax.random.randint(key, (), 0, len(mazes.walls)))
        return state, observe(state)

    def step(env_state: MazeState, action: Array, key: Key) -> tuple[MazeState, TimeStep]:
        del key  # the transition is deterministic
        ahead = env_state.position + jnp.asarray(MOVES)[action]
        position = jnp.where(env_state.walls[ahead[0], ahead[1]], env_state.position, ahead)
        found = env_state.keys[position[0], position[1]]
        keys = env_state.keys.at[position[0], position[1]].set(False)
        state = MazeState(env_state.walls, keys, position, env_state.step + 1)
        reward = jnp.where(found, _KEY_REWARD, _STEP_REWARD).astype(jnp.float32)
        return state, TimeStep(observe(state), reward, ~jnp.any(keys), state.step >= limit)

    side = mazes.walls.shape[-1] * (_BLOCK if observation == "image" else 1)
    spec = EnvSpec(
        name="maze",
        obs_dim=side * side,
        action_dim=0,
        action_low=np.zeros(0),
        action_high=np.zeros(0),
        max_episode_steps=limit,
        notes="Every episode is another maze of a fixed pool. Returns of the two generators do not compare.",
        num_actions=len(MOVES),
        obs_shape=(side, side),
    )
    return Env(reset, step, spec)


def start(pool: MazePool, index: Array | int) -> MazeState:
    """Returns the state at the start of one maze of a pool; mapped over all indices, the mazes of a test."""
    keys = jnp.asarray(pool.keys, jnp.int32)[index]
    walls = jnp.asarray(pool.walls)[index]
    return MazeState(
        walls=walls,
        keys=jnp.zeros_like(walls).at[keys[:, 0], keys[:, 1]].set(True),
        position=jnp.asarray(START, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def render(cells: Array) -> Array:
    """Draws a picture ``[6 C, 6 C]``, float32 in [-1, 1], of cells ``[C, C]`` of any number type.

    A block of 6 x 6 pixels is the sprite of its cell, whatever surrounds it.
    """
    blocks = jnp.asarray(sprites())[cells.astype(jnp.int32)]  # [C, C, 6, 6]
    return jnp.swapaxes(blocks, 1, 2).reshape(_BLOCK * len(cells), -1)


def cells(state: MazeState) -> Array:
    """What a state looks like, as kinds of cells, float32 ``[C, C]``."""
    kinds = jnp.where(state.walls, WALL, jnp.where(state.keys, KEY, FREE))
    return kinds.at[state.position[0], state.position[1]].set(AGENT).astype(jnp.float32)


def sprites() -> np.ndarray:
    """Pixels of every kind of cell, ``[5, 6, 6]``."""
    flat = [np.full((_BLOCK, _BLOCK), brightness) for brightness in (0.5, 0.0, 1.0)]
    drawn = [np.array([[int(x) for x in row] for row in sprite]) / 10.0 for sprite in (_AGENT_SPRITE, _KEY_SPRITE)]
    return (2.0 * np.stack([*flat, *drawn]) - 1.0).astype(np.float32)
