"""Two rooms and a door, without reward: a task whose two-dimensional abstract states can be looked at."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["MOVES", "SIZE", "SimpleMazeState", "make", "picture", "walls"]

SIZE, PIXELS = 8, 48
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # row and column of actions 0 to 3
_DOOR = (4, 4)
_BLOCK = PIXELS // SIZE
# Brightness in tenths, rows from the top; a body of 0.7 and a head of 0.8.
_AGENT_SPRITE = ("008000", "777770", "077700", "077700", "070700", "770770")


class SimpleMazeState(NamedTuple):
    """Row and column of the agent ``[2]``, steps taken ``[]``."""

    position: Array
    step: Array


def make(*, max_episode_steps: int = 500) -> Env:
    """Returns rooms of 6 x 3 and 6 x 2 cells in a ring of walls, joined by a door at (4, 4), where the agent starts.

    Actions 0 to 3 change the row by -1, by +1, the column by -1, by +1. The reward is 0, and no episode terminates:
    what there is to learn is the dynamics. Pictures are ``[48, 48]`` in [0, 1], walls 1 and floor 0.

    Args:
      max_episode_steps: steps after which an episode is truncated.

    Raises:
      InputError: a time limit below 1.

    Source: the first experiment of Francois-Lavet et al. 2019 (CRAR), as released.
    """
    if max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")

    def reset(key: Key) -> tuple[SimpleMazeState, Array]:
        del key  # there is one start
        state = SimpleMazeState(jnp.asarray(_DOOR, jnp.int32), jnp.zeros((), jnp.int32))
        return state, picture(state.position)

    def step(env_state: SimpleMazeState, action: Array, key: Key) -> tuple[SimpleMazeState, TimeStep]:
        del key  # the transition is deterministic
        ahead = env_state.position + jnp.asarray(MOVES)[action]
        blocked = jnp.asarray(walls())[ahead[0], ahead[1]]
        state = SimpleMazeState(jnp.where(blocked, env_state.position, ahead), env_state.step + 1)
        ended = state.step >= max_episode_steps
        return state, TimeStep(picture(state.position), jnp.zeros(()), jnp.zeros((), bool), ended)

    spec = EnvSpec(
        name="simple_maze",
        obs_dim=PIXELS * PIXELS,
        action_dim=0,
        action_low=np.zeros(0),
        action_high=np.zeros(0),
        max_episode_steps=max_episode_steps,
        notes="There is no reward. Pictures are not scaled to [-1, 1], unlike those of the maze.",
        num_actions=len(MOVES),
        obs_shape=(PIXELS, PIXELS),
    )
    return Env(reset, step, spec)


def walls() -> np.ndarray:
    """Where the walls are, boolean ``[8, 8]``."""
    grid = np.ones((SIZE, SIZE), bool)
    grid[1:-1, 1:-1] = False
    grid[:, _DOOR[1]] = True
    grid[_DOOR] = False
    return grid


def picture(position: Array) -> Array:
    """Draws the map with the agent at ``position [2]``, ``[48, 48]``."""
    sprite = np.array([[int(x) for x in row] for row in _AGENT_SPRITE], np.float32) / 10.0
    rooms = np.kron(walls(), np.ones((_BLOCK, _BLOCK))).astype(np.float32)
    there = (jnp.arange(SIZE)[:, None] == position[0]) & (jnp.arange(SIZE)[None] == position[1])
    agent = jnp.kron(there.astype(jnp.float32), jnp.asarray(sprite))
    return jnp.asarray(rooms) + agent
