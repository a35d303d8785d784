"""How far the model-augmented gradient is from the truth: model and critic, learned or exact, over the horizon.

The double integrator with a linear policy, where both truths are closed forms: the gradient that a perfect model and a
perfect critic give (truncated at H, because the critic is differentiated through its input alone) and the gradient of
the return. Writes manifest.json, metrics.jsonl (one record per configuration and seed), summary.json and one figure per
discount.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study."""

    seeds: int = 20
    """Seeds: each has its own data, model and critic."""
    gammas: tuple[float, ...] = (0.9, 0.99)
    """Discounts."""
    transitions: tuple[int, ...] = (20, 100, 1000)
    """Sizes of the data set: steps of the random policy that model and critic are fitted to."""
    horizons: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20, 50)
    """Model steps before the critic takes over."""
    epochs: int = 1000
    """Limit on the epochs of a model fit."""
    updates: int = 6000
    """Gradient steps of a critic fit."""
    draws: int = 256
    """Monte-Carlo draws per gradient, a multiple of four (the members of the ensemble)."""


PRESETS = {
    "full": Config(),
    "smoke": Config(seeds=3, transitions=(30, 300), horizons=(0, 2, 10), epochs=300, updates=1500, draws=64),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    seed: int = 0
    """First seed."""
    seeds: int | None = None
    """Seeds that run side by side: seed, seed + 1, ..."""
    gammas: tuple[float, ...] | None = None
    """Discounts."""
    transitions: tuple[int, ...] | None = None
    """Sizes of the data set."""
    horizons: tuple[int, ...] | None = None
    """Model steps before the critic takes over."""
    epochs: int | None = None
    """Limit on the epochs of a model fit."""
    updates: int | None = None
    """Gradient steps of a critic fit."""
    draws: int | None = None
    """Monte-Carlo draws per gradient."""
    out: str | None = None
    """Directory of the run; by default runs/gradient_error-<env>-<preset>-<seed>-<time>."""
    progress: bool = True
    """Show a progress bar."""


def _config(arguments: Arguments) -> Config:
    fields = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Config)}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in fields.items() if v is not None})
    least = {"seeds": 1, "transitions": 20, "horizons": 0, "epochs": 1, "updates": 1, "draws": 8}
    studies.check_least(config, least)
    if not config.gammas or not all(0 <= gamma < 1 for gamma in config.gammas):
        raise InputError(f"gammas={config.gammas} must lie in [0, 1): the return is not finite otherwise.")
    if config.draws % 4:
        raise InputError(f"draws={config.draws} must be a multiple of 4, the members of the ensemble.")
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
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments gradient_error", description=__doc__)
    config = _config(arguments)
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gradient_error import figure, report
    from experiments._gradient_error.sweep import configurations, sweep

    name = "gradient_error"
    default = records.default_directory(name, "double_integrator", arguments.preset, arguments.seed)
    out = Path(arguments.out or default).expanduser()
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed, "seeds": config.seeds}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    began, rows = time.perf_counter(), []
    with records.Writer(out, position=0, tensorboard=False) as writer, report.progress(arguments.progress) as bar:
        task = bar.add_task("gradient_error", total=configurations(config))
        for group in sweep(config, arguments.seed):
            for row in group:
                writer.write(row)
            rows += group
            bar.advance(task)
    check = report.monte_carlo_check(rows)
    report.write_summary(rows, check, out)
    for gamma in config.gammas:
        figure.draw([row for row in rows if row["gamma"] == gamma], out / f"gradient_error_gamma{gamma:g}.png")
    console.say(
        f"true model, exact critic: {check['coordinates']} coordinates within {check['largest_z']:.2f} standard errors "
        f"of the truncated gradient; {len(rows)} records in {out} after {time.perf_counter() - began:.0f} s."
    )
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
