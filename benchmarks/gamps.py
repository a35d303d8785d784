"""Bias, variance and error of gradients that mix a model with recordings, and the speed and memory of an iteration.

On the gridworld, whose gradient is known: Monte Carlo (MFG), fully model-based (FMG) and model-value (MVG) gradients
with likely and gradient-aware models, over the number of trajectories. Then one continuous iteration beside NumPy, and
the memory of the score norms of a large policy. Prints tables; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import rich.console

from jaxhybrid.runtime import cli, console, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    datasets: int = 200
    """Data sets per number of trajectories."""
    trajectories: tuple[int, ...] = (10, 50, 200, 1000)
    """Numbers of trajectories."""
    repeats: int = 9
    """Timed repetitions of an iteration; the fastest and the median are reported."""
    recordings: int = 1000
    """Trajectories of the timed iteration, 20 steps each."""
    hidden: int = 256
    """Width of the two hidden layers of the large policy, about hidden^2 parameters."""


PRESETS = {
    "full": Config(),
    "smoke": Config(datasets=20, trajectories=(10, 50), repeats=3, recordings=50, hidden=32),
}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
      argv: without the name of the benchmark.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="benchmarks gamps",
        description=__doc__,
        presets=PRESETS,
        where="benchmark",
        least={"datasets": 2, "trajectories": 2, "repeats": 1, "recordings": 2, "hidden": 1},
    )
    config = study.config
    # Imported here, so that a refused argument needs no JAX.
    from benchmarks._gamps import gradients, iteration

    study.open()
    rows = gradients.measure(config.datasets, config.trajectories, study.seed)
    rich.console.Console(width=140).print(gradients.table(rows))
    speed = iteration.speed(config.recordings, config.repeats)
    memory = iteration.score_memory(config.hidden)
    for what, numbers in (("iteration", speed), ("score norms", memory)):
        console.say(f"{what}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    numbers = dataclasses.asdict(config)
    study.write({"config": numbers, "gradients": rows, "iteration": speed, "score_norms": memory})
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
