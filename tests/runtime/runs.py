"""Directories of runs that nobody ran."""

from __future__ import annotations

from pathlib import Path

from jaxhybrid.runtime import lock, records


def write(directory: Path, rows, *, env: str = "toy", seed: int = 0, seeds: int = 1, sweep=None, **config) -> Path:
    """Writes a run whose records are ``rows``; ``config`` are its numbers."""
    identity = {"study": "toy", "env": env, "config": config, "num_steps": 3, "sweep": sweep or {}}
    identity["seeds"] = list(range(seed, seed + seeds))
    records.open_run(directory, identity, {}, resume=False)
    with records.Writer(directory, position=0, tensorboard=False) as writer:
        for row in rows:
            writer.write(row)
    lock.release(directory)
    return directory


def rows(*values, every: int = 10):
    """One record per value; a list is one value per seed."""
    return [{"iteration": i, "env/steps": every * i, "eval/return": value} for i, value in enumerate(values)]


def batch_rows(*values, size: int = 500):
    """The same of a run that learns from a batch of ``size`` steps, which are there from the first iteration on."""
    return [row | {"env/steps": size * (row["iteration"] > 0)} for row in rows(*values)]
