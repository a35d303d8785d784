"""Whether a model-augmented actor learns better from a model with gradient-aware weights, on the pendulum.

The same run twice per seed and size of the model: every real step counts alike, or by the norm of its score under the
current policy times its truncated ratio. Writes manifest.json, results.json and returns.png.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study; those that are not here are the smoke preset's of `systems.maac`."""

    seeds: int = 8
    """Runs per setting: both weights start from the same."""
    iterations: int = 30
    """Iterations of collection, fit and updates."""
    steps_per_iteration: int = 100
    """Real steps per iteration."""
    updates_per_iteration: int = 50
    """Gradient updates per iteration."""
    widths: tuple[int, ...] = (4,)
    """Units in the one hidden layer of the model, of which a few cannot be right everywhere."""


PRESETS = {
    "full": Config(),
    "smoke": Config(seeds=2, iterations=3, steps_per_iteration=80, updates_per_iteration=2, widths=(4,)),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    seed: int = 0
    """First seed."""
    seeds: int | None = None
    """Runs per setting."""
    iterations: int | None = None
    """Iterations."""
    widths: tuple[int, ...] | None = None
    """Units in the one hidden layer of the model."""
    out: str | None = None
    """Directory of the run; by default runs/model_weights-pendulum-<preset>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "model_weights"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {name}", description=__doc__)
    given = {field: getattr(arguments, field) for field in ("seeds", "iterations", "widths")}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in given.items() if v is not None})
    for field, least in (("seeds", 2), ("iterations", 1), ("widths", 1)):
        value = getattr(config, field)
        if value == () or min(value if isinstance(value, tuple) else (value,)) < least:
            raise InputError(f"{field}={value} must be at least {least}.")
    if arguments.seed < 0 or arguments.seed + config.seeds > 2**31:
        raise InputError(f"seed={arguments.seed} with seeds={config.seeds} must stay within 0 and {2**31 - 1}.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    # Imported here, so that a refused argument needs no JAX.
    from experiments._model_weights import runs

    out = Path(arguments.out or records.default_directory(name, "pendulum", arguments.preset, arguments.seed))
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    rows = runs.compare(config, arguments.seed)
    runs.draw(rows, out / "returns.png")
    (out / "results.json").write_text(json.dumps(records.jsonable(rows), indent=1) + "\n", encoding="utf-8")
    for row in rows:
        difference = row["own_score_minus_uniform"]
        console.say(
            f"width {row['width']}: mean return over iterations {difference['mean_over_iterations']:+.2f} and final "
            f"return {difference['final']:+.2f} with gradient-aware weights, p = {difference['p_mean']:.2g} and "
            f"{difference['p_final']:.2g}"
        )
    console.say(f"results in {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
