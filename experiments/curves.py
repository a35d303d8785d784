"""Learning curves of several runs in one figure, with the return of random actions as reference.

``python -m experiments curves maac=runs/a,runs/b sac=runs/c --out curves.png``: a label and the directories of runs
that differ in the seed; several seeds, of one run or of several, get a band. Prints the final means.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, plots, records


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is drawn."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """label=directory[,directory ...], one for each curve."""
    out: str = "curves.png"
    """File to write; an existing one is not touched."""
    metric: str = "eval/return"
    """Which metric."""


def main(argv: Sequence[str]) -> int:
    """Draws the figure; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: a run that is none, runs on different environments, or a file that exists; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments curves", description=__doc__)
    pairs = [item.partition("=") for item in arguments.runs]
    for label, equals, directory in pairs:
        if not (label and equals and directory):
            raise InputError(f"runs={label!r} is not of the form label=directory.")
    if Path(arguments.out).exists():
        raise InputError(f"out={arguments.out!r} exists: name another file.")
    runs = {label: [Path(item).expanduser() for item in listed.split(",")] for label, _, listed in pairs}
    envs = {records.identity(directory).get("env") for directories in runs.values() for directory in directories}
    if len(envs) != 1:
        raise InputError(f"runs are on different environments, {sorted(map(str, envs))}: draw one figure for each.")
    explored = [row for directories in runs.values() for directory in directories for row in records.read(directory)]
    plots.learning_curves(
        runs, arguments.out, metric=arguments.metric, title=str(envs.pop()), reference=_random(explored)
    )
    for label, directories in runs.items():
        ends = [[row for row in records.read(d) if arguments.metric in row][-1] for d in directories]
        last = np.concatenate([np.atleast_1d(row[arguments.metric]) for row in ends])
        seeds = ", ".join(f"{value:,.1f}" for value in last)
        console.say(f"{label}: final {arguments.metric} {np.mean(last):,.1f} (seeds: {seeds})")
    console.say(f"drawn in {arguments.out}")
    return 0


def _random(rows: Sequence[dict]) -> tuple[str, float] | None:
    """Mean return of the episodes that ended before learning began, which were acted at random."""
    returns, counts = [], []
    for row in rows:
        if "collect/episodes" in row and np.all(np.asarray(row["train/updates"]) == 0):
            value, count = np.atleast_1d(row["collect/episode_return"]), np.atleast_1d(row["collect/episodes"])
            ended = np.isfinite(np.asarray(value, np.float64))
            returns.append(np.where(ended, value, 0.0).astype(float))
            counts.append(np.where(ended, count, 0).astype(float))
    total = np.sum(counts) if counts else 0.0
    return ("random actions", float(np.sum(np.multiply(returns, counts)) / total)) if total else None


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
