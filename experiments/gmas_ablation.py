"""What matters in GMAS: the weight and the depth of gradient matching, and CRAR's repulsion of consecutive states.

Trains, with several seeds each, CRAR at every ``beta`` and gradient matching at every weight ``alpha`` and training
depth, as runs of ``python -m experiments gmas`` in one directory; a run that is complete there is not repeated. Writes
gmas_ablation.json, with every seed's final return, and gmas_ablation.png; prints a table.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich.table
import tyro

from experiments import gmas
from experiments._gmas import ablation_figure
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records
from jaxhybrid.runtime.statistics import mean_interval

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study."""

    base: str = "gmas-cosine"
    """Preset of ``gmas`` that every run starts from."""
    seeds: int = 8
    """Seeds of each cell."""
    alphas: tuple[float, ...] = (0.01, 0.05, 0.1, 0.5, 1.0)
    """Weights of gradient matching, the paper's for the cosine distance."""
    depths: tuple[int, ...] = (1, 3, 5)
    """Training depths."""
    betas: tuple[float, ...] = (1.0, 0.2)
    """Step sizes of the consecutive-pair loss, without gradient matching; the first is the baseline of all others.
    Without any, the baseline is a weight of zero."""
    options: tuple[str, ...] = ()
    """Further options of every run."""


_SMOKE = ("--env", "catcher", "--parallel", "vmap", "--config.test-depths", "0")
PRESETS = {
    "full": Config(),
    "reduced": Config("reduced/gmas", seeds=3, alphas=(0.05, 1.0), depths=(1, 3)),
    # One program for the baseline too: compiling is all that takes time here.
    "smoke": Config("smoke", seeds=1, alphas=(0.0, 0.05), depths=(1,), betas=(), options=_SMOKE),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    preset: Literal["full", "reduced", "smoke"] = "reduced"
    """Named numbers: the papers' problem, which takes an accelerator, small mazes, or next to nothing."""
    seed: int = 0
    """First seed."""
    out: str | None = None
    """Directory of the study, by default one in runs that is named after it; one that exists is continued."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments gmas_ablation", description=__doc__)
    config = PRESETS[arguments.preset]
    if arguments.seed < 0:
        raise InputError(f"seed={arguments.seed} must not be negative.")
    name = "gmas_ablation"
    out = Path(arguments.out or records.default_directory(name, "maze", arguments.preset, arguments.seed)).expanduser()
    common = ["--preset", config.base, *config.options, "--seed", str(arguments.seed), "--seeds", str(config.seeds)]
    runs: dict[str, tuple[list[str], str, tuple[float, ...], int]] = {
        "beta": (["--config.alpha", "0"], "beta", config.betas, 0),
        **{f"depth{d}": (["--config.match-depth", str(d)], "alpha", config.alphas, d) for d in config.depths},
    }
    cells: list[dict[str, Any]] = []
    for label, (options, field, values, depth) in runs.items():
        if not values:
            continue
        code = _run(out / label, [*common, *options, "--sweep", f"{field}={','.join(map(str, values))}"])
        if code:
            return code
        for value, returns in zip(values, _returns(out / label, len(values)), strict=True):
            cells.append({"alpha": 0.0, "beta": 1.0, "depth": depth} | {field: value, "returns": returns})
    results = {"preset": arguments.preset, "config": dataclasses.asdict(config), "cells": cells}
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    _print(cells)
    ablation_figure.draw(cells, out / f"{name}.png")
    console.say(f"results in {out}")
    return 0


def _run(directory: Path, options: Sequence[str]) -> int:
    """Trains, or continues what is there already."""
    resumed = ["--resume"] if (directory / "manifest.json").exists() else []
    return gmas.main([*options, "--out", str(directory), "--no-tensorboard", *resumed])


def _returns(directory: Path, count: int) -> list[dict[str, list[float]]]:
    """Final greedy returns of every value of a sweep: planning depth of the test to one number per seed."""
    last = records.read(directory)[-1]
    prefix = "test/greedy_depth"
    tests = {name.removeprefix(prefix): np.atleast_1d(last[name]) for name in last if name.startswith(prefix)}
    if not tests:
        raise InputError(f"out={str(directory)!r} holds a run without tests: give its preset test_depths.")
    # The seed changes fastest among the members of a run.
    each = {depth: values.reshape(count, -1) for depth, values in tests.items()}
    return [{depth: values[i].tolist() for depth, values in each.items()} for i in range(count)]


def _print(cells: Sequence[dict[str, Any]]) -> None:
    planning = list(cells[0]["returns"])
    table = rich.table.Table(title="final return, mean over seeds and 95 % t interval")
    for heading in ("beta", "alpha", "training depth", *(f"planning depth {depth}" for depth in planning)):
        table.add_column(heading, justify="right")
    for cell in cells:
        labels = [f"{cell['beta']:g}", f"{cell['alpha']:g}", str(cell["depth"]) if cell["alpha"] else "-"]
        table.add_row(*labels, *(_said(cell["returns"][depth]) for depth in planning))
    console.CONSOLE.print(table)


def _said(returns: Sequence[float]) -> str:
    mean, low, high = (float(x[0]) for x in mean_interval(np.array([returns])))
    return f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if len(returns) > 1 else "")


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
