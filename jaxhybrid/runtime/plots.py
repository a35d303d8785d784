"""Learning curves whose band says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime.curves import STEPS, Curve, Records, common_axis, of_records, of_runs
from jaxhybrid.runtime.statistics import interquartile_interval, interquartile_mean, mean_interval

__all__ = ["learning_curves", "plain"]

Centre = Literal["mean", "interquartile mean"]
# Okabe and Ito's colours, told apart by every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")


def learning_curves(
    runs: Mapping[str, Curve | Records | Path | str | Sequence[Path | str]],
    path: Path | str,
    *,
    metric: str = "eval/return",
    centre: Centre = "mean",
    title: str | None = None,
    ylabel: str | None = None,
    reference: tuple[str, float] | None = None,
) -> None:
    """Draws one curve per label against real environment steps, or iterations, over the seeds, in a 95 % interval.

    The curve is the mean in Student's t interval, or the interquartile mean in its bootstrap interval. A single seed is
    a plain line. The legend says which of the three it is.

    Args:
      runs: label to a curve, the records of a run, its directory, or the directories of runs that differ in the seed.
      path: the PNG file to write.
      metric: which metric; records without it are skipped.
      centre: what is drawn of several seeds.
      title: of the figure.
      ylabel: of the vertical axis; by default the metric.
      reference: label and value of a horizontal line, for instance the return of a random policy.

    Raises:
      InputError: no label, a label without a single finite value of ``metric``, or curves over different axes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not runs:
        raise InputError("runs is empty: give at least one label.")
    curves = {label: _curve(label, source, metric) for label, source in runs.items()}
    axis = common_axis(curves)
    interval, band = _INTERVALS[centre]
    figure, axes = plt.subplots(figsize=(7.2, 4.5), layout="constrained")
    for i, (label, (steps, values, _)) in enumerate(curves.items()):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS) % len(_STYLES)]
        middle, low, high = interval(values)
        count = values.shape[1]
        what = f"{centre} of {count} seeds, band: 95 % {band} interval" if count > 1 else "1 seed"
        marker = "o" if len(steps) <= 40 else None
        axes.plot(steps, middle, style, color=colour, marker=marker, markersize=3.5, label=plain(f"{label} ({what})"))
        if count > 1:
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    if reference is not None:
        axes.axhline(reference[1], color="0.45", linestyle="--", linewidth=1.2, label=plain(reference[0]))
    axes.set_xlabel(f"real {axis}" if axis == STEPS else axis)
    axes.set_ylabel(plain(ylabel or _NAMES.get(metric, metric)))
    axes.set_title(plain(title or ""))
    for ticks in (axes.xaxis, axes.yaxis):
        ticks.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plain(text: str) -> str:
    """Returns a text for Matplotlib in which a dollar sign, as names from files may have, begins no formula."""
    return text.replace("\\", "/").replace("$", r"\$")


_NAMES = {"eval/return": "evaluation return (deterministic policy)", "collect/episode_return": "training return"}


def _curve(label: str, source: Any, metric: str) -> Curve:
    if isinstance(source, Curve):
        return source
    if isinstance(source, str | Path):
        return of_runs([source], metric, label)
    if all(isinstance(item, Mapping) for item in source):
        return of_records(source, metric, label)
    return of_runs(source, metric, label)


def _interquartile(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    middle = interquartile_mean(values)
    low, high = interquartile_interval(values) or (middle, middle)
    return middle, low, high


_INTERVALS = {"mean": (mean_interval, "t"), "interquartile mean": (_interquartile, "bootstrap")}
