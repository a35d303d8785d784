"""What runs of DREAM logged as curves over trials or steps, from directories or records, and such records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import outputs, records, strict_json

__all__ = ["STEPS", "TRIALS", "Curve", "Group", "curve", "new_files", "read", "record"]

TRIALS = "env/trials"
STEPS = "env/steps"
Group = list[dict[str, np.ndarray]]
"""Runs or seeds; of each, values over iterations ``[K]`` by metric, not a number where there was none."""
Curve = tuple[np.ndarray, np.ndarray]
"""Trials or steps ``[K]``, and values of several seeds at them ``[K, S]``."""


def read(label: str, paths: Sequence[Path]) -> Group:
    """Returns what runs logged.

    Args:
      label: of the group, for messages.
      paths: directories of runs, or files that `record` wrote.

    Raises:
      InputError: a path that is neither.
    """
    return [seed for path in paths for seed in (_recorded(label, path) if path.suffix == ".json" else _logged(path))]


def curve(
    label: str, group: Group, metric: str, *, against: Literal["trials", "steps"] = "trials", until: int | None = None
) -> Curve:
    """Returns a metric of all seeds of a group at the same trials or steps.

    Tests are after the same trials in every seed, and these are what is returned; they are after other numbers of steps
    in each, so that between two tests of a seed its values are taken from the straight line, at as many steps as the
    seed with fewest tests has.

    Args:
      label: of the group, for messages.
      group: of runs or seeds.
      metric: its name; tests without it are left out.
      against: what the curve is over.
      until: trials or steps after which it ends; None: where the shortest run does.

    Raises:
      InputError: no trials that all seeds share, a record without steps, or a seed that ends before ``until``.
    """
    name = {"trials": TRIALS, "steps": STEPS}[against]
    parts = []
    for seed in group:
        if name not in seed:
            raise InputError(f"a record of {label!r} has no {name!r}: draw it against trials.")
        values = seed.get(metric, np.full(len(seed[TRIALS]), np.nan))
        there = np.isfinite(values)
        if not there.any():
            raise InputError(f"a run of {label!r} has no finite {metric!r}.")
        parts.append((seed[name][there], values[there]))
    last = int(min(at[-1] for at, _ in parts))
    if until is not None and until > last:
        raise InputError(f"until={until}: a run of {label!r} ends after {last} {against} with {metric!r}.")
    first, end = max(at[0] for at, _ in parts), last if until is None else until
    if end < first:
        raise InputError(f"the runs of {label!r} have no {metric!r} in common up to {end} {against}.")
    if against == "steps":
        grid = np.linspace(first, end, min(int(np.sum(at <= end)) for at, _ in parts))
        return grid, np.stack([np.interp(grid, at, values) for at, values in parts], axis=1)
    tests = [{int(t): value for t, value in zip(at, values, strict=True)} for at, values in parts]
    shared = sorted(t for t in set.intersection(*(set(part) for part in tests)) if t <= end)
    if not shared:
        raise InputError(f"the runs of {label!r} share no trials with a finite {metric!r}.")
    return np.asarray(shared), np.array([[part[at] for part in tests] for at in shared])


def record(group: Group, metrics: Sequence[str]) -> str:
    """Returns some metrics of a group, and their trials and steps, as JSON: a list for each seed, null for none."""

    def listed(values: np.ndarray) -> list[float | None]:
        return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]

    seeds: Mapping[str, Any] = {
        str(i): {name: seed[name].astype(int).tolist() for name in (TRIALS, STEPS) if name in seed}
        | {m: listed(seed[m]) for m in metrics if m in seed and m != STEPS}
        for i, seed in enumerate(group)
    }
    return json.dumps(seeds, allow_nan=False)


def new_files(directory: str, labels: Iterable[str]) -> dict[str, Path]:
    """Returns a file for the record of every label in a directory.

    Raises:
      InputError: one exists or cannot be written, or is that of two labels.
    """
    files: dict[str, Path] = {}
    for label in labels:
        words = re.sub(r"\W+", "_", label).strip("_") or "runs"
        file = outputs.new_file(str(Path(directory) / f"{words}.json"), field="records")
        if file in files.values():
            raise InputError(f"records={str(file)!r} would be of two labels, one of them {label!r}: name it otherwise.")
        files[label] = file
    return files


def _logged(run: Path) -> Group:
    if (run / records.MANIFEST).exists() and records.identity(run, field="runs").get("sweep"):
        raise InputError(f"runs={str(run)!r} is a sweep, whose numbers are not seeds: name a run without --sweep.")
    rows = [row for row in records.read(run) if TRIALS in row]
    if not rows:
        raise InputError(f"runs={str(run)!r} has logged no trials: is it a run of python -m experiments dream?")
    names = {name for row in rows for name in row}
    columns = {name: [np.atleast_1d(np.asarray(row.get(name, np.nan), float)) for row in rows] for name in names}
    seeds = max(len(each) for each in columns[TRIALS])
    return [
        {name: np.array([x[min(i, len(x) - 1)] for x in column]) for name, column in columns.items()}
        for i in range(seeds)
    ]


def _recorded(label: str, path: Path) -> Group:
    try:
        seeds = strict_json.read(path)
        group = [{name: np.array(values, float) for name, values in seed.items()} for seed in seeds.values()]
        if not group or any(TRIALS not in seed for seed in group):
            raise ValueError(f"holds no seed with {TRIALS}")
        if any(seed[TRIALS].shape != x.shape or x.ndim != 1 for seed in group for x in seed.values()):
            raise ValueError("holds no lists of one length for each seed")
    except (AttributeError, TypeError, ValueError) as reason:
        raise InputError(f"{label}={str(path)!r} is no record of runs: {reason}.") from None
    return group
