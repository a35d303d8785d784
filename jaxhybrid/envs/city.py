"""A city with buses: find out where they go, then follow an instruction.

Nine by nine cells; the buses leave next to the middle, where every episode starts, and where they lead is the *task*.
A trial is an exploration episode, which pays nothing and shows the task, and an execution episode, which pays for
reaching a corner. Riding the right bus takes three steps, walking eight.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Key, TimeStep

__all__ = [
    "ACTIONS",
    "END",
    "GOALS",
    "HELPFUL_ENDS",
    "HELPFUL_STOPS",
    "MAP_CELL",
    "MOVES",
    "ORDERS",
    "RIDE",
    "SIZE",
    "START",
    "TASKS",
    "USELESS_ENDS",
    "USELESS_STOPS",
    "City",
    "CityState",
    "hidden_goals",
    "make",
    "move",
    "observations",
    "observe",
    "released_tasks",
    "reset",
    "rides",
    "sample_task",
    "step",
]

SIZE = 9
START = (4, 4)
ACTIONS = ("left", "up", "right", "down", "stay", "ride", "end", "pick up", "drop")
"""The last two do nothing; they come from a larger family of tasks and are there for a policy to rule out."""
RIDE, END = 5, 6
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), *(((0, 0),) * 5))
"""Change of ``(x, y)`` by every action."""
GOALS = ((0, 0), (8, 8), (0, 8), (8, 0))
HELPFUL_STOPS, HELPFUL_ENDS = ((4, 5), (5, 4), (3, 4), (4, 3)), ((0, 1), (0, 7), (8, 1), (8, 7))
USELESS_STOPS, USELESS_ENDS = ((5, 5), (3, 3), (3, 5), (5, 3)), ((0, 4), (4, 0), (8, 4), (4, 8))
MAP_CELL = (7, 3)
ORDERS = 24
"""In which four buses can lead to four ends."""
TASKS = ("combination", "distraction", "map", "vanilla")

_STATUS = 4  # nothing, a bus, and two that never occur here
_STEP_REWARD, _GOAL_REWARD = -0.1, 1.0
_FOR_TRAINING: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every11": lambda ids: ids % 11 == 0,
    "paper": lambda ids: ids % (ORDERS + 1) == 0,
    "helpful": lambda ids: ids < ORDERS,
    "swapped": lambda ids: ids % 11 != 0,
}
"""Splits of 576 ids."""
_PHASES = ("train", "test")

Split = Literal["every11", "paper", "helpful", "swapped", "none"]
Phase = Literal["train", "test"]


@dataclasses.dataclass(frozen=True, eq=False)
class City:
    """What is fixed in all trials; from `make`.

    Attributes:
      task: name in `TASKS`.
      obs_sizes: number of values that each component of an observation can take.
      num_ids: number of tasks.
      train_ids: tasks to learn from, integer ``[..]``.
      test_ids: tasks to be measured on, integer ``[..]``.
      goals: where instructions lead to, integer ``[4, 2]``.
      num_actions: of `ACTIONS`.
      horizon: steps after which an episode ends, exploration and execution alike.
      hidden_goal: whether reaching the goal ends an exploration episode, although the explorer is not told of it.
      terminal_limit: whether the time limit counts as an end of the task, whose value is then zero.
    """

    task: str
    obs_sizes: tuple[int, ...]
    num_ids: int
    train_ids: np.ndarray
    test_ids: np.ndarray
    goals: np.ndarray
    num_actions: int = len(ACTIONS)
    horizon: int = 20
    hidden_goal: bool = False
    terminal_limit: bool = True


class CityState(NamedTuple):
    """One episode.

    Attributes:
      position: ``(x, y)`` of the agent, integer ``[2]``.
      step: steps taken, ``[]``.
      task_id: ``[]``.
      goal: integer ``[2]``.
      exploring: whether this is the exploration episode of a trial, boolean ``[]``.
    """

    position: Array
    step: Array
    task_id: Array
    goal: Array
    exploring: Array


def make(
    task: str = "distraction", *, split: Split | None = None, hidden_goal: bool = False, terminal_limit: bool = True
) -> City:
    """Returns a city.

    Four *helpful* buses lead next to the corners, in the order that is number ``id mod 24`` of all, as
    `itertools.permutations` lists them. Buses run both ways. An observation is ``(x, y, status)``, status 1 where a
    bus stands.

    Args:
      task: "vanilla" has these buses and 24 ids. "distraction" adds four *useless* ones, which lead to the middles of
        the sides in the order ``id // 24``, and has 576 ids. "map" is vanilla with a fourth component of observations,
        ``id mod 24 + 1`` on the cell (7, 3) and 0 elsewhere; "combination" is distraction with it.
      split: which of 576 ids are for training: "every11" every eleventh, 53 of them, as released; "paper" 24, as many
        as the paper says, every 25th, which are all orders of either kind once (it does not say which); "helpful" 24
        as well, all orders of helpful buses with one of useless ones, which tell nothing of the task then; "swapped"
        the 523 that are released for testing, so many that only helpful buses tell where these lead; "none" all, for
        training and testing. None is what was released: "every11" of 576 ids, "none" of 24.
      hidden_goal: whether exploration ends at a goal that the explorer does not see, as released.
      terminal_limit: see `City`; True as released, since 20 steps are part of the problem. False leaves it to be
        bootstrapped.

    Raises:
      InputError: an unknown task or split, or a split of 24 ids.

    Source: the distracting bus and map tasks of Liu et al. 2021 (DREAM), as released.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    splits = (*_FOR_TRAINING, "none")
    if split is not None and split not in splits:
        raise unknown("split", split, splits)
    num_ids = len(_rides(_distracting(task)))
    if num_ids == ORDERS and split in _FOR_TRAINING:
        raise InputError(f"split={split!r} is of 576 ids and task={task!r} has {num_ids}: use 'none', as released.")
    ids = np.arange(num_ids)
    chosen = split or ("every11" if num_ids > ORDERS else "none")
    train = np.ones(num_ids, bool) if chosen == "none" else _FOR_TRAINING[chosen](ids)
    return City(
        task=task,
        obs_sizes=(SIZE, SIZE, _STATUS, *((ORDERS + 1,) if _has_map(task) else ())),
        num_ids=num_ids,
        train_ids=ids[train],
        test_ids=ids if chosen == "none" else ids[~train],
        goals=np.array(GOALS),
        hidden_goal=hidden_goal,
        terminal_limit=terminal_limit,
    )


