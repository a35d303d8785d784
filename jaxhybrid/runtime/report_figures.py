"""The curves of a report as SVG, once for light and once for dark ground."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxhybrid.runtime.curves import Curve, common_axis
from jaxhybrid.runtime.plots import plain
from jaxhybrid.runtime.statistics import mean_interval

__all__ = ["lines"]

# Ink, and Okabe and Ito's colours that stand out from the ground.
_THEMES = {
    "light": ("#333333", ("#0072B2", "#D55E00", "#009E73")),
    "dark": ("#cccccc", ("#56B4E9", "#E69F00", "#2FD0A0")),
}
_LOG_RANGE = 100.0


def lines(curves: Mapping[str, Curve], *, size: tuple[float, float]) -> tuple[bytes, bytes]:
    """Draws one line per label, the mean over seeds in its 95 % t interval.

    The axis is logarithmic when everything drawn is positive and spans more than two decades.

    Args:
      curves: by label.
      size: in inches.

    Returns:
      The SVG file for light and the one for dark ground.
    """
    return _drawn("light", curves, size), _drawn("dark", curves, size)


def _drawn(theme: str, curves: Mapping[str, Curve], size: tuple[float, float]) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    ink, colours = _THEMES[theme]
    style: Any = {"svg.hashsalt": "jaxhybrid", "font.size": 9, "text.color": ink}
    style |= dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), ink)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        lowest, highest = np.inf, -np.inf
        for i, (label, (steps, values, _)) in enumerate(curves.items()):
            mean, low, high = mean_interval(values)
            lowest, highest = min(lowest, low.min()), max(highest, high.max())
            colour = colours[i % len(colours)]
            marker = "o" if len(steps) <= 20 else None
            axes.plot(steps, mean, color=colour, marker=marker, markersize=3, label=plain(label))
            if values.shape[1] > 1:
                axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
        if lowest > 0 and highest > _LOG_RANGE * lowest:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.set_xlabel(common_axis(curves))
        axes.grid(True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()
