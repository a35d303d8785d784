"""Figure 1 of the GMAS paper from runs of yours: return over updates, one column per planning depth of the test.

``python -m experiments gmas_figure "cosine:CRAR=runs/a" "cosine:depth 3=runs/b,runs/c" "l2:CRAR=runs/a"``: the row, a
label and the directories of runs of ``python -m experiments gmas`` that differ in the seed. Prints the final means.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, outputs, records

Curves = dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is drawn."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """row:label=directory[,directory ...], one for each curve."""
    out: str = "gmas.png"
    """File to draw in, such as a .png or .pdf; an existing one is not touched."""
    moves: Literal["greedy", "noisy"] = "greedy"
    """Tests without random moves, or with one in ten as in the papers."""


def main(argv: Sequence[str]) -> int:
    """Draws the figure; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument of another form, a label that is given twice, a sweep, a run that was not tested, or an
        ``out`` that exists or cannot be written; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments gmas_figure", description=__doc__)
    out = outputs.new_figure(arguments.out)
    rows: dict[str, Curves] = {}
    for item in arguments.runs:
        row, colon, rest = item.partition(":")
        label, equals, listed = rest.partition("=")
        if not (row and colon and label and equals and listed):
            raise InputError(f"runs={item!r} is not of the form row:label=directory.")
        if label in rows.setdefault(row, {}):
            raise InputError(f"runs={item!r} has a label that is given before: put its directories behind that one.")
        runs = [_read(Path(directory).expanduser()) for directory in listed.split(",")]
        rows[row][label] = _curves(item, runs, arguments.moves)
    if not rows:
        raise InputError("runs is empty: name at least one.")
    for row, curves in rows.items():
        for label, depths in curves.items():
            ends = ", ".join(f"depth {depth} {_said(values[-1])}" for depth, (_, values) in sorted(depths.items()))
            console.say(f"{row}, {label}: final return {ends}")
    _draw(rows, out, arguments.moves)
    console.say(f"drawn in {out}")
    return 0


def _read(run: Path) -> list[dict[str, Any]]:
    """The records of a run, whose values are those of seeds."""
    if (run / records.MANIFEST).exists() and records.identity(run, field="runs").get("sweep"):
        raise InputError(f"runs={str(run)!r} is a sweep, whose numbers are not seeds: name a run without --sweep.")
    return records.read(run)


def _curves(item: str, runs: Sequence[Sequence[Mapping[str, Any]]], moves: str) -> dict[int, Any]:
    """Updates ``[K]`` and returns ``[K, S]`` by planning depth, at the updates that all runs share."""
    prefix = f"test/{moves}_depth"
    points: dict[int, list[dict[int, np.ndarray]]] = {}
    for rows in runs:
        found: dict[int, dict[int, np.ndarray]] = {}
        for row in rows:
            for name in row:
                if name.startswith(prefix):
                    values = np.atleast_1d(np.asarray(row[name], float))
                    found.setdefault(int(name.removeprefix(prefix)), {})[int(np.max(row["train/updates"]))] = values
        if not found:
            raise InputError(f"runs={item!r} holds a run without {moves} tests: give its config test_depths.")
        for depth, curve in found.items():
            points.setdefault(depth, []).append(curve)
    curves = {}
    for depth, parts in points.items():
        shared = sorted(set.intersection(*(set(part) for part in parts)))
        if shared and len(parts) == len(runs):
            values = np.stack([np.concatenate([part[at] for part in parts]) for at in shared])
            curves[depth] = (np.asarray(shared), values)
    if not curves:
        raise InputError(f"runs={item!r} share no planning depth at the same number of updates.")
    return curves


def _band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds and the half width of its 95 % t interval, ``[K]`` of ``[K, S]``."""
    from scipy import stats

    count = values.shape[-1]
    if count == 1:
        return values[..., 0], np.zeros(values.shape[:-1])
    half = stats.t.ppf(0.975, count - 1) * values.std(axis=-1, ddof=1) / np.sqrt(count)
    return values.mean(axis=-1), half


def _said(values: np.ndarray) -> str:
    mean, half = _band(values)
    return f"{float(mean):.2f}" + (f" +- {float(half):.2f}" if values.size > 1 else "")


def _draw(rows: Mapping[str, Curves], path: Path, moves: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    depths = sorted({depth for curves in rows.values() for curve in curves.values() for depth in curve})
    size = (3.2 * len(depths), 2.6 * len(rows) + 0.6)
    figure, axes = plt.subplots(
        len(rows), len(depths), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    banded = False
    for i, (row, curves) in enumerate(rows.items()):
        for j, depth in enumerate(depths):
            for label, curve in curves.items():
                if depth in curve:
                    updates, values = curve[depth]
                    mean, half = _band(values)
                    banded |= values.shape[1] > 1
                    seeds = "1 seed" if values.shape[1] == 1 else f"{values.shape[1]} seeds"
                    (line,) = axes[i, j].plot(updates, mean, label=f"{label} ({seeds})")
                    axes[i, j].fill_between(updates, mean - half, mean + half, color=line.get_color(), alpha=0.2)
            axes[i, j].set_title(f"{row}, planning depth {depth}", fontsize=9)
            axes[i, j].grid(True, alpha=0.3)
        axes[i, 0].set_ylabel(f"return ({moves})")
        axes[i, -1].legend(frameon=False, fontsize=7)
    figure.supxlabel("updates" + ("; bands are 95 % t intervals of the mean" if banded else ""))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