def reset(city: City, task_id: Array | int, goal: Array, *, exploring: Array | bool) -> tuple[CityState, Array]:
    """Starts an episode in the middle of the city.

    Args:
      city: from `make`.
      task_id: below ``city.num_ids``.
      goal: one of ``city.goals``, integer ``[2]``; of an exploration episode it matters only where it is hidden.
      exploring: whether it is the exploration episode.

    Returns:
      The state and the observation, integer ``[3]`` or ``[4]``.

    Raises:
      InputError: a ``task_id`` that does not exist; one that is traced cannot be checked.
    """
    if not isinstance(task_id, jax.core.Tracer) and not 0 <= task_id < city.num_ids:
        raise InputError(f"task_id={task_id} must lie between 0 and {city.num_ids - 1} in task={city.task!r}.")
    state = CityState(
        position=jnp.asarray(START, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        task_id=jnp.asarray(task_id, jnp.int32),
        goal=jnp.asarray(goal, jnp.int32),
        exploring=jnp.asarray(exploring, bool),
    )
    return state, observe(city, state)


def step(city: City, state: CityState, action: Array) -> tuple[CityState, TimeStep]:
    """Takes an action, deterministically.

        r = 1 where the step reaches the goal, -0.1 - 0.1 (steps left) for "end", else -0.1; 0 while exploring

    so that success after ``n`` steps returns ``1 - 0.1 (n - 1)``, and giving up as much as running out of time, -2.

    Args:
      city: from `make`.
      state: of an episode that has not ended.
      action: number of one of `ACTIONS`, integer ``[]``.
    """
    position = _next_position(state.position, action, state.task_id, distracting=_distracting(city.task))
    count = state.step + 1
    after = state._replace(position=position, step=count)
    reached = jnp.all(position == state.goal) & (city.hidden_goal | ~state.exploring)
    ended, late = action == END, count >= city.horizon
    left = jnp.where(ended, city.horizon - count, 0).astype(jnp.float32)
    paid = jnp.where(reached, _GOAL_REWARD, _STEP_REWARD * (1.0 + left))
    return after, TimeStep(
        obs=observe(city, after),
        reward=jnp.where(state.exploring, 0.0, paid).astype(jnp.float32),
        terminated=reached | ended | (late & city.terminal_limit),
        truncated=late,
    )


def move(position: Array, action: Array, task_id: Array) -> Array:
    """The transition of the distraction task and the combination: where an action leads from ``position [2]``."""
    return _next_position(position, action, task_id, distracting=True)


def rides(city: City) -> np.ndarray:
    """Where "ride" leads from every cell in every task, ``[ids, 9, 9, 2]``; where no bus stands, nowhere else."""
    return _rides(_distracting(city.task))


def observe(city: City, state: CityState) -> Array:
    """Returns what the agent sees, ``(x, y, status)``, and what it reads on the map if there is one, integer."""
    x, y = state.position
    status = jnp.asarray(_stands(_distracting(city.task)))[x, y]
    seen = [x, y, status]
    if _has_map(city.task):
        on_map = (x == MAP_CELL[0]) & (y == MAP_CELL[1])
        seen.append(jnp.where(on_map, state.task_id % ORDERS + 1, 0))
    return jnp.stack(seen)


def observations(city: City) -> np.ndarray:
    """Returns every observation that can be made, in whatever task, each once, integer ``[S, C]``.

    Buses stand at the same places in all tasks, so that there are as many as cells, and one more for each note on the
    map.
    """
    cells = np.concatenate([_cells(), _stands(_distracting(city.task))[..., None]], axis=-1).reshape(SIZE * SIZE, 3)
    if not _has_map(city.task):
        return cells
    on_map = np.all(cells[:, :2] == MAP_CELL, axis=1)
    blank = np.pad(cells[~on_map], ((0, 0), (0, 1)))
    notes = [np.append(cells[on_map][0], note) for note in range(1, ORDERS + 1)]
    return np.concatenate([blank, notes])


def sample_task(city: City, key: Key, *, split: Phase) -> tuple[Array, Array]:
    """Draws a task of "train" or "test" and a goal: ``(task_id [], goal [2])``.

    Raises:
      InputError: an unknown ``split``.
    """
    id_key, goal_key = jax.random.split(key)
    task_id = jax.random.choice(id_key, jnp.asarray(_ids(city, split), jnp.int32))
    return task_id, jax.random.choice(goal_key, jnp.asarray(city.goals, jnp.int32))


def released_tasks(city: City, trials: Iterable[int], split: Phase) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the released code plays in each trial, whatever its seed: ids ``[N]`` and goals ``[N, 2]``.

    Trials 0 to 99 of "test" are what it is measured on.

    Args:
      city: from `make`.
      trials: numbers of trials, from 0.
      split: "train" or "test".

    Raises:
      InputError: an unknown ``split``.
    """
    ids, numbers = _ids(city, split), list(trials)
    drawn = [ids[_released_draw(trial, len(ids))] for trial in numbers]
    return np.array(drawn, np.int32), _released_goals(city, (trial + 1 for trial in numbers))


def hidden_goals(city: City, trials: Iterable[int]) -> np.ndarray:
    """Returns the goals at which exploration ends in the released code, ``[N, 2]``; see `City`."""
    return _released_goals(city, (max(trial - 1, 0) for trial in trials))


def _next_position(position: Array, action: Array, task_id: Array, *, distracting: bool) -> Array:
    walked = jnp.clip(position + jnp.asarray(MOVES, jnp.int32)[action], 0, SIZE - 1)
    ridden = jnp.asarray(_rides(distracting))[task_id, position[0], position[1]].astype(jnp.int32)
    return jnp.where(action == RIDE, ridden, walked)


def _distracting(task: str) -> bool:
    return task in ("distraction", "combination")


def _has_map(task: str) -> bool:
    return task in ("map", "combination")


@functools.cache
def _rides(distracting: bool) -> np.ndarray:
    table = _lines(HELPFUL_STOPS, HELPFUL_ENDS)
    if distracting:
        useless = _lines(USELESS_STOPS, USELESS_ENDS)
        # A cell has a bus of one kind at most, so that the changes of place add up.
        table = (table[None] + useless[:, None] - _cells()).reshape(-1, SIZE, SIZE, 2)
    table.setflags(write=False)
    return table


def _lines(stops: tuple[tuple[int, int], ...], ends: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Where four buses lead from every cell, in all orders of their ends, ``[24, 9, 9, 2]``."""
    rides = np.tile(_cells(), (ORDERS, 1, 1, 1))
    for number, order in enumerate(itertools.permutations(ends)):
        for stop, end in zip(stops, order):
            rides[number][stop], rides[number][end] = end, stop
    return rides


def _stands(distracting: bool) -> np.ndarray:
    """1 where a bus stands, in whatever task, else 0, ``[9, 9]``."""
    return np.any(_rides(distracting)[0] != _cells(), axis=-1).astype(np.int32)


def _cells() -> np.ndarray:
    """Every cell's own place, ``[9, 9, 2]``."""
    return np.moveaxis(np.indices((SIZE, SIZE)), 0, -1)


def _ids(city: City, split: Phase) -> np.ndarray:
    if split not in _PHASES:
        raise unknown("split", split, _PHASES)
    return city.train_ids if split == "train" else city.test_ids


def _released_goals(city: City, seeds: Iterable[int]) -> np.ndarray:
    drawn = np.array([_released_draw(seed, len(city.goals)) for seed in seeds], int)
    return city.goals[drawn].astype(np.int32)


def _released_draw(seed: int, count: int) -> int:
    return int(np.random.RandomState(seed).randint(count))
