"""Statistics of a few seeds: means and interquartile means with their intervals, probability of improvement.

Seeds are the last axis everywhere, as in `curves.Curve`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from jaxhybrid.runtime.curves import Curve

__all__ = [
    "first_steps_at",
    "interquartile_interval",
    "interquartile_mean",
    "mean_difference",
    "mean_interval",
    "probability_of_improvement",
]

_RESAMPLES = 5000
# Resamples that are in memory at the same time; a long curve has many values in each.
_BATCH = 100


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean, low and high ``[K]`` of ``[K, S]``; the 95 % interval is that of Student's t with S - 1 degrees.

    Of a single seed all three are the same.
    """
    mean, count = values.mean(axis=1), values.shape[1]
    if count == 1:
        return mean, mean, mean
    from scipy import stats

    half = stats.t.ppf(0.975, count - 1) * values.std(axis=1, ddof=1) / np.sqrt(count)
    return mean, mean - half, mean + half


def mean_difference(
    values: Sequence[float] | np.ndarray, base: Sequence[float] | np.ndarray, *, paired: bool
) -> tuple[float, float, float] | None:
    """Returns the difference of two means, and the low and high end of its 95 % t interval; None for a single seed.

    Args:
      values: a number for every seed.
      base: the same of what to compare with.
      paired: whether seeds belong together; otherwise variances may differ, and degrees of freedom are Welch's.
    """
    from scipy import stats

    x, y = np.asarray(values), np.asarray(base)
    if min(x.size, y.size) < 2:
        return None
    with warnings.catch_warnings():
        # Seeds that all agree have an interval of no width, which is nothing to be warned of.
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        test = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
        interval = test.confidence_interval(0.95)
    return float(x.mean() - y.mean()), float(interval.low), float(interval.high)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean without the lowest and the highest quarter of the seeds, ``[..., S]`` to ``[...]``.

    A quarter of ``S`` is rounded down, so up to three seeds this is the mean.

    Source: Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice, for one task.
    """
    from scipy import stats

    return stats.trim_mean(values, 0.25, axis=-1)


def interquartile_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the 95 % percentile bootstrap interval ``[...]`` of the interquartile mean of ``[..., S]``.

    Seeds are resampled whole. The draws are the same in every call, so that a table does not change when it is printed
    again. One seed says nothing about the spread between seeds: None.
    """
    from scipy import stats

    if values.shape[-1] == 1:
        return None
    interval = stats.bootstrap(
        (values,),
        lambda resampled, axis: stats.trim_mean(resampled, 0.25, axis=axis),
        axis=-1,
        method="percentile",
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def probability_of_improvement(scores: np.ndarray, reference: np.ndarray) -> float:
    """Returns how probable it is that a seed of ``scores [S]`` is above one of ``reference [R]``; ties count half.

    ``P = 1 / (S R) sum_ij ([x_i > y_j] + [x_i = y_j] / 2)``, Mann and Whitney's U over the number of pairs.

    Source: Agarwal et al. 2021, as above, for one task.
    """
    differences = scores[:, None] - reference[None, :]
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def first_steps_at(curve: Curve, threshold: float) -> np.ndarray:
    """Returns the first steps ``[S]`` of the axis at which each seed is at or above a threshold; infinity for never."""
    reached = curve.values >= threshold
    return np.where(reached.any(axis=0), curve.steps[np.argmax(reached, axis=0)], np.inf)
