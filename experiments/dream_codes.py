"""What the codes of tasks tell apart: how long they are, and how far apart those of tasks with the same buses.

``python -m experiments dream_codes runs/a runs/b`` reads finished runs of ``python -m experiments dream``. The explorer
is paid for what is decoded of a code. Of a code that differs between two tasks whose *helpful* buses are the same, that
part pays as well, although it is of no use to who executes an instruction.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import rich.console
import rich.table
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli

__all__ = ["Spread", "main", "spread"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is read."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of finished runs."""


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


def main(argv: Sequence[str]) -> int:
    """Prints a table; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run is named, one that is not finished, or one without codes of tasks.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments dream_codes", description=__doc__)
    if not arguments.runs:
        raise InputError("runs is empty: name at least one.")
    table = rich.table.Table(title="Codes of the tasks of training: mean squared length, and distance from the mean")
    table.add_column("run", overflow="fold")
    for name in ("seed", "length", "from the mean", "same helpful buses", "same useless buses"):
        table.add_column(name, justify="right")
    for run in arguments.runs:
        for seed, codes, ids in _codes(run):
            table.add_row(run, str(seed), *(f"{value:.2f}" for value in spread(codes, ids)))
    rich.console.Console(width=120).print(table)
    return 0


def spread(codes: np.ndarray, ids: np.ndarray) -> Spread:
    """Returns how far apart codes ``[N, X]`` of tasks ``ids [N]`` are; see `envs.city.make` for their numbers."""
    from jaxhybrid.envs.city import ORDERS

    parts = (_within(codes, groups) for groups in (np.zeros_like(ids), ids % ORDERS, ids // ORDERS))
    return Spread(float(np.mean(np.sum(codes**2, axis=1))), *parts)


def _within(codes: np.ndarray, groups: np.ndarray) -> float:
    means = {group: codes[groups == group].mean(axis=0) for group in np.unique(groups)}
    return float(np.mean(np.sum((codes - np.stack([means[group] for group in groups])) ** 2, axis=1)))


def _codes(run: str) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Seeds of a run, with the codes of the tasks of training and their numbers."""
    from jaxhybrid.envs import city
    from jaxhybrid.runtime import policies, settings
    from jaxhybrid.systems import dream_parts

    saved = policies.of_run(run)
    _, config = settings.rebuilt({"study": saved.study, "env": saved.spec["name"], "config": saved.config})
    if saved.study != "dream" or config.method != "dream":
        raise InputError(f"run={run!r} has no codes of tasks: name a run of python -m experiments dream.")
    town = city.make(saved.spec["name"].removeprefix("city/"), split=config.split)
    problem = dream_parts.make_parts(config, town).nets.problem
    each = [(seed, policies.of_seed(saved, seed).params) for seed in saved.seeds]
    return [
        (seed, np.asarray(problem.apply(params["execution"]["problem"], town.train_ids)), town.train_ids)
        for seed, params in each
    ]


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
