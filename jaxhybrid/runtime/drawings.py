"""Pictures of the environments that no simulator draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["drawn", "greyscale", "pendulum", "plane"]

_INK, _ACCENT = "#333333", "#D55E00"


def pendulum(obs: np.ndarray, *, width: int, height: int) -> list[np.ndarray]:
    """Draws the rod for each observation ``(cos, sin, speed)`` of ``[T, 3]``; upright is up.

    Args:
      obs: the observations.
      width: of a picture.
      height: of a picture.

    Returns:
      ``T`` pictures, uint8 ``[height, width, 3]``.
    """

    def begin(axes: Any) -> Callable[[int], None]:
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.2, 1.2))
        axes.plot([-0.4, 0.4], [0, 0], color=_INK, linewidth=1, alpha=0.3)
        (rod,) = axes.plot([], [], color=_INK, linewidth=6, solid_capstyle="round")
        (tip,) = axes.plot([], [], "o", color=_ACCENT, markersize=14)

        def show(t: int) -> None:
            x, y = obs[t, 1], obs[t, 0]
            rod.set_data([0, x], [0, y])
            tip.set_data([x], [y])

        return show

    return drawn(len(obs), begin, width, height)


def greyscale(pictures: np.ndarray, *, height: int) -> list[np.ndarray]:
    """Enlarges pictures ``[T, h, w]`` to about ``height`` pixels, the least number of all white and the largest black.

    Returns:
      ``T`` pictures, uint8 ``[H, W, 3]``.
    """
    low, high = float(pictures.min()), float(pictures.max())
    levels = (255 * (high - pictures) / max(high - low, 1e-6)).astype(np.uint8)
    zoom = max(height // pictures.shape[1], 1)
    large = np.kron(levels, np.ones((1, zoom, zoom), np.uint8))
    return list(np.repeat(large[..., None], 3, axis=-1))


def plane(obs: np.ndarray, *, width: int, height: int) -> list[np.ndarray]:
    """Draws the first two coordinates of ``[T, D]`` as a point with its path; one coordinate goes against time.

    Args:
      obs: the observations.
      width: of a picture.
      height: of a picture.

    Returns:
      ``T`` pictures, uint8 ``[height, width, 3]``.
    """
    several = obs.shape[1] > 1
    x, y = (obs[:, 0], obs[:, 1]) if several else (np.arange(len(obs)), obs[:, 0])

    def begin(axes: Any) -> Callable[[int], None]:
        for values, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
            margin = 0.1 * max(np.ptp(values), 1e-6)
            limit(min(values.min(), 0) - margin, max(values.max(), 0) + margin)
        axes.axhline(0, color=_INK, linewidth=1, alpha=0.3)
        axes.axvline(0, color=_INK, linewidth=1, alpha=0.3)
        (path,) = axes.plot([], [], color=_INK, linewidth=1.5)
        (point,) = axes.plot([], [], "o", color=_ACCENT, markersize=10)

        def show(t: int) -> None:
            path.set_data(x[: t + 1], y[: t + 1])
            point.set_data(x[t : t + 1], y[t : t + 1])

        return show

    return drawn(len(obs), begin, width, height, equal=False)


def drawn(
    count: int, begin: Callable[[Any], Callable[[int], None]], width: int, height: int, *, equal: bool = True
) -> list[np.ndarray]:
    """Draws one figure that ``begin`` prepares and whose function changes for each of the pictures.

    Args:
      count: number of pictures.
      begin: ``begin(axes) -> show``, and ``show(t)`` changes what is seen.
      width: of a picture.
      height: of a picture.
      equal: whether both axes have one scale.

    Returns:
      The pictures, uint8 ``[height, width, 3]``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    if equal:
        axes.set_aspect("equal")
    show = begin(axes)
    frames = []
    for t in range(count):
        show(t)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return frames
