"""A gridworld of two areas: the same action has opposite effects in them, and one border can be crossed one way only.

Five by five cells. In the *lower* area (rows 2 to 4) an action moves as its name says, in the *upper* area (rows 0 and
1) the other way round. A policy is meant to be fixed in the lower area, so only the upper one matters to its gradient:
a model that predicts the effect of an action without seeing the cell can be right there, or right on average.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import finite
from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["EFFECTS", "FREE", "SIZE", "GridState", "Layout", "layout", "make", "observe", "problem", "state_of"]

SIZE = 5
EFFECTS = ("up", "down", "left", "right", "stay")
"""What a move does; actions are the first four."""
FREE = -1
"""Mark of a cell whose action is not fixed."""

_BORDER = 2  # first row of the lower area
_STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))
_REVERSE = (1, 0, 3, 2)
_UP, _DOWN, _LEFT, _RIGHT = range(4)


class GridState(NamedTuple):
    """Cell, integer ``[]``, and number of steps taken, ``[]``."""

    cell: Array
    step: Array


class Layout(NamedTuple):
    """The geometry, as host arrays over the 25 cells.

    Attributes:
      moves: cell that each effect leads to, walls, border and goal counted in, integer ``[S, 5]``.
      effect: effect of each action in each cell, integer ``[S, 4]``.
      fixed_action: action of the deterministic part of the policy, `FREE` where the policy is to be learnt, ``[S]``.
      start: distribution of the first cell, ``[S]``.
      goal: the absorbing cell.
    """

    moves: np.ndarray
    effect: np.ndarray
    fixed_action: np.ndarray
    start: np.ndarray
    goal: int


def layout(topology: str = "two_areas") -> Layout:
    """Returns a geometry.

    Args:
      topology: "two_areas" starts in the lower area, whose border can be crossed upwards only, with the goal in the
        upper left corner: only the area in which the policy is free is then behind a decision of its own. "literal" is
        what the paper's text says: from the upper area one falls into the lower one, with the goal in its last corner,
        and cannot return; there the lower transitions follow decisions and keep their weight.

    Raises:
      InputError: an unknown topology.
    """
    if topology not in ("two_areas", "literal"):
        raise unknown("topology", topology, ("two_areas", "literal"))
    upwards = topology == "two_areas"
    rows, columns = np.divmod(np.arange(SIZE * SIZE), SIZE)
    lower = rows >= _BORDER
    goal = 0 if upwards else SIZE * SIZE - 1
    moves = np.empty((SIZE * SIZE, len(EFFECTS)), np.int32)
    for effect, (down, right) in enumerate(_STEPS):
        row, column = rows + down, columns + right
        crosses = (lower != (row >= _BORDER)) & (lower != upwards)
        blocked = (row < 0) | (row >= SIZE) | (column < 0) | (column >= SIZE) | crosses
        moves[:, effect] = np.where(blocked, rows * SIZE + columns, row * SIZE + column)
    moves[goal] = goal
    effect_of = np.where(lower[:, None], np.arange(4), np.array(_REVERSE))
    start = (lower if upwards else ~lower).astype(np.float64)
    # A serpentine towards the next area: along a row to its end, then on. It uses three of the four actions.
    onward = _UP if upwards else _DOWN
    to_right = rows % 2 == 0
    at_end = np.where(to_right, columns == SIZE - 1, columns == 0)
    serpentine = np.where(at_end, onward, np.where(to_right, _RIGHT, _LEFT))
    fixed = np.where(lower, serpentine, FREE)
    fixed[goal] = onward  # nothing is decided there
    return Layout(moves, effect_of, fixed, start / start.sum(), goal)


def problem(topology: str = "two_areas", *, gamma: Array | float = 0.95) -> finite.Problem:
    """Returns the gridworld as a finite problem, without a time limit.

    Args:
      topology: see `layout`.
      gamma: discount factor.
    """
    grid = layout(topology)
    following = np.take_along_axis(grid.moves, grid.effect, axis=1)
    reward = np.where(np.arange(SIZE * SIZE) == grid.goal, 0.0, -1.0)
    return finite.Problem(
        transition=jnp.asarray(np.eye(SIZE * SIZE)[following]),
        reward=jnp.asarray(np.repeat(reward[:, None], 4, axis=1)),
        start=jnp.asarray(grid.start),
        gamma=jnp.asarray(gamma, float),
    )


def make(*, topology: str = "two_areas", max_episode_steps: int = 50) -> Env:
    """Returns the gridworld as an environment: ``obs = (row, column)``, ``action`` is the number of a direction.

    The reward is -1 per step; reaching the goal ends the episode.

    Args:
      topology: see `layout`.
      max_episode_steps: steps after which an episode is truncated.

    Raises:
      InputError: an unknown topology or a time limit below 1.
    """
    if max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")
    grid = layout(topology)
    following = jnp.asarray(np.take_along_axis(grid.moves, grid.effect, axis=1))
    log_start = jnp.log(jnp.asarray(grid.start))

    def reset(key: Key) -> tuple[GridState, Array]:
        cell = jax.random.categorical(key, log_start).astype(jnp.int32)
        return GridState(cell, jnp.zeros((), jnp.int32)), observe(cell)

    def step(env_state: GridState, action: Array, key: Key) -> tuple[GridState, TimeStep]:
        del key  # the transition is deterministic
        chosen = jnp.clip(jnp.round(action[0]).astype(jnp.int32), 0, 3)
        cell = following[env_state.cell, chosen]
        count = env_state.step + 1
        obs = observe(cell)
        after = TimeStep(obs, _reward(observe(env_state.cell), action, obs), cell == grid.goal, count >= limit)
        return GridState(cell, count), after

    def _reward(obs: Array, action: Array, next_obs: Array) -> Array:
        del action, next_obs
        return jnp.where(state_of(obs) == grid.goal, 0.0, -1.0)

    limit = max_episode_steps
    spec = EnvSpec(
        name="gridworld",
        obs_dim=2,
        action_dim=1,
        action_low=np.zeros(1),
        action_high=np.full(1, 3.0),
        max_episode_steps=max_episode_steps,
        reward_fn=_reward,
        terminated_fn=lambda obs, action, next_obs: state_of(next_obs) == grid.goal,
        notes="The action is rounded to one of up, down, left, right; finite.Problem of gridworld.problem is exact.",
    )
    return Env(reset, step, spec)


def observe(cell: Array) -> Array:
    """Returns the observation of a cell, ``(row, column)`` as floats ``[2]``."""
    return jnp.stack([cell // SIZE, cell % SIZE]).astype(jnp.float32)


def state_of(obs: Array) -> Array:
    """Returns the cell of an observation ``[2]``, integer ``[]``."""
    row, column = jnp.round(obs).astype(jnp.int32)
    return row * SIZE + column
