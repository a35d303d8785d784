"""How long model roll-outs should be, with and without a terminal value from the recordings, on a damped pendulum.

Values of the visited pairs by roll-outs of a network that was fitted to few recordings, against roll-outs of the
pendulum itself, and the gradient that they lead to. Writes manifest.json, results.json and horizons.png.
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
        module="experiments gamps_horizons",
        description=__doc__,
        presets=PRESETS,
        where="pendulum",
        least={"seeds": 2, "trajectories": 2, "horizons": 1, "rollouts": 1, "true_rollouts": 1, "fit_steps": 1},
    )
    # Imported here, so that a refused argument needs no JAX.
    from experiments._gamps import horizons

    study.open()
    rows = horizons.compare(study.config, study.seed)
    horizons.draw(rows, study.out / "horizons.png")
    for row in rows:
        console.say(
            f"N = {row['trajectories']}, H = {row['horizon']}, terminal value {row['terminal_value']}: error "
            f"{row['q_error']:.3f} +- {row['q_error_standard_error']:.3f}, cosine {row['cosine']:.3f} +- "
            f"{row['cosine_standard_error']:.3f}"
        )
    study.write(rows)
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
