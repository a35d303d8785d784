"""What the gradient-error study says: the Monte-Carlo check and the summary over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from jaxhybrid.runtime import console, records

__all__ = ["monte_carlo_check", "progress", "quantiles", "write_summary"]

Rows = Sequence[Mapping[str, Any]]
_GROUP = ("gamma", "transitions", "model", "critic", "horizon")
_SUMMARISED = (
    "l1_truncated",
    "l1_full",
    "cosine_truncated",
    "cosine_full",
    "l2_truncated",
    "lemma_bound",
    "model_error",
    "critic_error",
)


def progress(shown: bool) -> rich.progress.Progress:
    """Returns a bar of configurations; drawn only where stderr is a terminal."""
    disable = not (shown and console.CONSOLE.is_terminal)
    return rich.progress.Progress(console=console.CONSOLE, transient=True, disable=disable)


def monte_carlo_check(rows: Rows) -> dict[str, Any]:
    """Compares the plain Monte-Carlo mean of the true model with the exact critic to the truncated gradient.

    Draws of all seeds are pooled, at one data-set size, since this combination uses no data.

    Returns:
      The number of coordinates, the largest ``|mean - truth| / standard error`` among them, and the largest standard
      error relative to the truth.
    """
    plain = [row for row in rows if (row["model"], row["critic"]) == ("true", "exact")]
    plain = [row for row in plain if row["transitions"] == plain[0]["transitions"]]
    scores, relative = [], []
    for members in _grouped(plain).values():
        mean = np.mean([row["gradient"] for row in members], axis=0)
        # Each seed has as many draws as the others, so the squared errors of their means add up.
        error = np.sqrt(np.sum([np.square(row["standard_error"]) for row in members], axis=0)) / len(members)
        known = np.asarray(members[0]["truncated"])
        # At horizon 0 with the exact critic some coordinates hardly vary: float32 rounding is all that is left.
        error = np.maximum(error, 1e-5 * np.abs(known))
        scores += list(np.abs(mean - known) / error)
        relative += list(error / np.abs(known))
    return {
        "coordinates": len(scores),
        "largest_z": float(np.max(scores)),
        "largest_relative_standard_error": float(np.max(relative)),
    }


def write_summary(rows: Rows, check: Mapping[str, Any], out: Path) -> None:
    """Writes summary.json: median, 10th and 90th percentile over seeds of every configuration, and the check."""
    summary = []
    for group, members in _grouped(rows).items():
        row = dict(zip(_GROUP, group)) | {"seeds": len(members)}
        for name in _SUMMARISED:
            row[name] = [float(f"{value:.4g}") for value in quantiles([m[name] for m in members])]
        summary.append(row)
    text = ",\n  ".join(json.dumps(records.jsonable(row), allow_nan=False) for row in summary)
    body = f'{{"monte_carlo_check": {json.dumps(check)},\n "quantiles": [0.5, 0.1, 0.9],\n "rows": [\n  {text}]}}\n'
    (out / "summary.json").write_text(body, encoding="utf-8")


def _grouped(rows: Rows) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    return groups


def quantiles(values: Sequence[float]) -> np.ndarray:
    """Returns the median, the 10th and the 90th percentile."""
    return np.quantile(np.asarray(values, np.float64), [0.5, 0.1, 0.9])
