"""How long model roll-outs should be, with and without a terminal value from the recordings, on a damped pendulum.

Values of the visited pairs by roll-outs of a network that was fitted to few recordings, against roll-outs of the
pendulum itself, and the gradient that they lead to. Writes manifest.json, results.json and horizons.png.
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

    seeds: int = 20
    """Data sets, each with a policy and a model of its own."""
    trajectories: tuple[int, ...] = (5, 20)
    """Recorded trajectories of a data set, 50 steps each."""
    horizons: tuple[int, ...] = (1, 3, 10, 30)
    """Steps of the model's roll-outs."""
    rollouts: int = 10
    """Roll-outs per pair."""
    true_rollouts: int = 20
    """Roll-outs of the pendulum itself per pair, 150 steps each."""
    fit_steps: int = 1000
    """Adam steps of the model's fit."""


PRESETS = {
    "full": Config(),
    "smoke": Config(seeds=2, trajectories=(2,), horizons=(1, 3), rollouts=2, true_rollouts=2, fit_steps=5),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line; numbers that are left out are those of the preset."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    seed: int = 0
    """First seed."""
    seeds: int | None = None
    """Data sets."""
    trajectories: tuple[int, ...] | None = None
    """Recorded trajectories of a data set."""
    horizons: tuple[int, ...] | None = None
    """Steps of the model's roll-outs."""
    out: str | None = None
    """Directory of the run; by default runs/gamps_horizons-pendulum-<preset>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "gamps_horizons"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {name}", description=__doc__)
    given = {field: getattr(arguments, field) for field in ("seeds", "trajectories", "horizons")}
    config = dataclasses.replace(PRESETS[arguments.preset], **{k: v for k, v in given.items() if v is not None})
    for field, least in (("seeds", 2), ("trajectories", 2), ("horizons", 1)):
        value = getattr(config, field)
        if value == () or min(value if isinstance(value, tuple) else (value,)) < least:
            raise InputError(f"{field}={value} must be at least {least}.")
    if arguments.seed < 0 or arguments.seed + config.seeds > 2**31:
        raise InputError(f"seed={arguments.seed} with seeds={config.seeds} must stay within 0 and {2**31 - 1}.")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import horizons

    out = Path(arguments.out or records.default_directory(name, "pendulum", arguments.preset, arguments.seed))
    identity = {"study": name, "config": dataclasses.asdict(config), "seed": arguments.seed}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    rows = horizons.compare(config, arguments.seed)
    horizons.draw(rows, out / "horizons.png")
    (out / "results.json").write_text(json.dumps(records.jsonable(rows), indent=1) + "\n", encoding="utf-8")
    for row in rows:
        console.say(
            f"N = {row['trajectories']}, H = {row['horizon']}, terminal value {row['terminal_value']}: error "
            f"{row['q_error']:.3f} +- {row['q_error_standard_error']:.3f}, cosine {row['cosine']:.3f} +- "
            f"{row['cosine_standard_error']:.3f}"
        )
    console.say(f"results in {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
