"""What the gradient-error study says: the Monte-Carlo check, the summary over seeds and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from jaxhybrid.runtime import console, records

__all__ = ["draw", "monte_carlo_check", "progress", "write_summary"]

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
# Colour, line and marker of each combination of model and critic.
_LINES = {
    ("true", "exact"): ("0.35", ":", "x"),
    ("true", "learned"): ("#0072B2", "-", "o"),
    ("learned", "exact"): ("#D55E00", "--", "s"),
    ("learned", "learned"): ("#009E73", "-.", "^"),
}


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
            row[name] = [float(f"{value:.4g}") for value in _quantiles([m[name] for m in members])]
        summary.append(row)
    text = ",\n  ".join(json.dumps(records.jsonable(row), allow_nan=False) for row in summary)
    body = f'{{"monte_carlo_check": {json.dumps(check)},\n "quantiles": [0.5, 0.1, 0.9],\n "rows": [\n  {text}]}}\n'
    (out / "summary.json").write_text(body, encoding="utf-8")


def draw(rows: Rows, path: Path) -> None:
    """Draws the errors of one discount over the horizon: a column per data-set size, a row per measure of error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["transitions"] for row in rows})
    seeds = len({row["seed"] for row in rows})
    measures = (
        ("l1_full", "relative L1 error\nagainst the full gradient", lambda v: v),
        ("l1_truncated", "relative L1 error\nagainst the truncated gradient", lambda v: v),
        ("cosine_full", "1 - cosine\nwith the full gradient", lambda v: 1.0 - v),
    )
    figure, axes = plt.subplots(
        3,
        len(counts),
        figsize=(1.6 + 3.4 * len(counts), 9.0),
        sharex=True,
        sharey="row",
        layout="constrained",
        squeeze=False,
    )
    for column, count in enumerate(counts):
        for line, (measure, label, transform) in enumerate(measures):
            panel = axes[line, column]
            for (model, critic), style in _LINES.items():
                chosen = [r for r in rows if (r["transitions"], r["model"], r["critic"]) == (count, model, critic)]
                _line(panel, chosen, measure, transform, style, label=f"{model} model, {critic} critic")
            panel.set_yscale("log")
            panel.set_xscale("symlog", linthresh=1.0)
            panel.grid(True, alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(label)
        ticks = sorted({row["horizon"] for row in rows})
        axes[-1, column].set_xticks(ticks, [str(h) for h in ticks])
        axes[-1, column].minorticks_off()
        axes[-1, column].set_xlabel("horizon H (model steps before the critic)")
        axes[0, column].set_title(f"{count} transitions")
    figure.suptitle(
        f"Error of the model-augmented gradient, double integrator, gamma = {rows[0]['gamma']:g}\n"
        f"median of {seeds} seeds, band: 10th to 90th percentile"
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    labels[0] += " (middle row: Monte-Carlo error)"
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(panel: Any, rows: Rows, measure: str, transform: Any, style: tuple[str, str, str], label: str) -> None:
    horizons = sorted({row["horizon"] for row in rows})
    values = [[transform(row[measure]) for row in rows if row["horizon"] == h] for h in horizons]
    quantiles = np.array([_quantiles(v) for v in values]).T
    # No error at all (a learned model that is not used, at H = 0) has no place on a logarithmic axis.
    middle, low, high = np.where(quantiles > 1e-7, quantiles, np.nan)
    colour, dash, marker = style
    panel.plot(horizons, middle, dash, color=colour, marker=marker, markersize=4, label=label)
    panel.fill_between(horizons, low, high, color=colour, alpha=0.15, linewidth=0)


def _grouped(rows: Rows) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    return groups


def _quantiles(values: Sequence[float]) -> np.ndarray:
    return np.quantile(np.asarray(values, np.float64), [0.5, 0.1, 0.9])
