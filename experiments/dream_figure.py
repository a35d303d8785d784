"""Meta-train and meta-test curves of DREAM and its extensions, from runs of yours: return over trials or steps.

``python -m experiments dream_figure DREAM=runs/a,runs/b gradient=runs/c``: a label and the directories of runs of
``python -m experiments dream`` that differ in the seed, or a file that ``--records`` wrote of them. Prints, for the
last fifth of the run, the mean over tests and seeds with its 95 % t interval over seeds, and how far it is from that of
the first label; and the same at the end, with what every seed has there.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import rich.console
import rich.table
import tyro

from experiments._dream import curves
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, outputs
from jaxhybrid.runtime.statistics import mean_difference, mean_interval

__all__ = ["RETURNS", "late", "main"]

RETURNS = {
    "train/return": "meta-train (no random actions)",
    "test/return": "meta-test",
    "collect/return": "meta-train (as played)",
}
_TITLES = {
    **RETURNS,
    "execution/transition": "the model's error of a step",
    "execution/disambiguation": "disambiguation loss",
    "execution/distance": "distance of two embedded states",
    "execution/explained": "share of the code that is decoded",
}
_LOGARITHMIC = ("execution/transition",)
_REFERENCES = {"knowing the task": 0.8, "walking": 0.3}
_RETURNS = (-2.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is drawn."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """label=directory[,directory ...], one for each curve; a record in the place of directories."""
    metrics: tuple[str, ...] = tuple(RETURNS)
    """One column for each; any name in metrics.jsonl."""
    against: Literal["trials", "steps"] = "trials"
    """What curves are over: trials, or steps of both episodes, between whose tests lines are straight."""
    until: int | None = None
    """Trials or steps after which they end; None: with the shortest run."""
    out: str = "dream.png"
    """File to draw in, such as a .png or .pdf; an existing one is not touched."""
    records: str | None = None
    """Directory to write what was drawn to, a file for each label, from which it can be drawn again."""


def main(argv: Sequence[str]) -> int:
    """Draws the figure; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument of another form, a run without a metric, or an ``out`` that exists or cannot be
        written; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments dream_figure", description=__doc__)
    out = outputs.new_figure(arguments.out)
    groups: dict[str, list[Path]] = {}
    for item in arguments.runs:
        label, equals, listed = item.partition("=")
        if not (label and equals and listed):
            raise InputError(f"runs={item!r} is not of the form label=directory.")
        if label in groups:
            raise InputError(f"runs={item!r} has a label that is given before: put its directories behind that one.")
        groups[label] = [Path(directory).expanduser() for directory in listed.split(",")]
    if not groups:
        raise InputError("runs is empty: name at least one.")
    if not arguments.metrics:
        raise InputError("metrics is empty: name at least one.")
    files = {} if arguments.records is None else curves.new_files(arguments.records, groups)
    logged = {label: curves.read(label, paths) for label, paths in groups.items()}
    drawn = {
        metric: {
            label: curves.curve(label, group, metric, against=arguments.against, until=arguments.until)
            for label, group in logged.items()
        }
        for metric in arguments.metrics
    }
    screen = rich.console.Console(width=120)
    screen.print(_late_table(drawn, arguments.against), _last_table(drawn, arguments.against))
    _draw(drawn, out, arguments.against)
    console.say(f"drawn in {out}")
    for label, file in files.items():
        file.write_text(curves.record(logged[label], arguments.metrics) + "\n")
    return 0


def late(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means ``[S]`` of ``values [K, S]`` over the last fifth of the trials or steps ``at [K]``."""
    return values[at > 0.8 * at[-1]].mean(axis=0)


def _late_table(drawn: Mapping[str, Mapping[str, Any]], against: str) -> rich.table.Table:
    title = f"Means over the last fifth of the {against}, with 95 % t intervals over seeds"
    shown = _table(title, "metric", "runs", "seeds", against, "mean", "minus the first")
    for metric, group in drawn.items():
        base = late(*next(iter(group.values())))
        for i, (label, (at, values)) in enumerate(group.items()):
            seeds = late(at, values)
            gap = mean_difference(seeds, base, paired=False) if i else None
            difference = _interval(*gap) if gap else ""
            shown.add_row(metric, label, str(seeds.size), f"{int(at[-1]):,}", _mean(seeds), difference)
    return shown


def _last_table(drawn: Mapping[str, Mapping[str, Any]], against: str) -> rich.table.Table:
    shown = _table("At the end, with 95 % t intervals over seeds", "metric", "runs", against, "mean", "every seed")
    for metric, group in drawn.items():
        for label, (at, values) in group.items():
            each = "  ".join(_each(values[-1]))
            shown.add_row(metric, label, f"{int(at[-1]):,}", _mean(values[-1]), each)
    return shown


def _table(title: str, *names: str) -> rich.table.Table:
    shown = rich.table.Table(title=title)
    for name in names:
        justify: Literal["left", "right"] = "left" if name in ("metric", "runs", "every seed") else "right"
        shown.add_column(name, justify=justify, no_wrap=name == "metric")
    return shown


def _mean(seeds: np.ndarray) -> str:
    middle, low, high = (float(x[0]) for x in mean_interval(seeds[None]))
    return _interval(middle, low, high) if seeds.size > 1 else _each(seeds)[0]


def _each(seeds: np.ndarray) -> list[str]:
    """Numbers of seeds, with the digits that tell them apart, or, of a single one, those that it has."""
    places = _places(float(np.ptp(seeds) if seeds.size > 1 else np.abs(seeds[0])))
    return [f"{value:.{places}f}" for value in seeds]


def _interval(middle: float, low: float, high: float) -> str:
    places = _places(high - low)
    return f"{middle:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _places(width: float) -> int:
    """Three decimals, or as many as say how far apart numbers are that spread over some width."""
    return max(3, 1 - int(np.floor(np.log10(width)))) if 0.0 < width < np.inf else 3


def _draw(drawn: Mapping[str, Mapping[str, Any]], path: Path, against: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(drawn), figsize=(4.2 * len(drawn), 3.6), squeeze=False, layout="constrained")
    banded = False
    for axis, (metric, group) in zip(axes[0], drawn.items()):
        for label, (at, values) in group.items():
            middle, low, high = mean_interval(values)
            count = values.shape[1]
            (line,) = axis.plot(at, middle, label=f"{label} ({count} seed{'s' if count > 1 else ''})")
            if count > 1:
                banded = True
                axis.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        if metric.endswith("/return"):
            for (name, value), style in zip(_REFERENCES.items(), ("--", ":")):
                axis.axhline(value, color="0.5", linestyle=style, linewidth=1, label=name)
            axis.set_ylim(*_RETURNS)  # the interval of two seeds may be wider than what there is
        if metric in _LOGARITHMIC:
            axis.set_yscale("log")
        axis.set_title(_TITLES.get(metric, metric), fontsize=10)
        axis.set_xlabel(against)
        axis.set_ylabel("return" if metric.endswith("/return") else metric)
        axis.grid(True, alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # As many beside each other as have room, in inches: a letter of this size, and a line with what is around it.
    columns = max(1, int(figure.get_figwidth() / (0.065 * max(map(len, labels)) + 0.6)))
    figure.set_figheight(3.2 + 0.2 * math.ceil(len(labels) / columns))
    title = "bands are 95 % t intervals of the mean over seeds" if banded else None
    legend = {"ncols": columns, "fontsize": 8, "title": title, "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside lower center", **legend)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
