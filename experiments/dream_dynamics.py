"""What the model of a run knows of the city: where steps and rides lead, in tasks of training and in new ones.

``python -m experiments dream_dynamics runs/a runs/b`` reads finished runs of ``python -m experiments dream`` with a
shared representation. While it learns, a model is measured on the steps that were executed, few of which depend on the
task. Here it predicts all: of every task, four walks from every cell and a ride on every bus. A prediction is right if
of all states that can be seen the one that follows is embedded nearest to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments._dream import finished
from experiments._dream.finished import codes_of
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli

__all__ = ["KINDS", "Predicted", "explored_codes", "main", "predicted"]

KINDS = ("walks", "helpful buses", "useless buses")


class Predicted(NamedTuple):
    """How well a model predicts, by task and by `KINDS`; not a number where a task has none, ``[N, 3]`` each.

    Attributes:
      error: mean squared error of a number of the embedding.
      right: share of predictions that are right; see above.
    """

    error: np.ndarray
    right: np.ndarray


def main(argv: Sequence[str]) -> int:
    """Prints a table, and writes it if that is asked for; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run is named, one that is not finished, one without a model that is told the task, or a file that
        exists.
    """
    arguments = finished.named(argv, study="dream_dynamics", description=__doc__)
    rows: list[finished.Row] = []
    for run in arguments.runs:
        for seed, parts, params in finished.read(run):
            if parts.models.latent is None:
                raise InputError(f"run={run!r} has no model that is told the task: name one with shared=True.")
            known, every = parts.town.train_ids, np.arange(parts.town.num_ids)
            new = np.setdiff1d(every, known)
            told = predicted(parts, params, known, codes_of(parts, params, known))
            read = predicted(parts, params, every, explored_codes(parts, params))
            for label, what, ids, found in (
                ("of training", "code", known, told),
                ("of training", "exploration", known, Predicted(*(x[known] for x in read))),
                ("new", "exploration", new, Predicted(*(x[new] for x in read))),
            ):
                if ids.size:
                    row = {"run": run, "seed": seed, "tasks": f"{ids.size} {label}", "told": what}
                    rows.append(row | _means(found))
    title = "Share of its predictions that are right, and their mean squared error, by what the model is told"
    finished.show({title: rows}, arguments)
    return 0


def explored_codes(parts: Any, params: Any) -> np.ndarray:
    """Returns what is decoded of an exploration of every task, without random actions, ``[ids, CODE]``."""
    import jax
    import jax.numpy as jnp

    from jaxhybrid.systems import dream_trials

    goal = jnp.asarray(parts.town.goals[0])  # which the explorer is not told

    @jax.jit
    def play(task_id: Any) -> Any:
        task = dream_trials.Task(task_id, goal, goal, jnp.zeros((), bool))
        trial = dream_trials.play(parts, params, task, jax.random.key(0), epsilon=(0.0, 0.0))
        return dream_trials.code_of(parts, params, trial.exploration)

    return np.asarray(jax.vmap(play)(jnp.arange(parts.town.num_ids)))


def predicted(parts: Any, params: Any, ids: np.ndarray, codes: np.ndarray) -> Predicted:
    """Returns how well the model predicts what happens in tasks, of each of which it is told a code.

    Args:
      parts: of the system, from `systems.dream_parts`; it has a latent model.
      params: of the agents, by name.
      ids: of the tasks, integer ``[N]``.
      codes: ``[N, CODE]``.
    """
    import jax
    import jax.numpy as jnp

    from jaxhybrid.envs import city

    town, knows = parts.town, params["execution"]
    states = jnp.asarray(city.observations(town))
    embed = jax.vmap(lambda obs: parts.nets.execution.embed(knows["policy"], obs))
    table = embed(states)
    cell, action, kind = _steps()

    @jax.jit
    def one(inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        task_id, code = inputs

        def taken(cell: Any, action: Any) -> tuple[Any, Any]:
            start, _ = city.reset(town, task_id, town.goals[0], exploring=True)
            before = start._replace(position=cell)
            return city.observe(town, before), city.step(town, before, action)[1].obs

        obs, next_obs = jax.vmap(taken)(cell, action)
        dynamics = parts.models.latent.dynamics.apply
        found = jax.vmap(lambda x, a: dynamics(knows["latent"]["dynamics"], x, a, code))(embed(obs), action)
        nearest = states[jnp.argmin(jnp.sum(jnp.square(found[:, None] - table[None]), axis=-1), axis=1)]
        return jnp.mean(jnp.square(found - embed(next_obs)), axis=-1), jnp.all(nearest == next_obs, axis=-1)

    error, right = map(np.asarray, jax.lax.map(one, (jnp.asarray(ids), jnp.asarray(codes))))
    led = _leads(town, ids, cell, action)
    there = np.stack([(kind == i) & (led | (i == 0)) for i in range(len(KINDS))], axis=-1)
    count = there.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return Predicted(*((each[..., None] * there).sum(axis=1) / count for each in (error, right)))


def _steps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells ``[K, 2]``, actions ``[K]`` and which of `KINDS` they are: all walks, and rides where a bus may stand."""
    from jaxhybrid.envs import city

    cells = np.moveaxis(np.indices((city.SIZE, city.SIZE)), 0, -1).reshape(-1, 2)
    walks = [(cell, action, 0) for cell in cells for action in range(4)]
    helpful, useless = city.HELPFUL_STOPS + city.HELPFUL_ENDS, city.USELESS_STOPS + city.USELESS_ENDS
    rides = [(cell, city.RIDE, kind) for kind, stands in ((1, helpful), (2, useless)) for cell in stands]
    cell, action, kind = zip(*walks, *rides, strict=True)
    return np.array(cell), np.array(action), np.array(kind)


def _leads(town: Any, ids: np.ndarray, cell: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Whether steps are rides on a bus that is there, ``[N, K]``."""
    from jaxhybrid.envs import city

    after = city.rides(town)[ids][:, cell[:, 0], cell[:, 1]]
    return (action == city.RIDE) & np.any(after != cell, axis=-1)


def _means(found: Predicted) -> finished.Row:
    means = {"right": found.right.mean(axis=0), "error": found.error.mean(axis=0)}
    return {
        f"{kind}, {what}": None if np.isnan(each[i]) else float(each[i])
        for i, kind in enumerate(KINDS)
        for what, each in means.items()
    }


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
