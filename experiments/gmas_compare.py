"""Finished runs of GMAS on every different held-out maze: returns with intervals, and differences maze by maze.

``python -m experiments gmas_compare CRAR=runs/a "GMAS=runs/b" --out compare.json``: labels and directories of runs of
``python -m experiments gmas`` on the same mazes; the first is the one that the others are compared with. Moves are
greedy. The intervals are over mazes: they say nothing about other seeds of the training.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import rich.table
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, outputs
from jaxhybrid.runtime.statistics import mean_interval


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is compared."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """label=directory, one for each run."""
    depths: tuple[int, ...] = (0, 1, 3)
    """Planning depths."""
    out: str = "gmas_compare.json"
    """File for the return of every maze; an existing one is not touched."""


def main(argv: Sequence[str]) -> int:
    """Plays the mazes; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no finished runs on mazes, a label that is given twice, runs on different mazes, or an ``out`` that
        exists or cannot be written; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments gmas_compare", description=__doc__)
    path = outputs.new_file(arguments.out)
    if not arguments.runs or min(arguments.depths, default=-1) < 0:
        raise InputError(f"runs={arguments.runs} and depths={arguments.depths} must name a run and depths from 0.")
    pairs = [item.partition("=") for item in arguments.runs]
    seen: set[str] = set()
    for (label, _, directory), item in zip(pairs, arguments.runs, strict=True):
        if not (label and directory):
            raise InputError(f"runs={item!r} is not of the form label=directory.")
        if label in seen:
            raise InputError(f"runs={item!r} has a label that is given before: name each run by its own.")
        seen.add(label)
    from experiments._gmas import trained

    agents = {label: trained.load(directory) for label, _, directory in pairs}
    pools = {label: trained.held_out_mazes(agent.config) for label, agent in agents.items()}
    first = next(iter(pools.values()))
    for label, pool in pools.items():
        if pool.walls.shape != first.walls.shape or not all(map(np.array_equal, pool, first)):
            raise InputError(
                f"runs={label!r} was tested in other mazes than {next(iter(pools))!r}: compare like with like."
            )
    returns = {
        label: {str(depth): trained.returns(agent, first, depth).tolist() for depth in arguments.depths}
        for label, agent in agents.items()
    }
    facts = {"mazes": len(first.walls), "oracle": trained.oracle(first).tolist(), "returns": returns}
    path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    _print(facts)
    console.say(f"results in {path}")
    return 0


def _print(facts: dict[str, Any]) -> None:
    base = next(iter(facts["returns"]))
    table = rich.table.Table(title=f"{facts['mazes']} held-out mazes: mean return, 95 % t interval over mazes")
    for heading in ("run", "planning depth", "return", f"difference to {base}"):
        table.add_column(heading, justify="right")
    table.add_row("oracle", "", _said(facts["oracle"]), "")
    for label, depths in facts["returns"].items():
        for depth, values in depths.items():
            other = np.array(values) - np.array(facts["returns"][base][depth])
            table.add_row(label, depth, _said(values), "" if label == base else _said(other))
    console.CONSOLE.print(table)


def _said(values: Sequence[float] | np.ndarray) -> str:
    mean, low, high = (float(x[0]) for x in mean_interval(np.array([values])))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
