"""Whether a model-augmented actor learns better from a model with gradient-aware weights, on the pendulum.

The same run twice per seed and size of the model: every real step counts alike, or by the norm of its score under the
current policy times its truncated ratio. Writes manifest.json, results.json and returns.png.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jaxhybrid.runtime import cli, console, studies

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


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="experiments model_weights",
        description=__doc__,
        presets=PRESETS,
        where="pendulum",
        least={"seeds": 2, "iterations": 2, "steps_per_iteration": 1, "updates_per_iteration": 1, "widths": 1},
    )
    # Imported here, so that a refused argument needs no JAX.
    from experiments._model_weights import runs

    runs.check(study.config)
    study.open()
    rows = runs.compare(study.config, study.seed)
    runs.draw(rows, study.out / "returns.png")
    for row in rows:
        difference = row["own_score_minus_uniform"]
        console.say(
            f"width {row['width']}: mean return over iterations {difference['mean_over_iterations']:+.2f} and final "
            f"return {difference['final']:+.2f} with gradient-aware weights, p = {difference['p_mean']:.2g} and "
            f"{difference['p_final']:.2g}"
        )
    study.write(rows)
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
