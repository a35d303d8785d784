"""Both sides of the gradient-aware bound on random problems, and how the estimator's error falls with the data.

Theorem 3.2 of the paper bounds the error of the model-value gradient; here both sides are exact. Its printed constant
lacks a factor 1 / (1 - gamma). Writes manifest.json, results.json and theory.png.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jaxhybrid.runtime import cli, console, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study."""

    problems: int = 10_000
    """Random problems on which both sides of the bound are evaluated."""
    trajectories: int = 200_000
    """Recorded trajectories from which the errors at every number of them are averaged."""


PRESETS = {"paper": Config(), "smoke": Config(problems=500, trajectories=20_000)}


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
        module="experiments gamps_theory",
        description=__doc__,
        presets=PRESETS,
        where="finite",
        # Ten means of a thousand trajectories.
        least={"problems": 2, "trajectories": 10_000},
    )
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import theory

    study.open()
    bounds = theory.bounds(study.config.problems, study.seed)
    errors = theory.finite_sample_errors(study.config.trajectories, study.seed)
    theory.draw(bounds, errors, study.out / "theory.png")
    summary = theory.summary(bounds, errors)
    console.say(
        f"{study.config.problems} problems: corrected bound violated {summary['corrected_violations']} times, printed "
        f"{summary['printed_violations']} times; slope of the error over N {summary['slope']:.3f}"
    )
    study.write(summary)
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
