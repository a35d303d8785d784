"""Bias, variance and cost of policy-gradient estimators on a problem whose gradient is known exactly.

The double integrator with a linear policy: score function, pathwise and model-augmented estimators, all with the exact
model and critic, against the gradient of the objective that each estimates and against that of the return without end.
With ``--problem gridworld`` instead the gradients of recorded trajectories: Monte Carlo (MFG), fully model-based (FMG)
and model-value (MVG), the last two with likely and gradient-aware models, over the number of trajectories.
Prints a table; writes manifest.json, results.json and one figure per discount, or one of the gridworld.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import rich.console
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    draws: int = 1_000_000
    """Draws per estimator."""
    chunk: int = 10_000
    """Draws per call of the compiled program."""
    gammas: tuple[float, ...] = (0.9, 0.99)
    """Discounts."""
    horizon: int = 20
    """Steps of the score-function and pathwise roll-outs."""
    maac_horizons: tuple[int, ...] = (0, 1, 3, 5, 10, 20)
    """Horizons of the model-augmented objective."""
    datasets: int = 200
    """Data sets of the gridworld per number of trajectories."""
    trajectories: tuple[int, ...] = (10, 50, 200, 1000)
    """Numbers of recorded trajectories of the gridworld."""


PRESETS = {
    "full": Config(),
    "smoke": Config(
        draws=20_000, chunk=5_000, gammas=(0.9,), horizon=10, maac_horizons=(0, 3), datasets=20, trajectories=(10, 50)
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line; numbers that are left out are those of the preset."""

    problem: Literal["double_integrator", "gridworld"] = "double_integrator"
    """Fresh roll-outs of the double integrator, or recordings of the gridworld."""
    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    seed: int = 0
    """Seed of all draws."""
    draws: int | None = None
    """Draws per estimator, a multiple of the chunk."""
    chunk: int | None = None
    """Draws per call of the compiled program."""
    gammas: tuple[float, ...] | None = None
    """Discounts."""
    horizon: int | None = None
    """Steps of the score-function and pathwise roll-outs."""
    maac_horizons: tuple[int, ...] | None = None
    """Horizons of the model-augmented objective."""
    datasets: int | None = None
    """Data sets of the gridworld per number of trajectories."""
    trajectories: tuple[int, ...] | None = None
    """Numbers of recorded trajectories of the gridworld."""
    out: str | None = None
    """Directory of the run; by default runs/gradient_variance-<env>-<preset>-<seed>-<time>."""


def _config(arguments: Arguments) -> Config:
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Config)}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in fields.items() if v is not None})
    if config.chunk < 2 or config.draws < config.chunk or config.draws % config.chunk:
        raise InputError(f"draws={config.draws} must be a positive multiple of chunk={config.chunk}, at least 2.")
    studies.check_least(config, {"horizon": 1, "datasets": 2, "trajectories": 2})
    if any(h < 0 for h in config.maac_horizons):
        raise InputError(f"maac_horizons={config.maac_horizons} must be 0 or more.")
    if not config.gammas or not all(0 < gamma < 1 for gamma in config.gammas):
        raise InputError(f"gammas={config.gammas} must lie strictly between 0 and 1.")
    studies.check_seeds(arguments.seed, 1)
    studies.check_directory(arguments.out)
    return config


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
      argv: without the name of the benchmark.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gradient_variance"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m benchmarks {name}", description=__doc__)
    config = _config(arguments)
    default = records.default_directory(name, arguments.problem, arguments.preset, arguments.seed)
    out = Path(arguments.out or default).expanduser()
    identity = {
        "study": name,
        "problem": arguments.problem,
        "config": dataclasses.asdict(config),
        "seed": arguments.seed,
    }
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    study = _integrator if arguments.problem == "double_integrator" else _gridworld
    results = {"config": dataclasses.asdict(config), "seed": arguments.seed, **study(config, arguments.seed, out)}
    text = json.dumps(records.jsonable(results), indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    console.say(f"results in {out}")
    return 0


# JAX is imported in the studies, so that a refused argument needs none.


def _integrator(config: Config, seed: int, out: Path) -> dict[str, Any]:
    import jax

    from benchmarks._gradient_variance import report
    from benchmarks._gradient_variance.estimators import estimators, exact
    from benchmarks._gradient_variance.measure import measure, recorded_noise_rate

    key, found = jax.random.key(seed), {}
    for gamma in config.gammas:
        known, full = exact(gamma, config.horizon)
        rows = []
        for row in estimators(gamma, config.horizon, config.maac_horizons):
            rows.append(measure(row, known, full, draws=config.draws, chunk=config.chunk, key=key))
            console.say(f"gamma {gamma:g}: {row.name}, {rows[-1]['draws_per_second'] / 1e6:.2f} M draws/s")
        found[f"{gamma:g}"] = rows
        title = f"double integrator, gamma = {gamma:g}, T = {config.horizon}, {config.draws:,} draws per estimator"
        rich.console.Console(width=180).print(report.table(rows, title))
        report.draw(rows, title, out / f"gradient_variance_gamma{gamma:g}.png")
    repeats = max(5, config.draws // config.chunk)
    rates = recorded_noise_rate(known, horizon=config.horizon, chunk=config.chunk, repeats=repeats, key=key)
    shown = ", ".join(f"{what} {rate / 1e6:.2f} M" for what, rate in rates.items())
    console.say(f"draws/s at T = {config.horizon}: {shown}")
    return {"gammas": found, "draws_per_second": rates}


def _gridworld(config: Config, seed: int, out: Path) -> dict[str, Any]:
    from benchmarks._gamps import gradients
    from benchmarks._gradient_variance import report

    rows = gradients.measure(config.datasets, config.trajectories, seed)
    rich.console.Console(width=140).print(gradients.table(rows))
    report.draw_recorded(rows, out / "gradient_variance_gridworld.png")
    return {"gridworld": rows}


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
