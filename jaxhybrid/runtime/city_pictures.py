"""One trial in the city as pictures: where the buses lead, the way of the agent, and what it was told to do."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import drawings

__all__ = ["frames", "png", "sheet"]

_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7")  # of the helpful buses
_GREY, _INK, _AGENT, _GOAL = "#BBBBBB", "#333333", "#D55E00", "#F0E442"
_WIDTH, _HEIGHT = 330, 372


class _Moment(NamedTuple):
    """One picture: what is written above it, the way so far ``[.., 2]``, and the goal if it is known."""

    title: str
    way: np.ndarray
    goal: np.ndarray | None


def frames(
    town: City, task_id: int, goal: Sequence[int], *, exploration: Sequence[int], execution: Sequence[int]
) -> list[np.ndarray]:
    """Draws a trial that is replayed from its actions: both episodes, before every step and after the last.

    Helpful buses are coloured lines from stop to end, useless ones grey; the map is an M and the goal a yellow cell,
    which the explorer does not see.

    Args:
      town: from `envs.city.make`.
      task_id: number of the task.
      goal: the instruction, one of ``town.goals``.
      exploration: actions of the first episode; what follows its end is left out.
      execution: actions of the second.

    Returns:
      Pictures, uint8 ``[H, W, 3]``, for `sheet` or `films.gif`.

    Raises:
      InputError: an unknown task or goal, or an action that does not exist.
    """
    if not any(tuple(goal) == tuple(each) for each in town.goals.tolist()):
        raise InputError(f"goal={tuple(goal)} is none of {[tuple(each) for each in town.goals.tolist()]}.")
    moments = [
        *_episode(town, task_id, goal, exploration, exploring=True),
        *_episode(town, task_id, goal, execution, exploring=False),
    ]

    def begin(axes: Any) -> Callable[[int], None]:
        _background(axes, town, task_id)
        title = axes.text(4.0, 8.95, "", ha="center", va="center", fontsize=10, color=_INK)
        (aim,) = axes.plot([], [], "s", color=_GOAL, markersize=22, zorder=0)
        (way,) = axes.plot([], [], color=_AGENT, linewidth=2.5, alpha=0.8, zorder=4)
        (agent,) = axes.plot([], [], "o", color=_AGENT, markersize=11, zorder=5)

        def show(t: int) -> None:
            moment = moments[t]
            title.set_text(moment.title)
            aim.set_data(*([], []) if moment.goal is None else moment.goal[:, None])
            way.set_data(*moment.way.T)
            agent.set_data(*moment.way[-1:].T)

        return show

    return drawings.drawn(len(moments), begin, _WIDTH, _HEIGHT)


def sheet(pictures: Sequence[np.ndarray], *, columns: int = 6) -> np.ndarray:
    """Returns all pictures on one, row by row; places that are left over are white.

    Raises:
      InputError: no picture, or fewer than one column.
    """
    if not pictures or columns < 1:
        raise InputError(f"{len(pictures)} pictures in columns={columns}: at least one of each is needed.")
    rows = math.ceil(len(pictures) / columns)
    height, width, _ = pictures[0].shape
    page = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        page[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture
    return page


def png(picture: np.ndarray) -> bytes:
    """Returns a picture ``[H, W, 3]`` as the content of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _episode(
    town: City, task_id: int, goal: Sequence[int], actions: Sequence[int], *, exploring: bool
) -> list[_Moment]:
    """The moments of an episode, up to its end."""
    for action in actions:
        if not 0 <= action < town.num_actions:
            raise InputError(f"action={action} must lie between 0 and {town.num_actions - 1}.")
    start, _ = city.reset(town, task_id, jnp.asarray(goal), exploring=exploring)
    after = jax.jit(lambda a: jax.lax.scan(partial(city.step, town), start, a)[1])(jnp.asarray(actions, jnp.int32))
    ends = np.flatnonzero(np.asarray(after.terminated | after.truncated))
    count = int(ends[0]) + 1 if len(ends) else len(actions)
    way = np.concatenate([np.asarray(start.position)[None], np.asarray(after.obs)[:count, :2]])
    returns = np.concatenate([np.zeros(1), np.cumsum(np.asarray(after.reward)[:count])])
    moments = []
    for t in range(count + 1):
        done = f"{t}: {city.ACTIONS[actions[t - 1]]}" if t else "start"
        told = f"explore   {done}" if exploring else f"go to {tuple(goal)}   {done}   return {returns[t]:.1f}"
        moments.append(_Moment(told, way[: t + 1], None if exploring else np.asarray(goal)))
    return moments


def _background(axes: Any, town: City, task_id: int) -> None:
    """The cells, the lines of the buses of a task, and the map."""
    axes.set(xlim=(-0.6, 8.6), ylim=(-0.6, 9.4))
    for edge in np.arange(-0.5, city.SIZE):
        axes.plot([edge, edge], [-0.5, 8.5], color=_GREY, linewidth=0.4, zorder=1)
        axes.plot([-0.5, 8.5], [edge, edge], color=_GREY, linewidth=0.4, zorder=1)
    rides = city.rides(town)[task_id]
    stops = [*zip(city.HELPFUL_STOPS, _COLOURS), *((stop, _GREY) for stop in city.USELESS_STOPS)]
    for stop, colour in stops:
        end = rides[stop]
        if tuple(end) != stop:
            axes.plot(*np.stack([stop, end]).T, "s-", color=colour, linewidth=1.2, markersize=9, zorder=2, alpha=0.7)
    if town.task in ("map", "combination"):
        axes.text(*city.MAP_CELL, "M", ha="center", va="center", fontsize=12, weight="bold", color=_INK, zorder=3)
