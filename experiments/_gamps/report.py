"""What the study says: paired comparisons over seeds for the final and the best policy, and the results file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.progress

from jaxhybrid.runtime import console, records

if TYPE_CHECKING:
    from experiments.gamps import Config

__all__ = ["compare", "grouped", "progress", "stopped_return", "warn_of_stops", "write_results"]

Rows = Sequence[Mapping[str, Any]]


def progress(shown: bool) -> rich.progress.Progress:
    """Returns a bar of settings; drawn only where stderr is a terminal."""
    disable = not (shown and console.CONSOLE.is_terminal)
    return rich.progress.Progress(console=console.CONSOLE, transient=True, disable=disable)


def warn_of_stops(rows: Rows) -> None:
    """Says so when runs ended because a single trajectory was left; their result is the policy they had."""
    ended = [row["seed"] for row in rows if row["stopped"][-1]]
    if ended:
        row = rows[0]
        console.warn(
            f"{row['method']}, {row['trajectories']} trajectories: {len(ended)} of {len(rows)} runs stopped with an "
            "effective sample size of one; their last policy is kept."
        )


def grouped(rows: Rows) -> dict[tuple[str, int, str], list[Mapping[str, Any]]]:
    """Returns the records by topology, number of trajectories and method."""
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["topology"], row["trajectories"], row["method"]), []).append(row)
    return groups


def stopped_return(row: Mapping[str, Any]) -> float:
    """Return of the first policy whose effective sample size is below a tenth of the data, five at least."""
    below = np.flatnonzero(np.asarray(row["effective_sample_size"]) < max(5.0, row["trajectories"] / 10))
    return float(row["returns"][below[0] if len(below) else -1])


def _scores(rows: Rows) -> dict[str, np.ndarray]:
    """Numbers of every run that methods are compared by, ``[S]`` each."""
    returns = np.array([row["returns"] for row in rows], np.float64)
    return {
        "final": returns[:, -1],
        "best": returns.max(axis=1),
        "mean_over_iterations": returns.mean(axis=1),
        "stopped": np.array([stopped_return(row) for row in rows]),
    }


def compare(first: np.ndarray, second: np.ndarray, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Compares two methods run by run with a paired bootstrap over seeds.

    Args:
      first: scores, ``[S]``.
      second: scores of the same seeds, ``[S]``.
      resamples: bootstrap samples.
      seed: of the resampling.

    Returns:
      Mean difference, its central 95 % interval, and the one-sided p-value of "the first is not better".
    """
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(difference), (resamples, len(difference)))
    means = difference[draws].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": _short(difference.mean()),
        "interval": [_short(low), _short(high)],
        # One more than counted: a share of resamples is never evidence beyond their number.
        "p": _short((1 + np.sum(means <= 0)) / (1 + resamples)),
        "wins": int(np.sum(difference > 0)),
    }


def write_results(rows: Rows, config: Config, seed: int, out: Path) -> None:
    """Writes results.json: curves, scores and comparisons of every setting."""
    groups = grouped(rows)
    settings = []
    for (topology, count, method), members in groups.items():
        returns = np.array([row["returns"] for row in members], np.float64)
        entry: dict[str, Any] = {"topology": topology, "trajectories": count, "method": method, "seeds": len(members)}
        entry["mean"] = [_short(v) for v in returns.mean(axis=0)]
        entry["std"] = [_short(v) for v in returns.std(axis=0)]
        if members[0]["cosine"] is not None:
            entry["first_cosine"] = [_short(row["cosine"][0]) for row in members]
        entry["scores"] = {
            name: {"mean": _short(v.mean()), "std": _short(v.std())} for name, v in _scores(members).items()
        }
        entry["stopped_runs"] = int(sum(row["stopped"][-1] for row in members))
        entry["seconds_of_all_seeds"] = _short(members[0]["seconds_of_all_seeds"])
        others = groups.get((topology, count, "gamps")) if method not in ("gamps", "exact") else None
        # A single run is no evidence.
        if others and len(members) > 1:
            ours, theirs = _scores(others), _scores(members)
            entry["gamps_minus_this"] = {name: compare(ours[name], theirs[name], config.resamples) for name in ours}
        settings.append(entry)
    body = ",\n  ".join(json.dumps(records.jsonable(entry), allow_nan=False) for entry in settings)
    head = json.dumps(records.jsonable(dataclasses.asdict(config)), allow_nan=False)
    text = f'{{"config": {head},\n "seed": {seed},\n "settings": [\n  {body}]}}\n'
    (out / "results.json").write_text(text, encoding="utf-8")


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")
