"""A metric of one or several runs as a curve over real environment steps, or over iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import records

__all__ = [
    "COUNTERS",
    "ITERATIONS",
    "STEPS",
    "Curve",
    "Records",
    "axis_of",
    "common_axis",
    "merged",
    "metric_names",
    "of_records",
    "of_runs",
    "until",
]

STEPS, ITERATIONS = "environment steps", "iterations"
COUNTERS = {STEPS: "env/steps", ITERATIONS: "iteration"}
"""Which metric counts along an axis."""

Records = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
    """Values ``[K, S]`` of ``S`` seeds at ``K`` ascending steps ``[K]`` along an axis; every value is finite."""

    steps: np.ndarray
    values: np.ndarray
    axis: str = STEPS


def axis_of(rows: Records) -> str:
    """Returns what to draw a run over: `STEPS`, or `ITERATIONS` where nothing is collected after the first of them."""
    learning = [row["env/steps"] for row in rows if row.get("iteration") and "env/steps" in row]
    still = len(learning) > 1 and np.array_equal(learning[0], learning[-1])
    return ITERATIONS if still else STEPS


def of_records(rows: Records, metric: str, label: str) -> Curve:
    """Returns the curve of a run, over its `axis_of`, at the records where the metric of every seed is finite.

    Args:
      rows: of `records.read`.
      metric: a name among those of the records.
      label: what errors call the run.

    Raises:
      InputError: no record has the metric (the nearest names are given), or none has it finite, or it is no number.
    """
    if not rows:
        raise InputError(f"{label!r} has no records yet: let the run begin first.")
    present = [row for row in rows if metric in row]
    if not present:
        raise unknown(f"metric of {label!r}", metric, metric_names(rows))
    axis = axis_of(rows)
    counter = COUNTERS[axis]
    found: dict[float, np.ndarray] = {}
    for row in present:
        try:
            values = np.atleast_1d(np.asarray(row[metric], np.float64))
            steps = float(np.max(row[counter]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{label!r} has a record whose {metric!r} or {counter!r} is no number.") from None
        if np.all(np.isfinite(values)):
            found[steps] = values
    if not found:
        raise InputError(f"{label!r} has no finite {metric!r} to draw.")
    if len({values.shape for values in found.values()}) > 1:
        raise InputError(f"{label!r} has records of {metric!r} with different numbers of seeds.")
    ascending = sorted(found)
    return Curve(np.asarray(ascending), np.stack([found[steps] for steps in ascending]), axis)


def of_runs(directories: Iterable[Path | str], metric: str, label: str, columns: slice = slice(None)) -> Curve:
    """Returns the curve of runs that differ in the seed, at the steps that all of them share.

    Args:
      directories: of the runs.
      metric: a name among those of the records.
      label: what errors call the runs.
      columns: which members of each run, by default all.

    Raises:
      InputError: as for `of_records` and `merged`, or a directory holds no records.
    """
    each = [of_records(records.read(Path(d)), metric, str(d)) for d in directories]
    return merged([curve._replace(values=curve.values[:, columns]) for curve in each], label)


def merged(curves: Sequence[Curve], label: str) -> Curve:
    """Returns one curve with the seeds of all, at the steps that all of them share.

    Raises:
      InputError: they share no step, or not even the axis.
    """
    axis = common_axis({f"{label} ({i})": curve for i, curve in enumerate(curves, start=1)})
    shared = np.asarray(sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves))))
    if not shared.size:
        raise InputError(f"the runs of {label!r} share no step: give each a label of its own.")
    parts = [curve.values[np.isin(curve.steps, shared)] for curve in curves]
    return Curve(shared, np.concatenate(parts, axis=1), axis)


def until(curve: Curve, end: float) -> Curve:
    """Returns the part of a curve up to and with ``end`` steps along its axis."""
    kept = curve.steps <= end
    return curve._replace(steps=curve.steps[kept], values=curve.values[kept])


def common_axis(curves: Mapping[str, Curve]) -> str:
    """Returns the axis that all curves have.

    Args:
      curves: by label.

    Raises:
      InputError: some run over environment steps and some over iterations, which cannot be compared; names one of each.
    """
    labels = {curve.axis: label for label, curve in curves.items()}
    if len(labels) > 1:
        listed = " and ".join(f"{label!r} over {axis}" for axis, label in labels.items())
        raise InputError(
            f"{listed} cannot be compared: a run over iterations collects nothing after its start. Compare those of "
            "one kind at a time."
        )
    return next(iter(labels))


def metric_names(rows: Records) -> list[str]:
    """Returns the names of all metrics of a run, sorted."""
    return sorted({name for row in rows for name in row} - {"iteration", "env/steps"})
