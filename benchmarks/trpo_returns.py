"""What TRPO of sb3-contrib earns on a task of 2017, as a run that ``mscv_table`` puts beside ours at equal steps.

``python -m benchmarks trpo_returns --seeds 10 --out runs/swimmer/sb3-contrib``, where ``runs/swimmer`` holds runs of
``python -m experiments mscv``. The same networks, discount, trust region and standardised observations; its own value
fits and normalised advantages, with GAE of 0.97. Needs the extra ``peers``. Writes manifest.json and metrics.jsonl.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, console, records, studies

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    task: str = "swimmer"
    """A task of `envs.mujoco_v1`."""
    seeds: int = 10
    """Runs."""
    iterations: int = 40
    """Batches."""
    steps: int = 5000
    """Steps of a batch."""
    num_envs: int = 5
    """Instances that are stepped side by side."""


PRESETS = {"full": Config(), "smoke": Config("reacher", seeds=1, iterations=2, steps=200, num_envs=2)}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: bad arguments, a library that is missing, or a directory that cannot be used; nothing was written
        then.
    """
    study = studies.parse(
        argv,
        module="benchmarks trpo_returns",
        description=__doc__,
        presets=PRESETS,
        where="mujoco_v1",
        least={"seeds": 1, "iterations": 1, "num_envs": 1},
    )
    config = study.config
    if config.steps < 1 or config.steps % config.num_envs:
        raise InputError(f"steps={config.steps} must be a multiple of num_envs={config.num_envs}.")
    # Imported here, so that a refused argument needs no simulator.
    from benchmarks.peers import trpo
    from jaxhybrid.envs import mujoco_v1

    if config.task not in mujoco_v1.TASKS:
        raise unknown("task", config.task, mujoco_v1.TASKS)
    if importlib.util.find_spec("sb3_contrib") is None:
        raise InputError("sb3-contrib is not installed: pip install -e '.[peers]' adds it.")
    study.open(env=f"mujoco_v1/{config.task}")
    runs = []
    for seed in range(study.seed, study.seed + config.seeds):
        env = mujoco_v1.make(config.task, num_envs=config.num_envs)
        numbers = {"seed": seed, "iterations": config.iterations, "steps": config.steps}
        runs.append(list(trpo.episode_returns(env, normalise=True, **numbers)))
        console.say(f"seed {seed}: return {runs[-1][-1]:.1f} after {config.steps * config.iterations:,} steps")
    with records.Writer(study.out, position=0, tensorboard=False) as writer:
        for i, returns in enumerate(zip(*runs, strict=True), 1):
            writer.write({"iteration": i, "env/steps": i * config.steps, "collect/episode_return": list(returns)})
    console.say(f"results in {study.out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
