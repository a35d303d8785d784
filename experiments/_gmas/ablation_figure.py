"""The figure of ``gmas_ablation``: every cell of the study in a row, a column for each planning depth of the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxhybrid.runtime.statistics import mean_interval

__all__ = ["draw"]


def draw(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws final returns: every seed a point, their mean and its interval.

    Args:
      cells: ``alpha``, ``beta``, ``depth`` and ``returns`` by planning depth.
      path: PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    planning = list(cells[0]["returns"])
    names = [f"CRAR, beta {c['beta']:g}" if not c["alpha"] else f"alpha {c['alpha']:g}, D {c['depth']}" for c in cells]
    size = (2.6 * len(planning) + 1.4, 0.3 * len(cells) + 1.2)
    figure, axes = plt.subplots(
        1, len(planning), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis, depth in zip(axes[0], planning, strict=True):
        for row, cell in enumerate(cells):
            mean, low, high = mean_interval(np.array([cell["returns"][depth]]))
            axis.plot([low[0], high[0]], [row, row], color="#0072B2")
            axis.plot(mean[0], row, "o", color="#0072B2", markersize=5)
            axis.plot(cell["returns"][depth], [row] * len(cell["returns"][depth]), ".", color="0.6", markersize=3)
        axis.set_title(f"planning depth {depth}", fontsize=9)
        axis.grid(True, axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(cells)), names, fontsize=8)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("final return of each seed, their mean and its 95 % t interval", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
