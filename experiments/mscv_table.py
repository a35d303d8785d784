"""Table 1 of MSCV and its curves: iterations until each method's return passes the task's threshold.

Reads the runs of ``python -m experiments mscv --method all``: ``--runs`` is a directory with one run per method. A
method has *reached* the threshold at the first iteration at which the return of the episodes that ended in it
(undiscounted, of the policy that explores), averaged over this and the two iterations before, is at or above it. The
returns of the last ten iterations are compared with TRPO's: on the seeds that both have, which start alike (paired t),
or as independent runs where the other is another library's (Welch). Writes table1.json and curves.png there, or
where ``--out`` says.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
import tyro

from experiments._mscv.files import new_pair
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, curves, plots, records
from jaxhybrid.runtime.statistics import mean_difference

__all__ = ["TABLE", "THRESHOLDS", "main", "published", "reached", "table"]

THRESHOLDS = {"swimmer": 90.0, "reacher": -7.0, "walker": 2500.0, "hopper": 2000.0}
"""Of the paper's table 1."""
TABLE = "table1.json"
"""Name of the table among the runs."""
_PAPER = {"swimmer": (21, 30), "reacher": (34, 42), "walker": (167, 279), "hopper": (35, 57)}
# Ours, and the other library's, of the benchmark.
_STUDIES = ("mscv", "trpo_returns")
_WINDOW = 3
_BASE = "trpo"
_METRIC = "collect/episode_return"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    runs: str
    """Directory with one run per method."""
    threshold: float | None = None
    """Return to reach; by default the paper's for the task."""
    out: str | None = None
    """File of the table, with the curves as .png beside it; by default table1.json and curves.png among the runs."""


