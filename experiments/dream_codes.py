"""What the codes of tasks tell apart, and which task an exploration is taken for, on tasks of training and on new ones.

``python -m experiments dream_codes runs/a runs/b`` reads finished runs of ``python -m experiments dream``. The explorer
is paid for what is decoded of a code. Of a code that differs between two tasks whose *helpful* buses are the same, that
part pays as well, although it is of no use to who executes an instruction. An exploration is right about a task if what
is decoded lies nearest to the code of a task of training with the same helpful buses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments._dream import finished
from experiments._dream.finished import codes_of
from jaxhybrid.runtime import cli

__all__ = ["Explored", "Spread", "explored", "helpful_rides", "main", "nearest", "spread"]


class Spread(NamedTuple):
    """Mean squared lengths, over the tasks of training.

    Attributes:
      length: of the codes.
      total: of their distances from the mean of all.
      same_helpful: of those from the mean of the tasks with the same helpful buses.
      same_useless: the same of the useless buses.
    """

    length: float
    total: float
    same_helpful: float
    same_useless: float


class Explored(NamedTuple):
    """What the agents make of every task with every goal, ``[ids, goals]`` each.

    Attributes:
      steps: of exploration.
      three: whether it rides three helpful buses, or four.
      right: whether what is decoded is right about the task; see above.
      returns: of execution.
    """

    steps: np.ndarray
    three: np.ndarray
    right: np.ndarray
    returns: np.ndarray


def main(argv: Sequence[str]) -> int:
    """Prints two tables, and writes them if that is asked for; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run is named, one that is not finished, one without codes of tasks, or a file that exists.
    """
    arguments = finished.named(argv, study="dream_codes", description=__doc__)
    codes: list[finished.Row] = []
    tasks: list[finished.Row] = []
    for run in arguments.runs:
        for seed, parts, params in finished.read(run):
            ids = parts.town.train_ids
            lengths = spread(codes_of(parts, params, ids), ids)
            names = ("length", "from the mean", "same helpful buses", "same useless buses")
            codes.append({"run": run, "seed": seed} | dict(zip(names, lengths, strict=True)))
            found = explored(parts, params)
            new = np.setdiff1d(np.arange(parts.town.num_ids), ids)
            for label, chosen in (("of training", ids), ("new", new)):
                if chosen.size:
                    row = {"run": run, "seed": seed, "tasks": f"{chosen.size} {label}"}
                    tasks.append(row | _summary(found, chosen))
    tables = {
        "Codes of the tasks of training: mean squared length, and distance from the mean": codes,
        "Explorations of all tasks without random actions, and returns of what follows": tasks,
    }
    finished.show(tables, arguments)
    return 0


def spread(codes: np.ndarray, ids: np.ndarray) -> Spread:
    """Returns how far apart codes ``[N, X]`` of tasks ``ids [N]`` are; see `envs.city.make` for their numbers."""
    from jaxhybrid.envs.city import ORDERS

    parts = (_within(codes, groups) for groups in (np.zeros_like(ids), ids % ORDERS, ids // ORDERS))
    return Spread(float(np.mean(np.sum(codes**2, axis=1))), *parts)


def explored(parts: Any, params: Any) -> Explored:
    """Plays every task with every goal, without random actions and by what is explored.

    Args:
      parts: of the system, from `systems.dream_parts`.
      params: of the agents, by name.
    """
    import jax
    import jax.numpy as jnp

    from jaxhybrid.envs.city import ORDERS
    from jaxhybrid.systems import dream_trials

    town = parts.town
    ids, goals = np.repeat(np.arange(town.num_ids), len(town.goals)), np.tile(town.goals, (town.num_ids, 1))

    @jax.jit
    def play(task_id: Any, goal: Any) -> Any:
        # Where an unknown goal ends explorations, it is that of the instruction.
        task = dream_trials.Task(task_id, goal, goal, jnp.zeros((), bool))
        trial = dream_trials.play(parts, params, task, jax.random.key(0), epsilon=(0.0, 0.0))
        code = dream_trials.code_of(parts, params, trial.exploration)
        three = helpful_rides(trial.exploration.obs, trial.exploration.action) >= 3
        return trial.exploration.lengths, three, code, jnp.sum(trial.execution.reward)

    steps, three, decoded, returns = map(np.asarray, jax.vmap(play)(jnp.asarray(ids), jnp.asarray(goals)))
    taken_for = nearest(decoded, codes_of(parts, params, town.train_ids), town.train_ids)
    each = (steps, three, taken_for % ORDERS == ids % ORDERS, returns)
    return Explored(*(x.reshape(town.num_ids, -1) for x in each))


def helpful_rides(obs: Any, action: Any) -> Any:
    """Returns how many different helpful buses an episode rides, ``[]``, from ``obs [T+1, C]`` and ``action [T]``."""
    import jax.numpy as jnp

    from jaxhybrid.envs.city import HELPFUL_STOPS, RIDE

    at_stop = jnp.all(obs[:, None, :2] == jnp.array(HELPFUL_STOPS)[None], axis=-1)
    ridden = (at_stop[:-1] | at_stop[1:]) & (action == RIDE)[:, None]  # it starts or ends there
    return jnp.sum(jnp.any(ridden, axis=0))


def nearest(codes: np.ndarray, known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns which of the tasks ``ids [K]`` has the nearest code, of ``known [K, X]``, to each of ``codes [N, X]``."""
    from scipy.spatial.distance import cdist

    return ids[np.argmin(cdist(codes, known), axis=1)]


def _summary(found: Explored, chosen: np.ndarray) -> finished.Row:
    steps, three, right, returns = (x[chosen] for x in found)

    def mean(x: np.ndarray) -> float | None:
        return float(x.mean()) if x.size else None

    means = {"steps": steps, "ride three": three, "right": right, "return": returns}
    means |= {"where right": returns[right], "where wrong": returns[~right]}
    return {name: mean(x) for name, x in means.items()}


def _within(codes: np.ndarray, groups: np.ndarray) -> float:
    means = {group: codes[groups == group].mean(axis=0) for group in np.unique(groups)}
    return float(np.mean(np.sum((codes - np.stack([means[group] for group in groups])) ** 2, axis=1)))


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
