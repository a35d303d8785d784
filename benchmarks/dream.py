"""Trials per second of DREAM while both agents learn, of its extensions, over devices, and of several seeds at once.

Everything is timed in turn, round after round, so that ratios hold where the speed of the machine drifts, in seconds of
the clock and of the processor; the second says what a quiet machine would take. Updates are as many as in a run: one
for every four steps of an agent. Prints a table; writes manifest.json and results.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rich.console
import rich.table

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, studies
from jaxhybrid.systems.dream_config import VARIANTS

__all__ = ["PRESETS", "Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """What is timed, one seed each; several seeds are those of the first."""
    devices: int = 2
    """Devices that the CPU counts as; every variant is also timed with its agents learning on devices of their own."""
    seeds: int = 2
    """Seeds in one program, on one device."""
    trials: int = 100
    """Trials per timing."""
    parallel_trials: int = 20
    """Trials that are played side by side."""
    rounds: int = 3
    """Times that everything is timed, in turn."""


PRESETS = {
    "full": Config(),
    "smoke": Config(variants=("dream",), devices=1, seeds=1, trials=4, parallel_trials=2, rounds=1),
}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="benchmarks dream",
        description=__doc__,
        presets=PRESETS,
        where="benchmark",
        least={"devices": 1, "seeds": 1, "trials": 1, "parallel_trials": 1, "rounds": 1},
    )
    config = study.config
    if config.trials % config.parallel_trials:
        raise InputError(f"trials={config.trials} must be a multiple of {config.parallel_trials}.")
    if not config.variants:
        raise InputError("variants is empty: name at least one.")
    for variant in config.variants:
        if variant not in VARIANTS:
            raise unknown("variants", variant, VARIANTS)
    if config.devices > 1:
        _divide_cpu(config.devices)
    study.open()
    tasks = {}
    for variant in config.variants:
        tasks[variant] = _task(config, variant)
        if config.devices > 1:
            tasks[f"{variant}, {config.devices} devices"] = _task(config, variant, devices=config.devices)
    several = f"{config.variants[0]}, {config.seeds} seeds"
    if config.seeds > 1:
        tasks[several] = _task(config, config.variants[0], seeds=config.seeds)
    seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in tasks}
    for _ in range(config.rounds):
        for label, task in tasks.items():
            seconds[label].append(task())
    trials = {label: config.trials * (config.seeds if label == several else 1) for label in tasks}
    rows = [_row(label, seconds[label], trials[label]) for label in tasks]
    _print(rows)
    study.write({"tasks": rows})
    return 0


def _divide_cpu(count: int) -> None:
    from jaxhybrid.runtime import devices  # Imports JAX, which a refused argument does not wait for.

    devices.divide_cpu(count)


def _task(config: Config, variant: str, *, seeds: int = 1, devices: int = 1) -> Callable[[], tuple[float, float]]:
    """Compiles an iteration and returns what times one: seconds of the clock, and of the processor."""
    import jax
    import numpy as np

    from jaxhybrid.envs import city, city_trials
    from jaxhybrid.sharding import BATCH_AXIS
    from jaxhybrid.systems import dream

    changes: dict[str, Any] = {
        "trials": config.trials,
        "trials_per_iteration": config.trials,
        "parallel_trials": config.parallel_trials,
        # Both agents learn from the first trial, the explorer too, as they do in the larger part of a run.
        "exploration_starts": 0,
        "execution_starts": 0,
        **VARIANTS[variant],
    }
    numbers = dataclasses.replace(dream.presets["dream"], **changes)
    system = dream.make(numbers, city_trials.environment(city.make("distraction")))
    init, step = system.init, system.step
    keys = jax.random.key(0)
    if seeds > 1:
        init, step = jax.vmap(system.init), jax.vmap(system.step, in_axes=(0, None))
        keys = jax.random.split(keys, seeds)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (BATCH_AXIS,))
    with jax.set_mesh(mesh) if devices > 1 else contextlib.nullcontext():
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()) if devices > 1 else None
        state = jax.jit(init, out_shardings=everywhere)(keys)
        compiled = jax.jit(step, donate_argnums=0, out_shardings=everywhere).lower(state, None).compile()
    held = [jax.block_until_ready(compiled(state, None)[0])]

    def timed() -> tuple[float, float]:
        clock, processor = time.perf_counter(), time.process_time()
        held[0] = jax.block_until_ready(compiled(held[0], None)[0])
        return time.perf_counter() - clock, time.process_time() - processor

    return timed


def _row(label: str, seconds: Sequence[tuple[float, float]], trials: int) -> dict[str, Any]:
    clock, processor = zip(*seconds, strict=True)
    return {
        "task": label,
        "trials_per_second": trials / statistics.median(clock),
        "slowest": trials / max(clock),
        "fastest": trials / min(clock),
        "processor_ms_per_trial": 1e3 * statistics.median(processor) / trials,
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = rich.table.Table("task", "trials/s, median (range)", "processor, ms a trial", "of the first")
    for row in rows:
        cost = row["processor_ms_per_trial"]
        table.add_row(
            row["task"],
            f"{row['trials_per_second']:.1f} ({row['slowest']:.1f} - {row['fastest']:.1f})",
            f"{cost:.1f}",
            f"{cost / rows[0]['processor_ms_per_trial']:.2f}",
        )
    rich.console.Console(width=120).print(table)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