def main(argv: Sequence[str]) -> int:
    """Prints the table and draws the curves.

    Args:
      argv: see ``--help``.

    Returns:
      The exit code.

    Raises:
      InputError: no runs there, of another study, a sweep, of several environments, without a threshold, or with a
        table already; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments mscv_table", description=__doc__)
    directory = Path(arguments.runs).expanduser()
    identities = _identities(directory)
    env = next(iter(identities.values()))["env"]
    task = env.rpartition("/")[2]
    threshold = published(env) if arguments.threshold is None else arguments.threshold
    if threshold is None:
        raise InputError(f"threshold is missing: the paper has none for {env!r}, so name one with --threshold.")
    out, picture = new_pair(arguments.out, directory, TABLE, "curves.png")
    curve = {method: curves.of_records(_in_one(directory / method), _METRIC, method) for method in identities}
    rows = {method: reached(each, threshold) for method, each in curve.items()}
    if _BASE in rows:
        for method in rows.keys() - {_BASE}:
            ours, base = identities[method], identities[_BASE]
            rows[method]["minus_trpo"] = _minus_trpo(rows[method], rows[_BASE], ours, base)
    facts = {
        "env": env,
        "threshold": threshold,
        "window": _WINDOW,
        "iterations_to_threshold": rows,
        "paper": _PAPER.get(task),
    }
    text = json.dumps(records.jsonable(facts), indent=1, allow_nan=False)
    out.write_text(text + "\n", encoding="utf-8")
    rich.console.Console(width=100).print(table(rows, env, threshold, _PAPER.get(task)))
    plots.learning_curves(curve, picture, metric=_METRIC, title=env, reference=("threshold", threshold))
    return 0


def published(env: str) -> float | None:
    """Returns the threshold that the paper has for an environment, None where it has none."""
    return THRESHOLDS.get(env.rpartition("/")[2])


def reached(curve: curves.Curve, threshold: float) -> dict[str, Any]:
    """When the smoothed return of each seed passed the threshold.

    Args:
      curve: of returns, one row per iteration.
      threshold: to reach.

    Returns:
      ``iterations`` of every seed (None: not reached), their ``median`` and ``quartiles`` over seeds (None where that
      is a seed that did not reach it), how many iterations there were, and the mean return over the ``last`` ten.
    """
    count = len(curve.values)
    smoothed = np.stack([curve.values[max(0, i - _WINDOW + 1) : i + 1].mean(axis=0) for i in range(count)])
    passed = (smoothed >= threshold) & (np.arange(count) >= _WINDOW - 1)[:, None]
    first = np.where(passed.any(axis=0), np.argmax(passed, axis=0) + 1.0, np.inf)
    # Nearest ranks: between a number and never there is no mean.
    low, median, high = (np.quantile(first, q, method="inverted_cdf") for q in (0.25, 0.5, 0.75))

    def known(x: Any) -> int | None:
        return int(x) if np.isfinite(x) else None

    return {
        "iterations": [known(x) for x in first],
        "median": known(median),
        "quartiles": [known(low), known(high)],
        "total": count,
        "last": [round(float(x), 2) for x in curve.values[-10:].mean(axis=0)],
    }


def _minus_trpo(
    row: Mapping[str, Any], base_row: Mapping[str, Any], run: Mapping[str, Any], base_run: Mapping[str, Any]
) -> list[float] | None:
    """`mean_difference` of two rows, on common seeds where both runs are of the same study, by their identities."""
    ours, base = row["last"], base_row["last"]
    paired = run["study"] == base_run["study"]
    if paired:
        rows = ((run, row), (base_run, base_row))
        by_seed = [dict(zip(each["seeds"], of["last"], strict=True)) for each, of in rows]
        common = sorted(by_seed[0].keys() & by_seed[1].keys())
        ours, base = ([found[seed] for seed in common] for found in by_seed)
    found = mean_difference(ours, base, paired=paired)
    return found and [round(value, 2) for value in found]


def table(
    rows: Mapping[str, Mapping[str, Any]], env: str, threshold: float, paper: tuple[int, int] | None
) -> rich.table.Table:
    """Returns the table that is printed."""
    claim = f"; the paper: MSCV {paper[0]}, TRPO {paper[1]}" if paper else ""
    shown = rich.table.Table(
        title=f"Iterations until the return on {env} is {threshold:g}, over {_WINDOW} iterations{claim}"
    )
    for name in ("method", "seeds", "reached", "median", "quartiles", "return, last 10", "minus TRPO, 95 %"):
        shown.add_column(name, justify="left" if name == "method" else "right")
    for method, row in rows.items():
        never = f"> {row['total']}"
        low, high = (never if x is None else str(x) for x in row["quartiles"])
        gap = row.get("minus_trpo")
        shown.add_row(
            method,
            str(len(row["iterations"])),
            str(sum(x is not None for x in row["iterations"])),
            never if row["median"] is None else str(row["median"]),
            f"{low} to {high}",
            f"{np.mean(row['last']):.1f}",
            f"{gap[0]:.1f} [{gap[1]:.1f}, {gap[2]:.1f}]" if gap else "",
        )
    return shown


def _identities(directory: Path) -> dict[str, dict[str, Any]]:
    """What decides the numbers of each method's run: runs of the studies that are compared, on one environment."""
    found = sorted(path.parent for path in directory.glob(f"*/{records.METRICS}"))
    if not found:
        raise InputError(f"runs={str(directory)!r} has no run in it: name what --method all wrote.")
    identities = {run.name: records.identity(run) for run in found}
    for method, identity in identities.items():
        if identity.get("study") not in _STUDIES:
            raise InputError(
                f"runs={str(directory)!r} has a run of the study {identity.get('study')!r} in {method!r}, and the "
                f"table is of {' and '.join(_STUDIES)}: move it elsewhere."
            )
        if identity.get("sweep"):
            raise InputError(
                f"runs={str(directory)!r} has a sweep in {method!r}, whose numbers are not seeds: move it elsewhere."
            )
    names = {identity["env"] for identity in identities.values()}
    if len(names) > 1:
        raise InputError(f"runs={str(directory)!r} has runs on {', '.join(sorted(names))}: compare one environment.")
    return identities


def _in_one(directory: Path) -> list[dict[str, Any]]:
    """Records without the first, the untrained policy's, whose iteration collected nothing."""
    return [row for row in records.read(directory) if row.get("iteration", 0) > 0]


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
