"""Bias, variance and error of gradients that mix a model with recordings, and the speed and memory of an iteration.

On the gridworld, whose gradient is known: Monte Carlo (MFG), fully model-based (FMG) and model-value (MVG) gradients
with likely and gradient-aware models, over the number of trajectories. Then one continuous iteration beside NumPy, and
the memory of the score norms of a large policy. Prints tables; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import rich.console
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    datasets: int = 200
    """Data sets per number of trajectories."""
    trajectories: tuple[int, ...] = (10, 50, 200, 1000)
    """Numbers of trajectories."""
    repeats: int = 9
    """Timed repetitions of an iteration; the fastest and the median are reported."""
    recordings: int = 1000
    """Trajectories of the timed iteration, 20 steps each."""
    hidden: int = 256
    """Width of the two hidden layers of the large policy, about hidden^2 parameters."""


PRESETS = {
    "full": Config(),
    "smoke": Config(datasets=20, trajectories=(10, 50), repeats=3, recordings=50, hidden=32),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    seed: int = 0
    """Seed of all draws."""
    datasets: int | None = None
    """Data sets per number of trajectories."""
    trajectories: tuple[int, ...] | None = None
    """Numbers of trajectories."""
    repeats: int | None = None
    """Timed repetitions of an iteration."""
    out: str | None = None
    """Directory of the run; by default runs/gamps-benchmark-<preset>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
      argv: without the name of the benchmark.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gamps"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m benchmarks {name}", description=__doc__)
    given = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(Config)}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in given.items() if v is not None})
    if config.datasets < 2 or config.repeats < 1:
        raise InputError(f"datasets={config.datasets} must be at least 2 and repeats={config.repeats} at least 1.")
    if not config.trajectories or min(config.trajectories) < 2:
        raise InputError(f"trajectories={config.trajectories} must be at least 2.")
    if not 0 <= arguments.seed < 2**31:
        raise InputError(f"seed={arguments.seed} must lie within 0 and {2**31 - 1}.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    # Imported here, so that a refused argument needs no JAX.
    from benchmarks._gamps import gradients, iteration

    out = Path(arguments.out or records.default_directory(name, "benchmark", arguments.preset, arguments.seed))
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    rows = gradients.measure(config.datasets, config.trajectories, arguments.seed)
    rich.console.Console(width=140).print(gradients.table(rows))
    speed = iteration.speed(config.recordings, config.repeats)
    memory = iteration.score_memory(config.hidden)
    for what, numbers in (("iteration", speed), ("score norms", memory)):
        console.say(f"{what}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    results = {"config": dataclasses.asdict(config), "gradients": rows, "iteration": speed, "score_norms": memory}
    text = json.dumps(records.jsonable(results), indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    console.say(f"results in {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
