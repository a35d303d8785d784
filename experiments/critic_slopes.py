"""Gradient matching for a continuous critic: whether the slopes that an actor follows become more accurate.

A critic of real-valued actions is fitted to the value of a fixed policy by temporal differences, with and without
matching its slope in the action to that of a value expansion on the model, on linear-quadratic problems where every
true slope is known. Writes manifest.json, metrics.jsonl (one record per cell) and prints a table.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.table

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study."""

    seeds: int = 10
    """Seeds: each has its own problem, data and critic."""
    transitions: tuple[int, ...] = (30, 100, 1000)
    """Sizes of the data set."""
    alphas: tuple[float, ...] = (0.1, 1.0)
    """Weights of matching; 0 is always among them."""
    depths: tuple[int, ...] = (1, 3)
    """Model steps of the planner."""
    updates: int = 1500
    """Gradient steps of a critic."""
    hidden: tuple[int, ...] = (32, 32)
    """Hidden layers of the critic."""


PRESETS = {
    "full": Config(),
    "smoke": Config(seeds=2, transitions=(30,), alphas=(1.0,), depths=(1,), updates=50, hidden=(8,)),
}


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="experiments critic_slopes",
        description=__doc__,
        presets=PRESETS,
        where="lqr",
        least={"seeds": 1, "transitions": 2, "depths": 1, "updates": 1, "hidden": 1},
    )
    config, out = study.config, study.out
    if not np.all(np.isfinite(config.alphas)):
        raise InputError(f"alphas={config.alphas} must be finite.")
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from experiments._critic_slopes import fits

    study.open()
    runs, cells = fits.grid(config)
    keys = jax.vmap(jax.random.key)(np.arange(study.seed, study.seed + config.seeds))
    rows: list[dict[str, Any]] = []
    with records.Writer(out, position=0, tensorboard=False) as writer:
        for distance in ("cosine", "l2"):
            for depth in config.depths:

                def one(run: Any, key: Any, depth: int = depth, distance: str = distance) -> Any:
                    return fits.fit(run, key, config=config, depth=depth, distance=distance)

                scores = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(runs, keys)
                for i, cell in enumerate(cells):
                    values = {name: np.asarray(score[i]).tolist() for name, score in scores.items()}
                    rows.append({"iteration": len(rows), "distance": distance, "depth": depth, **cell, **values})
                    writer.write(rows[-1])
                console.say(f"{distance}, depth {depth}: done")
    _print(rows, config)
    console.say(f"results in {out}")
    return 0


def _print(rows: Sequence[dict[str, Any]], config: Config) -> None:
    """Median over seeds, and in how many seeds the slope is better than that of the same data without matching."""
    table = rich.table.Table(title=f"error of the critic's action slope, median of {config.seeds} seeds")
    for heading in ("steps", "model", "distance", "depth", "alpha", "slope error", "cosine", "value error", "better"):
        table.add_column(heading, justify="right")
    plain = {(r["distance"], r["depth"], r["transitions"], r["model"]): r for r in rows if r["alpha"] == 0.0}
    for row in sorted(rows, key=lambda r: (r["transitions"], r["model"], r["distance"], r["depth"], r["alpha"])):
        base = plain[row["distance"], row["depth"], row["transitions"], row["model"]]
        better = np.sum(np.asarray(row["slope_error"]) < np.asarray(base["slope_error"]))
        numbers = [f"{np.median(row[name]):.3f}" for name in ("slope_error", "slope_cosine", "value_error")]
        labels = [str(row[name]) for name in ("transitions", "model", "distance", "depth", "alpha")]
        table.add_row(*labels, *numbers, "" if row is base else f"{better}/{config.seeds}")
    console.CONSOLE.print(table)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
