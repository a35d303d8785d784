"""Five losses of a model that is too small, by how well its values improve a policy: no sampling error anywhere.

Likelihood, gradient-aware likelihood with cumulated and with own scores, value-aware and gradient-matching losses on
both layouts of the gridworld, all expectations exact. Writes manifest.json, results.json and losses.png.
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

    seeds: int = 10
    """Starts of the policy, shared by all losses."""
    iterations: int = 100
    """Policy updates, Adam of step size 0.1."""
    fit_steps: int = 30
    """Adam steps of one model fit, from the previous optimum."""


PRESETS = {"paper": Config(), "smoke": Config(seeds=2, iterations=3, fit_steps=3)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["paper", "smoke"] = "paper"
    """Named numbers."""
    seed: int = 0
    """First seed."""
    seeds: int | None = None
    """Starts of the policy."""
    iterations: int | None = None
    """Policy updates."""
    fit_steps: int | None = None
    """Adam steps of one model fit."""
    out: str | None = None
    """Directory of the run; by default runs/gamps_losses-gridworld-<preset>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gamps_losses"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {name}", description=__doc__)
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Config)}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in given.items() if v is not None})
    for field in dataclasses.fields(Config):
        if getattr(config, field.name) < 1:
            raise InputError(f"{field.name}={getattr(config, field.name)} must be at least 1.")
    if arguments.seed < 0 or arguments.seed + config.seeds > 2**31:
        raise InputError(f"seed={arguments.seed} with seeds={config.seeds} must stay within 0 and {2**31 - 1}.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import losses

    out = Path(arguments.out or records.default_directory(name, "gridworld", arguments.preset, arguments.seed))
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    curves = losses.compare(config, arguments.seed)
    losses.draw(curves, out / "losses.png")
    rows = losses.summary(curves)
    (out / "results.json").write_text(json.dumps(records.jsonable(rows), indent=1) + "\n", encoding="utf-8")
    for row in rows:
        console.say(
            f"{row['topology']}, {row['loss']}: first cosine {row['first_cosine']:.3f}, return {row['final']:.2f} "
            f"(best {row['best']:.2f})"
        )
    console.say(f"results in {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
