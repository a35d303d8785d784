"""Both sides of the gradient-aware bound on random problems, and how the estimator's error falls with the data.

Theorem 3.2 of the paper bounds the error of the model-value gradient; here both sides are exact. Its printed constant
lacks a factor 1 / (1 - gamma). Writes manifest.json, results.json and theory.png.
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
    """The numbers of the study."""

    problems: int = 10_000
    """Random problems on which both sides of the bound are evaluated."""
    trajectories: int = 200_000
    """Recorded trajectories from which the errors at every number of them are averaged."""


PRESETS = {"paper": Config(), "smoke": Config(problems=500, trajectories=20_000)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["paper", "smoke"] = "paper"
    """Named numbers."""
    seed: int = 0
    """Seed of all draws."""
    problems: int | None = None
    """Random problems."""
    trajectories: int | None = None
    """Recorded trajectories."""
    out: str | None = None
    """Directory of the run; by default runs/gamps_theory-finite-<preset>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gamps_theory"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {name}", description=__doc__)
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Config)}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in given.items() if v is not None})
    if config.problems < 2:
        raise InputError(f"problems={config.problems} must be at least 2.")
    if config.trajectories < 10_000:
        raise InputError(f"trajectories={config.trajectories} must be at least 10000, ten means of a thousand.")
    if not 0 <= arguments.seed < 2**31:
        raise InputError(f"seed={arguments.seed} must lie within 0 and {2**31 - 1}.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import theory

    out = Path(arguments.out or records.default_directory(name, "finite", arguments.preset, arguments.seed))
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    bounds = theory.bounds(config.problems, arguments.seed)
    errors = theory.finite_sample_errors(config.trajectories, arguments.seed)
    theory.draw(bounds, errors, out / "theory.png")
    summary = theory.summary(bounds, errors)
    (out / "results.json").write_text(json.dumps(records.jsonable(summary), indent=1) + "\n", encoding="utf-8")
    console.say(
        f"{config.problems} problems: corrected bound violated {summary['corrected_violations']} times, printed "
        f"{summary['printed_violations']} times; slope of the error over N {summary['slope']:.3f}; results in {out}"
    )
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
