"""What Matplotlib drew, read from the figure instead of the file."""

from __future__ import annotations

import matplotlib.figure
import numpy as np


def kept(monkeypatch) -> list:
    """Returns a list that will hold every figure that is saved."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def saved(figure, *args, **options):
        figures.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    return figures


def check_curve(axes, i: int, steps, middle) -> None:
    """Fails unless the curve ``i`` is ``middle`` over ``steps``."""
    np.testing.assert_allclose(axes.lines[i].get_xdata(), steps)
    np.testing.assert_allclose(axes.lines[i].get_ydata(), middle)


def check_band(axes, i: int, steps, low, high) -> None:
    """Fails unless the band ``i`` lies between ``low`` and ``high`` over ``steps``."""
    (path,) = axes.collections[i].get_paths()
    corners = np.concatenate([np.stack([steps, low], 1), np.stack([steps, high], 1)])
    np.testing.assert_allclose(np.unique(path.vertices, axis=0), np.unique(corners, axis=0))


def legend(figure) -> list[str]:
    """Returns the texts of the legend."""
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]
