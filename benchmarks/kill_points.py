"""Runs that are killed at random moments, and how many of them end as the run that nobody killed, to the bit.

SIGKILL at any moment, during training and at a random file operation of a save; SIGTERM; a disk that is full from some
moment on. After each the newest checkpoint and the records are compared with those of an undisturbed run at the same
iteration, and the run goes on from there. Prints a table; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    points: int = 100
    """Kill points, over all tasks and kinds of faults."""
    tasks: tuple[tuple[str, str, int], ...] = (("smoke/sac", "lqr/double_integrator", 60), ("smoke", "pendulum", 40))
    """Preset of MAAC, environment and iterations of each task."""


PRESETS = {"full": Config(), "smoke": Config(points=5, tasks=(("smoke/sac", "lqr/double_integrator", 12),))}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code, 1 if a run did not end as the one that nobody killed.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="benchmarks kill_points",
        description=__doc__,
        presets=PRESETS,
        where="maac",
        least={"points": 1},
    )
    # Imported here, so that a refused argument needs no JAX.
    import numpy as np

    from benchmarks._kill_points import chain

    study.open()
    config, out = study.config, study.out
    rng, points = np.random.default_rng(study.seed), []
    for i, task in enumerate(chain.Task(*task) for task in config.tasks):
        console.say(f"{task.preset}: the run that nobody kills ...")
        known = chain.reference(task, out / f"task-{i}", (out / "cache").absolute())
        share = config.points // len(config.tasks) + (i < config.points % len(config.tasks))
        points += _points(known, share, rng, out / f"task-{i}")
        _write(out, config, points)
    _print(points)
    console.say(f"results in {out}")
    return 0 if all(point["identical"] and point["lost"] <= 1 for point in points) else 1


def _points(known: Any, count: int, rng: Any, out: Path) -> list[dict[str, Any]]:
    """Stops runs ``count`` times; a fault that came too late for its run is compared all the same, but not counted."""
    from benchmarks._kill_points import chain

    points: list[dict[str, Any]] = []
    current, number = chain.Chain(known, out / "run-0"), 0
    while sum(point["struck"] for point in points) < count or not current.complete:
        struck = sum(point["struck"] for point in points)
        if current.complete:
            shutil.rmtree(current.directory)
            number += 1
            current = chain.Chain(known, out / f"run-{number}")
        # The last run is let go, so that its end is compared too.
        fault = chain.FAULTS[struck % len(chain.FAULTS)] if struck < count else "none"
        points.append({"task": known.task.preset, "run": number, **current.live(fault, rng)})
        last = points[-1]
        console.say(
            f"{struck}/{count} {fault}: exit {last['exit']}, iteration {last['iteration']}, {last['identical']}"
        )
        if len(points) > 4 * count + 20:
            raise InputError(f"tasks={known.task.preset!r} ends before faults strike: give it more iterations.")
    return points


def _write(out: Path, config: Config, points: Sequence[dict[str, Any]]) -> None:
    results = {"config": dataclasses.asdict(config), "summary": _summary(points), "points": list(points)}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _summary(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for task in dict.fromkeys(point["task"] for point in points):
        for fault in dict.fromkeys(point["fault"] for point in points):
            struck = [p for p in points if p["task"] == task and p["fault"] == fault and p["struck"]]
            if struck and fault != "none":
                rows.append(
                    {
                        "task": task,
                        "fault": fault,
                        "points": len(struck),
                        "identical": sum(point["identical"] for point in struck),
                        "most_lost": max(point["lost"] for point in struck),
                        "damaged": sum(point["damaged"] for point in struck),
                    }
                )
        ends = [point for point in points if point["task"] == task and point["complete"]]
        rows.append(
            {
                "task": task,
                "fault": "ends of runs",
                "points": len(ends),
                "identical": sum(point["identical"] for point in ends),
                "most_lost": 0,
                "damaged": sum(point["damaged"] for point in ends),
            }
        )
    return rows


def _print(points: Sequence[dict[str, Any]]) -> None:
    table = rich.table.Table(title="runs stopped at random moments")
    for heading in ("task", "fault", "points", "bit-identical", "most iterations lost", "damaged checkpoints"):
        table.add_column(heading, justify="left" if heading in ("task", "fault") else "right")
    for row in _summary(points):
        table.add_row(*(str(value) for value in row.values()))
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
