"""The table and the figure of the gradient-variance benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table

__all__ = ["draw", "table"]

Rows = Sequence[Mapping[str, Any]]


def table(rows: Rows, title: str) -> rich.table.Table:
    """Returns the table that is printed: bias against both truths, variance, signal and cost."""
    shown = rich.table.Table(title=title)
    for name in ("estimator", "estimates", "bias / s.e.", "vs full: rel. L1", "cosine"):
        shown.add_column(name, justify="left" if name in ("estimator", "estimates") else "right", no_wrap=True)
    for name in ("var K1", "var K2", "total var", "SNR", "draws/s", "var x cost"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row["estimator"],
            row["target"],
            " ".join(f"{z:+.1f}" for z in row["bias_z"]),
            f"{row['relative_l1_full']:.4f}",
            f"{row['cosine_full']:.4f}",
            *(f"{v:.3g}" for v in row["variance"]),
            f"{row['total_variance']:.3g}",
            f"{row['signal_to_noise']:.2g}",
            f"{row['draws_per_second'] / 1e6:.2f} M",
            f"{row['total_variance'] * row['wall_seconds_per_draw']:.2g}",
        )
    return shown


def draw(rows: Rows, title: str, path: Path) -> None:
    """Draws variance and bias of every estimator, and its error against the time spent on draws."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (variances, biases, errors) = plt.subplots(
        1, 3, figsize=(15.0, 5.6), layout="constrained", width_ratios=(1.0, 1.0, 1.25)
    )
    names = [row["estimator"] for row in rows]
    positions = np.arange(len(rows))[::-1]
    # Paul Tol's "muted" scheme has a colour for every estimator, told apart by most kinds of colour vision.
    muted = (
        "#332288",
        "#88CCEE",
        "#44AA99",
        "#117733",
        "#999933",
        "#DDCC77",
        "#CC6677",
        "#882255",
        "#AA4499",
        "#777777",
    )
    colours = [muted[i % len(muted)] for i in range(len(rows))]
    styles = ["-" if "MAAC" not in name else "--" for name in names]
    scale = float(np.linalg.norm(rows[0]["full"]))
    variances.barh(positions, [row["total_variance"] / scale**2 for row in rows], color=colours)
    variances.set_xlabel("variance of one draw / |full gradient|$^2$")
    variances.set_yticks(positions, names)
    biases.barh(positions, [np.linalg.norm(row["bias_full"]) / scale for row in rows], color=colours)
    # Below one standard error of the mean nothing can be said about a bias.
    floors = [np.linalg.norm(row["standard_error"]) / scale for row in rows]
    biases.plot(floors, positions, "|", color="black", markersize=13, label="standard error of the mean")
    biases.set_yticks(positions, [])
    biases.set_xlabel("|bias against the full gradient| / |full gradient|")
    biases.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.09), fontsize=9)
    seconds = np.geomspace(1e-5, 10.0, 100)
    for row, colour, style in zip(rows, colours, styles):
        # The bias that the closed forms give: the measured one ends in the noise of its own mean.
        bias = np.linalg.norm(np.asarray(row["truth"]) - np.asarray(row["full"]))
        error = np.sqrt(bias**2 + row["total_variance"] * row["wall_seconds_per_draw"] / seconds) / scale
        errors.plot(seconds, error, style, color=colour, label=row["estimator"])
    errors.set_xlabel("seconds spent on draws (on the machine of this run)")
    errors.set_ylabel("root-mean-square error / |full gradient|")
    errors.set_yscale("log")
    errors.legend(frameon=False, fontsize=8, loc="upper right")
    for panel in (variances, biases, errors):
        panel.set_xscale("log")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)
