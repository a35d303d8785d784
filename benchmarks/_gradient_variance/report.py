"""The table and the figures of the gradient-variance benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table

__all__ = ["draw", "draw_recorded", "table"]

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
    """Draws variance, bias against the gradient of the return, and cost of every estimator."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13.5, 5.2), layout="constrained", sharey=True)
    variances, biases, seconds = panels
    positions = np.arange(len(rows))[::-1]
    # Okabe and Ito's colours, one for each family of estimators.
    families = {"score": "#0072B2", "pathwise": "#D55E00", "MAAC": "#009E73", "MSCV": "#CC79A7"}
    colours = [
        next(colour for family, colour in families.items() if row["estimator"].startswith(family)) for row in rows
    ]
    scale = float(np.linalg.norm(rows[0]["full"]))
    variances.barh(positions, [row["total_variance"] / scale**2 for row in rows], color=colours)
    variances.set_xlabel("total variance of one draw / |full gradient|$^2$")
    variances.set_xscale("log")
    variances.set_yticks(positions, [row["estimator"] for row in rows])
    errors = [np.linalg.norm(row["standard_error"]) / scale for row in rows]
    bias = [np.linalg.norm(row["bias_full"]) / scale for row in rows]
    biases.barh(positions, bias, color=colours, xerr=errors, capsize=3)
    biases.set_xlabel("|bias against the full gradient| / |full gradient|\n(whisker: standard error)")
    # The standard error of n draws is sqrt(variance / n), so n = 10^4 variance / |mean|^2.
    needed = [
        1e4 * row["total_variance"] * row["wall_seconds_per_draw"] / np.sum(np.square(row["truth"])) for row in rows
    ]
    seconds.barh(positions, needed, color=colours)
    seconds.set_xlabel("seconds of draws until the standard error\nis 1 % of the gradient that is estimated")
    seconds.set_xscale("log")
    for panel in panels:
        panel.grid(True, axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_recorded(rows: Rows, path: Path) -> None:
    """Draws bias, variance and mean squared error of gradients from recordings over the number of trajectories."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13.5, 4.6), layout="constrained")
    # A colour for each origin of states and values, a dash for each kind of model.
    colours = {"MFG": "#0072B2", "FMG": "#D55E00", "MVG": "#009E73"}
    dashed = ("REINFORCE", "likely")
    for name in dict.fromkeys(row["estimator"] for row in rows):
        members = [row for row in rows if row["estimator"] == name]
        style = {"color": colours[name[:3]], "linestyle": "--" if any(word in name for word in dashed) else "-"}
        counts = [row["trajectories"] for row in members]
        for panel, of in zip(panels, ("bias", "variance", "mse")):
            panel.plot(counts, [row[of] for row in members], marker="o", markersize=4, label=name, **style)
        errors = [row["bias_standard_error"] for row in members]
        panels[0].errorbar(counts, [row["bias"] for row in members], yerr=errors, capsize=3, **style)
        panels[0].axhline(members[0]["limit_bias"], linewidth=0.8, alpha=0.6, **style)
    panels[0].set_ylim(0.0, 2.0)
    panels[0].set_ylabel("|bias| / |exact gradient|\n(whisker: standard error; line: N = infinity)")
    panels[1].set_ylabel("variance / |exact gradient|$^2$")
    panels[2].set_ylabel("mean squared error / |exact gradient|$^2$")
    for panel in panels:
        panel.set_xscale("log")
        panel.set_yscale("linear" if panel is panels[0] else "log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        panel.set_xlabel("trajectories")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    chosen = dict(zip(labels, handles))
    figure.legend(chosen.values(), chosen, loc="outside lower center", frameon=False, ncols=3)
    figure.suptitle("Gradients from recorded trajectories on the gridworld, target policy off the one that collected")
    figure.savefig(path, dpi=100)
    plt.close(figure)
