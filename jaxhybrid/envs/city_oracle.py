"""What the city is worth, by enumeration: to who knows the task, who walks, who learns on the way, who guesses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxhybrid.envs import city as _city
from jaxhybrid.envs.city import END, MAP_CELL, MOVES, ORDERS, RIDE, SIZE, START, City
from jaxhybrid.errors import InputError

__all__ = [
    "Exploration",
    "bayes_return",
    "best_returns",
    "exploration_steps",
    "informative_actions",
    "random_policy",
    "returns_after",
    "shortest_exploration",
    "steps_to_goals",
]

_CELLS = SIZE * SIZE
_START = START[0] * SIZE + START[1]


class Exploration(NamedTuple):
    """A plan that rides buses, or reads the map, until it is known where the helpful buses lead.

    Attributes:
      steps: it takes, in the mean over the tasks that it is made for.
      concluded: where the helpful buses lead, as a number below 24, after following the plan in every task; -1 where
        it sees what it would see in none of those that it is made for, integer ``[ids]``.
    """

    steps: float
    concluded: np.ndarray


class _Question(NamedTuple):
    """A way to tell some tasks apart.

    Attributes:
      place: cell of the bus, or of the map.
      riding: whether it is a bus.
      steps: until the answer is seen.
      answers: in every task, ``[N]``.
      cells: where it is seen, ``[N]``.
    """

    place: int
    riding: bool
    steps: int
    answers: np.ndarray
    cells: np.ndarray


def steps_to_goals(city: City, *, riding: bool = True) -> np.ndarray:
    """Fewest steps from every cell to every goal in every task, integer ``[ids, 4, 9, 9]``.

    ``d(x) = 0`` at the goal, else ``1 + min d(next)``, repeated until it holds everywhere.

    Args:
      city: from `city.make`.
      riding: whether buses may be used.
    """
    far = city.horizon + 1
    steps = np.full((city.num_ids, len(city.goals), _CELLS), far)
    for number, (x, y) in enumerate(city.goals):
        steps[:, number, x * SIZE + y] = 0
    following = _following(city)[..., : END if riding else RIDE]
    for _ in range(far):
        ahead = np.take_along_axis(steps[..., None], following[:, None], axis=2).min(axis=-1)
        steps = np.minimum(steps, 1 + ahead)
    return steps.reshape(*steps.shape[:2], SIZE, SIZE)


def returns_after(city: City, steps: np.ndarray) -> np.ndarray:
    """Undiscounted returns of reaching the goal in so many steps; -2 for more than there are."""
    return np.where(steps <= city.horizon, 1.0 - 0.1 * (steps - 1.0), -0.1 * city.horizon)


def best_returns(city: City, *, riding: bool = True) -> np.ndarray:
    """Returns of who knows the task, ``[ids, 4]`` for every goal; with ``riding=False`` those of walking."""
    return returns_after(city, steps_to_goals(city, riding=riding)[..., START[0], START[1]])


def bayes_return(city: City, goal: int, *, ids: np.ndarray | None = None) -> float:
    """The best mean return of an execution episode without exploration, which may learn the task on the way.

    With the set ``b`` of tasks that are still possible, the mean number of steps is

        J(b, x) = min(d_b(x, goal), min_y d_b(x, y) + E[1 + J(b', x') | b]),

    where ``d_b`` counts steps over what all tasks of ``b`` agree on, ``y`` is a bus on which they do not and ``b'``
    the tasks with the same outcome; the map is such a place whose reading takes no step. A branch is left out where
    even the mean over tasks that are known, which bounds ``J`` from below, is no gain.

    Exact when: no outcome of the best plan takes longer than an episode, which is checked.

    Args:
      city: from `city.make`.
      goal: number of the goal.
      ids: tasks that are equally likely; None for all.

    Raises:
      InputError: no such goal or task, or tasks of which the best plan may be late.
    """
    if not 0 <= goal < len(city.goals):
        raise InputError(f"goal={goal} must lie between 0 and {len(city.goals) - 1}.")
    chosen, following, notes = _tasks(city, ids), _following(city), _notes(city)
    known = steps_to_goals(city)[:, goal].reshape(-1, _CELLS)
    target = int(city.goals[goal] @ np.array([SIZE, 1]))
    plans: dict[tuple[bytes, int], tuple[float, int]] = {}

    def plan(tasks: np.ndarray, cell: int) -> tuple[float, int]:
        """Mean and largest number of steps from ``cell``."""
        if (tasks.tobytes(), cell) not in plans:
            steps = _agreed_steps(following[tasks], cell)
            best = float(steps[target]), int(steps[target])

            def bound(question: _Question) -> float:
                return question.steps + float(np.mean(known[tasks, question.cells]))

            for question in sorted(_questions(following[tasks], notes[tasks], steps), key=bound):
                if bound(question) > best[0] - 1e-9:
                    break
                best = min(best, _asked(question, tasks, plan))
            plans[tasks.tobytes(), cell] = best
        return plans[tasks.tobytes(), cell]

    mean, longest = plan(chosen, _START)
    if longest > city.horizon:
        raise InputError(
            f"ids={ids} may take {longest} steps of {city.horizon}: the return of the best plan is unknown."
        )
    return float(1.0 - 0.1 * (mean - 1.0))


def random_policy(city: City) -> tuple[float, float]:
    """Mean length and return of an execution episode of uniformly random actions, over all tasks and goals."""
    following = _following(city)
    chance = 1.0 / city.num_actions
    move = np.zeros((city.num_ids, _CELLS, _CELLS))
    rows, cells = np.indices((city.num_ids, _CELLS))
    for action in range(city.num_actions):
        if action != END:
            np.add.at(move, (rows, cells, following[..., action]), chance)
    goals = city.goals[:, 0] * SIZE + city.goals[:, 1]
    here = np.zeros((city.num_ids, len(goals), _CELLS))
    here[..., _START] = 1.0
    length = total = 0.0
    for taken in range(1, city.horizon + 1):
        alive = here.sum(axis=-1).mean()
        here = here @ move
        arrived = here[:, range(len(goals)), goals].mean()
        here[:, range(len(goals)), goals] = 0.0
        # Giving up and being late both return -2 in all.
        ended = alive - arrived if taken == city.horizon else alive * chance
        length += taken * (arrived + ended)
        total += returns_after(city, np.array(taken)) * arrived - 0.1 * city.horizon * ended
    return float(length), float(total)


def exploration_steps(city: City) -> np.ndarray:
    """Fewest steps after which an explorer knows where the helpful buses lead, ``[ids]``; "end" takes one more.

    It has ridden three of the four, or read the map.
    """
    rides = _following(city)[..., RIDE]
    lines = _helpful_lines(rides)
    rows = np.arange(city.num_ids)[:, None]
    walks = _following(city)[0, :, :RIDE]
    reached = np.zeros((city.num_ids, 16, _CELLS), bool)  # by the set of helpful buses that were ridden
    reached[:, 0, _START] = True
    needed = np.zeros(city.num_ids, int)
    enough = [number for number in range(16) if number.bit_count() >= 3]
    for taken in range(city.horizon + 1):
        known = reached[:, enough].any(axis=(1, 2))
        if len(city.obs_sizes) == 4:
            known |= reached[:, :, MAP_CELL[0] * SIZE + MAP_CELL[1]].any(axis=1)
        needed = np.where(known & (needed == 0), taken, needed)
        nearby = np.zeros_like(reached)
        for action in range(RIDE):
            for cell, target in enumerate(walks[:, action]):
                nearby[:, :, target] |= reached[:, :, cell]
        for ridden in range(16):
            sets = ridden | np.where(lines >= 0, 1 << np.maximum(lines, 0), 0)  # [ids, cells]
            # A bus runs both ways, so that no two cells lead to the same one.
            nearby[rows, sets, rides] |= reached[:, ridden]
        reached = nearby
    return needed


def shortest_exploration(city: City, *, ids: np.ndarray | None = None) -> Exploration:
    """The shortest exploration, in the mean, after which it is known where the helpful buses of some tasks lead.

    With the set ``b`` of tasks that are still possible, the mean number of steps is ``J(b, x) = 0`` where their helpful
    buses lead to the same places and else ``min_y d_b(x, y) + E[J(b', x') | b]``, in the words of `bayes_return`.

    Of all tasks only rides on helpful buses tell where they lead. Of a few tasks the useless ones tell it as well, and
    some of them are nearer: then the plan is shorter, and concludes the wrong thing in other tasks.

    Args:
      city: from `city.make`.
      ids: tasks that are equally likely; None for all.

    Raises:
      InputError: a task that there is not, or none.
    """
    chosen, following, notes = _tasks(city, ids), _following(city), _notes(city)
    orders = np.arange(city.num_ids) % ORDERS
    plans: dict[tuple[bytes, int], tuple[float, int, _Question | None]] = {}

    def plan(tasks: np.ndarray, cell: int) -> tuple[float, int, _Question | None]:
        """Mean and largest number of steps from ``cell``, and what to ask."""
        if (tasks.tobytes(), cell) not in plans:
            best: tuple[float, int, _Question | None] = (0.0, 0, None)
            if len(np.unique(orders[tasks])) > 1:
                best = (math.inf, 0, None)
                steps = _agreed_steps(following[tasks], cell)
                for question in sorted(_questions(following[tasks], notes[tasks], steps), key=lambda each: each.steps):
                    if question.steps > best[0] - 1e-9:
                        break
                    mean, longest = _asked(question, tasks, lambda *left: plan(*left)[:2])
                    if mean < best[0] - 1e-9:
                        best = (mean, longest, question)
            plans[tasks.tobytes(), cell] = best
        return plans[tasks.tobytes(), cell]

    def concluded(task: int) -> int:
        tasks, cell = chosen, _START
        while (question := plan(tasks, cell)[2]) is not None:
            answer = following[task, question.place, RIDE] if question.riding else notes[task, question.place]
            same = question.answers == answer
            if not same.any():
                return -1
            tasks, cell = tasks[same], int(question.cells[same][0])
        return int(orders[tasks[0]])

    return Exploration(plan(chosen, _START)[0], np.array([concluded(task) for task in range(city.num_ids)]))


def informative_actions(city: City) -> np.ndarray:
    """Where what an action shows depends on the task, boolean ``[9, 9, A]``: rides, and steps onto the map."""
    following = _following(city)
    seen = following * (city.num_ids + 1) + _notes(city)[np.arange(city.num_ids)[:, None, None], following]
    return np.any(seen != seen[:1], axis=0).reshape(SIZE, SIZE, -1)


def _tasks(city: City, ids: np.ndarray | None) -> np.ndarray:
    chosen = np.arange(city.num_ids) if ids is None else np.unique(ids)
    if not (len(chosen) and chosen[0] >= 0 and chosen[-1] < city.num_ids):
        raise InputError(f"ids={ids} must name at least one task between 0 and {city.num_ids - 1}.")
    return chosen


def _questions(following: np.ndarray, notes: np.ndarray, steps: np.ndarray) -> list[_Question]:
    """What tells tasks ``[N, ...]`` apart, ``steps [81]`` away."""
    found = []
    for riding, answers in ((True, following[:, :, RIDE]), (False, notes)):
        for place in np.flatnonzero((answers != answers[:1]).any(axis=0)):
            cells = answers[:, place] if riding else np.full(len(answers), place)
            found.append(_Question(int(place), riding, int(steps[place]) + riding, answers[:, place], cells))
    return found


def _asked(
    question: _Question, tasks: np.ndarray, plan: Callable[[np.ndarray, int], tuple[float, int]]
) -> tuple[float, int]:
    """Mean and largest number of steps of asking a question and then following a plan for what is left."""
    parts = [question.answers == each for each in np.unique(question.answers)]
    found = [plan(tasks[part], int(question.cells[part][0])) for part in parts]
    mean = sum(np.sum(part) * each[0] for part, each in zip(parts, found)) / len(tasks)
    return question.steps + float(mean), question.steps + max(each[1] for each in found)


def _following(city: City) -> np.ndarray:
    """Cell that every action leads to from every cell in every task, ``[ids, 81, A]``."""
    cells = np.moveaxis(np.indices((SIZE, SIZE)), 0, -1)
    walked = np.clip(cells[:, :, None] + np.array(MOVES), 0, SIZE - 1)
    places = np.tile(walked, (city.num_ids, 1, 1, 1, 1))
    places[:, :, :, RIDE] = _city.rides(city)
    return (places @ np.array([SIZE, 1])).reshape(city.num_ids, _CELLS, city.num_actions)


def _agreed_steps(following: np.ndarray, cell: int) -> np.ndarray:
    """Fewest steps from ``cell`` to every other, over rides on which all tasks ``[N, 81, A]`` agree, ``[81]``."""
    agreed = (following[..., RIDE] == following[:1, :, RIDE]).all(axis=0)
    ways = following[0, :, : RIDE + 1].copy()
    ways[~agreed, RIDE] = np.flatnonzero(~agreed)
    # Every way can be gone back, so that the steps to a cell are those from it.
    steps = np.where(np.arange(_CELLS) == cell, 0, _CELLS)
    nearer = np.minimum(steps, 1 + steps[ways].min(axis=1))
    while (nearer != steps).any():
        steps, nearer = nearer, np.minimum(nearer, 1 + nearer[ways].min(axis=1))
    return steps


def _notes(city: City) -> np.ndarray:
    """What stands on the map in every cell and task, ``[ids, 81]``; 0 where there is none."""
    notes = np.zeros((city.num_ids, _CELLS), int)
    if len(city.obs_sizes) == 4:
        notes[:, MAP_CELL[0] * SIZE + MAP_CELL[1]] = 1 + np.arange(city.num_ids) % (city.obs_sizes[3] - 1)
    return notes


def _helpful_lines(rides: np.ndarray) -> np.ndarray:
    """Number of the helpful bus that stands in every cell, -1 for none, ``[ids, 81]``."""
    lines = np.full(rides.shape, -1)
    for number, (x, y) in enumerate(_city.HELPFUL_STOPS):
        stop = x * SIZE + y
        lines[:, stop] = number
        lines[np.arange(len(rides)), rides[:, stop]] = number
    return lines
