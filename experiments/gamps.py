"""Gradient-aware model-based policy search against a likely model, PGT and REINFORCE, from recorded trajectories.

On the gridworld: weight maps, returns over iterations for several numbers of trajectories, cosines with the true
gradient, and a statement per claim of the paper. On minigolf and the swimmer (recorded on MuJoCo; on Brax where it is
collected between updates): returns over iterations. Writes
manifest.json, metrics.jsonl (one record per setting, method and seed), results.json and one picture per figure.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxhybrid.errors import unknown
from jaxhybrid.runtime import cli, console, records, studies

__all__ = ["METHODS", "PRESETS", "Config", "main"]

METHODS = ("gamps", "ml", "pgt", "reinforce", "exact")


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study; those of the algorithm are the presets of `systems.gamps`."""

    domain: str = "gridworld"
    """What is solved: gridworld, minigolf or swimmer."""
    methods: tuple[str, ...] = METHODS
    """What is compared: presets of `systems.gamps`."""
    seeds: int = 20
    """Runs: each has its own policy and data, which all methods share."""
    trajectories: tuple[int, ...] = (10, 25, 50, 100, 200, 500, 1000)
    """Numbers of recorded trajectories."""
    iterations: int = 100
    """Policy updates."""
    resamples: int = 10_000
    """Bootstrap samples of every comparison."""
    literal: bool = True
    """Whether the gridworld is also run in its literal layout, with the most trajectories."""
    fresh_trajectories: int = 0
    """Trajectories of the current policy that replace the oldest ones at every update; 0 is the batch setting."""


PRESETS = {
    ("paper", "gridworld"): Config(),
    ("paper", "minigolf"): Config("minigolf", METHODS[:-1], seeds=10, trajectories=(50,), iterations=30),
    ("paper", "swimmer"): Config("swimmer", METHODS[:-1], seeds=10, trajectories=(100,), iterations=20),
    ("interactive", "gridworld"): Config(trajectories=(100,), literal=False, fresh_trajectories=20),
    ("interactive", "minigolf"): Config(
        "minigolf", METHODS[:-1], seeds=10, trajectories=(50,), iterations=30, fresh_trajectories=10
    ),
    ("interactive", "swimmer"): Config(
        "swimmer", METHODS[:-1], seeds=10, trajectories=(100,), iterations=20, fresh_trajectories=20
    ),
    ("smoke", "gridworld"): Config(methods=("gamps", "ml"), seeds=3, trajectories=(50,), iterations=10, literal=False),
    ("smoke", "minigolf"): Config("minigolf", ("gamps", "pgt"), seeds=2, trajectories=(5,), iterations=3),
    ("smoke", "swimmer"): Config("swimmer", ("gamps", "pgt"), seeds=1, trajectories=(5,), iterations=2),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    domain: Literal["gridworld", "minigolf", "swimmer"] = "gridworld"
    """What is solved."""
    preset: Literal["paper", "interactive", "smoke"] = "paper"
    """Named numbers."""
    method: tuple[str, ...] = ("all",)
    """Methods to compare; "all": those of the preset."""
    seed: int = 0
    """First seed."""
    seeds: int | None = None
    """Runs per method: seed, seed + 1, ..."""
    trajectories: tuple[int, ...] | None = None
    """Numbers of recorded trajectories."""
    iterations: int | None = None
    """Policy updates."""
    resamples: int | None = None
    """Bootstrap samples of every comparison."""
    out: str | None = None
    """Directory of the run; by default runs/gamps-<domain>-<preset>-<seed>-<time>."""
    progress: bool = True
    """Show a progress bar."""


def _config(arguments: Arguments) -> Config:
    given = {name: getattr(arguments, name) for name in ("seeds", "trajectories", "iterations", "resamples")}
    config = dataclasses.replace(
        PRESETS[arguments.preset, arguments.domain], **{k: v for k, v in given.items() if v is not None}
    )
    if arguments.method != ("all",):
        config = dataclasses.replace(config, methods=arguments.method)
    valid = METHODS if config.domain == "gridworld" else METHODS[:-1]
    for method in config.methods:
        if method not in valid:
            raise unknown("method", method, (*valid, "all"))
    studies.check_least(config, {"seeds": 1, "trajectories": 2, "iterations": 1, "resamples": 100})
    studies.check_seeds(arguments.seed, config.seeds)
    studies.check_directory(arguments.out)
    return config


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gamps"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {name}", description=__doc__)
    config = _config(arguments)
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import figures, report
    from experiments._gamps.sweep import settings, sweep, weight_maps

    default = records.default_directory(name, config.domain, arguments.preset, arguments.seed)
    out = Path(arguments.out or default).expanduser()
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    began, rows = time.perf_counter(), []
    with records.Writer(out, position=0, tensorboard=False) as writer, report.progress(arguments.progress) as bar:
        task = bar.add_task(name, total=len(settings(config)))
        for group in sweep(config, arguments.seed):
            for row in group:
                writer.write(row)
            report.warn_of_stops(group)
            rows += group
            bar.advance(task)
    report.write_results(rows, config, arguments.seed, out)
    figures.draw_returns(rows, config.domain, out)
    if config.domain == "gridworld":
        figures.draw_cosines(rows, out / "cosines.png")
        figures.draw_weights(weight_maps(arguments.seed), out / "weights.png")
    console.say(f"{len(rows)} runs in {out} after {time.perf_counter() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
