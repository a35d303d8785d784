"""Compile seconds, environment steps, gradient updates and model steps per second, beside other libraries.

Everything is timed in turn, round after round, so that the ratios hold where the speed of the machine drifts. Peers run
when the extra ``peers`` is installed. Prints a table; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.console
import rich.table
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["PRESETS", "Config", "Task", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    rounds: int = 7
    """Times that every task is timed, in turn."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of actor and critics."""
    batch: int = 256
    """Rows per update."""
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of a model."""
    repeats: int = 100
    """Updates or model steps per timing."""
    horizons: tuple[int, ...] = (1, 3, 5)
    """Horizons of the actor."""
    envs: tuple[str, ...] = ("pendulum", "brax/inverted_double_pendulum", "mbbl/halfcheetah")
    """Environments that are stepped."""
    num_envs: int = 64
    """Instances of each, side by side."""
    matmul: int = 2048
    """Size of the square matrix product that is taken for the peak."""


PRESETS = {
    "full": Config(),
    "smoke": Config(
        rounds=2, hidden=(16,), batch=32, model_hidden=(16,), repeats=4, horizons=(1,), envs=("pendulum",), matmul=64
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    rounds: int | None = None
    """Times that every task is timed."""
    peers: bool = True
    """Time other libraries too, where they are installed."""
    out: str | None = None
    """Directory of the run; by default runs/throughput-<device>-<preset>-0-<time>."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to time.

    Attributes:
      name: what it is.
      unit: what is counted.
      count: units per call.
      run: does the work and waits for it.
      compile_seconds: what making it took, tracing and compiling.
      flops: floating-point operations per unit, 0 where not counted.
      rival: name of the task of ours that it is compared with.
    """

    name: str
    unit: str
    count: int
    run: Callable[[], Any]
    compile_seconds: float = 0.0
    flops: float = 0.0
    rival: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m benchmarks throughput", description=__doc__)
    config = PRESETS[arguments.preset]
    if arguments.rounds is not None:
        config = dataclasses.replace(config, rounds=arguments.rounds)
    if config.rounds < 1:
        raise InputError(f"rounds={config.rounds} must be at least 1.")
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from benchmarks import _throughput

    device = jax.devices()[0].platform
    out = Path(arguments.out or records.default_directory("throughput", device, arguments.preset, 0)).expanduser()
    records.open_run(
        out, {"study": "throughput", "config": dataclasses.asdict(config)}, dataclasses.asdict(arguments), resume=False
    )
    tasks = _throughput.own_tasks(config)
    if arguments.peers:
        missing = [name for name in ("stable_baselines3", "sbx", "torch") if importlib.util.find_spec(name) is None]
        if missing:
            console.warn(f"no peers: {', '.join(missing)} not installed; pip install -e '.[peers]' adds them.")
        else:
            tasks += _throughput.peer_tasks(config)
    seconds = _time(tasks, config.rounds)
    rows = _rows(tasks, seconds)
    (out / "results.json").write_text(json.dumps({"device": device, "tasks": rows}, indent=1) + "\n", encoding="utf-8")
    _print(rows, device)
    console.say(f"results in {out}")
    return 0


def _time(tasks: Sequence[Task], rounds: int) -> np.ndarray:
    """Seconds per call, ``[rounds, tasks]``, after one call of each that is not counted."""
    for task in tasks:
        task.run()
    seconds = np.zeros((rounds, len(tasks)))
    for i in range(rounds):
        for j, task in enumerate(tasks):
            began = time.perf_counter()
            task.run()
            seconds[i, j] = time.perf_counter() - began
    return seconds


def _rows(tasks: Sequence[Task], seconds: np.ndarray) -> list[dict[str, Any]]:
    rate = np.array([task.count for task in tasks]) / seconds
    names = [task.name for task in tasks]
    peak = np.median(rate[:, 0]) * tasks[0].flops
    rows = []
    for j, task in enumerate(tasks):
        row: dict[str, Any] = {
            "name": task.name,
            "unit": task.unit,
            "per_second": float(np.median(rate[:, j])),
            "lowest": float(rate[:, j].min()),
            "highest": float(rate[:, j].max()),
            "compile_seconds": task.compile_seconds,
            "of_peak": float(np.median(rate[:, j]) * task.flops / peak) if task.flops else None,
        }
        if task.rival:
            # Round by round, so that a drift of the machine's speed cancels.
            row |= {
                "rival": task.rival,
                "ours_over_this": float(np.median(rate[:, names.index(task.rival)] / rate[:, j])),
            }
        rows.append(row)
    return rows


def _print(rows: Sequence[dict[str, Any]], device: str) -> None:
    table = rich.table.Table(title=f"throughput on {device}, median of rounds")
    for heading in ("task", "per second", "range", "compile s", "of matmul peak", "ours / this"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['per_second']:,.4g} {row['unit']}",
            f"{row['lowest']:,.4g} - {row['highest']:,.4g}",
            f"{row['compile_seconds']:.1f}" if row["compile_seconds"] else "",
            f"{row['of_peak']:.0%}" if row["of_peak"] else "",
            f"{row['ours_over_this']:.2f}" if "rival" in row else "",
        )
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
