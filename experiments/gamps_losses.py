"""Five losses of a model that is too small, by how well its values improve a policy: no sampling error anywhere.

Likelihood, gradient-aware likelihood with cumulated and with own scores, value-aware and gradient-matching losses on
both layouts of the gridworld, all expectations exact. Writes manifest.json, results.json and losses.png.
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

    seeds: int = 10
    """Starts of the policy, shared by all losses."""
    iterations: int = 100
    """Policy updates, Adam of step size 0.1."""
    fit_steps: int = 30
    """Adam steps of one model fit, from the previous optimum."""


PRESETS = {"paper": Config(), "smoke": Config(seeds=2, iterations=3, fit_steps=3)}


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
        module="experiments gamps_losses",
        description=__doc__,
        presets=PRESETS,
        where="gridworld",
        least={"seeds": 1, "iterations": 1, "fit_steps": 1},
    )
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import losses

    study.open()
    curves = losses.compare(study.config, study.seed)
    losses.draw(curves, study.out / "losses.png")
    rows = losses.summary(curves)
    for row in rows:
        console.say(
            f"{row['topology']}, {row['loss']}: first cosine {row['first_cosine']:.3f}, return {row['final']:.2f} "
            f"(best {row['best']:.2f})"
        )
    study.write(rows)
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
