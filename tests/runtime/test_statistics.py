"""The statistics against their definitions, worked out by hand."""

import itertools

import numpy as np
import pytest

from jaxhybrid.runtime.curves import Curve
from jaxhybrid.runtime.statistics import (
    first_steps_at,
    interquartile_interval,
    interquartile_mean,
    mean_difference,
    mean_interval,
    probability_of_improvement,
)


def test_the_interval_of_the_mean_is_students():
    mean, low, high = mean_interval(np.array([[1.0, 2.0, 3.0]]))
    # t(0.975, 2 degrees) = 4.302653; standard error 1 / sqrt(3).
    np.testing.assert_allclose(
        [mean[0], low[0], high[0]], [2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5], rtol=1e-6
    )


def test_the_difference_of_means_is_students_or_welchs():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), the t quantile of two degrees of freedom is 4.303.
    np.testing.assert_allclose(mean_difference([2, 4, 6], [1, 2, 3], paired=True), [2, -0.484, 4.484], atol=0.001)
    # As independent runs: variances 4 / 3 and 1 / 3, Welch's degrees of freedom (25 / 9) / (17 / 18) = 2.94.
    mean, low, high = mean_difference([2, 4, 6], [1, 2, 3], paired=False)
    np.testing.assert_allclose([mean, (high - low) / 2], [2, 3.2183 * np.sqrt(5 / 3)], rtol=0.01)
    assert mean_difference([1], [2], paired=True) is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("paired", [False, True])
def test_seeds_that_agree_have_a_difference_of_no_width_and_no_warning(paired):
    assert mean_difference([1, 1, 1], [3, 3, 3], paired=paired) == (-2, -2, -2)
    # One group alone: t(0.975, 2 degrees) = 4.303 times its standard error, 1 / sqrt(3).
    np.testing.assert_allclose(mean_difference([1, 1, 1], [1, 2, 3], paired=paired), [-1, -3.484, 1.484], atol=0.001)


def test_the_interquartile_mean_drops_a_quarter_at_each_end():
    # Eight values: two go at each end, (3 + 4 + 5 + 6) / 4 = 4.5. The outliers do not matter.
    assert interquartile_mean(np.array([1e6, 3, 4, 5, 6, 2, 1, 1e6])) == pytest.approx((3 + 4 + 5 + 6) / 4)
    # Five values: a quarter is 1.25, one goes at each end, (2 + 3 + 10) / 3 = 5.
    assert interquartile_mean(np.array([10, 1, 2, 3, 11])) == pytest.approx(5)
    # Three values: a quarter is less than one, so nothing goes.
    assert interquartile_mean(np.array([0, 1, 8])) == pytest.approx(3)


def test_seeds_are_the_last_axis():
    values = np.array([[1.0, 2.0, 3.0, 100.0], [0.0, 10.0, 20.0, 1000.0]])  # [K = 2, S = 4]
    np.testing.assert_allclose(interquartile_mean(values), [2.5, 15.0])
    low, high = interquartile_interval(values)
    assert low.shape == high.shape == (2,)
    # Seeds are resampled and steps are not: each row lies within its own range.
    assert 1 <= low[0] < 2.5 < high[0] <= 100 and 0 <= low[1] < 15 < high[1] <= 1000
    for i in range(2):
        np.testing.assert_allclose([low[i], high[i]], interquartile_interval(values[i]))


def test_the_interval_is_that_of_all_resamples():
    scores = np.array([0.0, 1.0, 3.0, 7.0])
    # All 4^4 equally likely resamples; the middle two of four sorted values are what is averaged.
    middles = np.array([np.sort(draw)[1:3].mean() for draw in itertools.product(scores, repeat=4)])
    below, above = np.quantile(middles, [0.025, 0.975])
    low, high = interquartile_interval(scores)
    # The distribution is discrete: 5,000 draws give its quantiles up to one of its values.
    values = np.unique(middles)
    assert abs(np.searchsorted(values, low) - np.searchsorted(values, below)) <= 1
    assert abs(np.searchsorted(values, high) - np.searchsorted(values, above)) <= 1
    assert interquartile_interval(scores) == (low, high)


def test_an_outlier_does_not_reach_the_interval():
    # Three of twelve go at each end, and a resample has four or more copies of one seed in 1.5 % of cases only.
    low, high = interquartile_interval(np.array([*range(11), 1e6]))
    assert 0 <= low < 5.5 < high <= 10


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # 40 seeds of a standard normal, 400 times: the share has a standard error of 0.011 around a coverage that is a
    # little below 0.95 for percentile intervals. Quartiles in place of the tails would cover half of the time.
    values = np.random.default_rng(1).standard_normal((400, 40))
    low, high = interquartile_interval(values)
    assert 0.89 < np.mean((low < 0) & (high > 0)) < 0.99


def test_one_seed_has_no_interval():
    assert interquartile_interval(np.array([3.0])) is None
    assert interquartile_interval(np.ones((5, 1))) is None


def test_the_probability_of_improvement_counts_pairs():
    # Six pairs: 3 > 1, 3 > 2, 3 = 3, 2 > 1, 2 = 2, 2 < 3: (3 + 2 / 2) / 6.
    assert probability_of_improvement(np.array([3.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(4 / 6)
    # The other way round is the rest: swapping the arguments by mistake shows.
    assert probability_of_improvement(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0])) == pytest.approx(2 / 6)
    assert probability_of_improvement(np.array([2.0]), np.array([1.0])) == 1.0


def test_steps_to_a_threshold_are_those_of_the_first_time():
    values = np.array([[0.0, 5.0, 1.0], [4.0, 0.0, 2.0], [5.0, 0.0, 3.0], [0.0, 9.0, 3.5]])
    curve = Curve(np.array([0.0, 10.0, 20.0, 30.0]), values)
    np.testing.assert_array_equal(first_steps_at(curve, 4.0), [10, 0, np.inf])
