"""The figure of the gradient-error study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments._gradient_error.report import quantiles
from experiments._gradient_error.sweep import errors

__all__ = ["draw"]

Rows = Sequence[Mapping[str, Any]]
# Colour, line and marker of each combination of model and critic.
_LINES = {
    ("true", "exact"): ("0.35", ":", "x"),
    ("true", "learned"): ("#0072B2", "-", "o"),
    ("learned", "exact"): ("#D55E00", "--", "s"),
    ("learned", "learned"): ("#009E73", "-.", "^"),
}


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
                if (model, critic) == ("true", "exact") and measure != "l1_truncated":
                    chosen = [dict(row, **_closed_form(row)) for row in chosen]
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
    labels[0] += " (closed form; middle row: Monte-Carlo error)"
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _closed_form(row: Mapping[str, Any]) -> dict[str, float]:
    """The errors of the truncated gradient itself, free of the noise of a mean over draws."""
    l1, cosine = errors(row["truncated"], row["full"])
    return {"l1_full": l1, "cosine_full": cosine}


def _line(panel: Any, rows: Rows, measure: str, transform: Any, style: tuple[str, str, str], label: str) -> None:
    horizons = sorted({row["horizon"] for row in rows})
    values = [[transform(row[measure]) for row in rows if row["horizon"] == h] for h in horizons]
    bands = np.array([quantiles(v) for v in values]).T
    # No error at all (a learned model that is not used, at H = 0) has no place on a logarithmic axis.
    middle, low, high = np.where(bands > 1e-7, bands, np.nan)
    colour, dash, marker = style
    panel.plot(horizons, middle, dash, color=colour, marker=marker, markersize=4, label=label)
    panel.fill_between(horizons, low, high, color=colour, alpha=0.15, linewidth=0)
