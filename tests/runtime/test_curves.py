import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import curves
from tests.runtime import runs


def test_records_become_steps_by_seeds():
    rows = [
        {"env/steps": [20, 20], "a": [3.0, 4.0]},
        {"env/steps": [0, 0], "a": [1.0, 2.0]},
        {"env/steps": [10, 10], "a": [np.nan, 5.0]},
        {"env/steps": [30, 30]},
    ]
    curve = curves.of_records(rows, "a", "run")
    np.testing.assert_array_equal(curve.steps, [0, 20])
    np.testing.assert_array_equal(curve.values, [[1, 2], [3, 4]])


def test_runs_are_joined_at_the_steps_they_share():
    one = curves.Curve(np.array([0.0, 10.0, 20.0]), np.array([[1.0], [2.0], [3.0]]))
    two = curves.Curve(np.array([0.0, 20.0, 40.0]), np.array([[4.0, 5.0], [6.0, 7.0], [8.0, 9.0]]))
    joined = curves.merged([one, two], "both")
    np.testing.assert_array_equal(joined.steps, [0, 20])
    np.testing.assert_array_equal(joined.values, [[1, 4, 5], [3, 6, 7]])
    np.testing.assert_array_equal(curves.until(two, 20).values, [[4, 5], [6, 7]])
    with pytest.raises(InputError, match="'apart' share no step"):
        curves.merged([one, curves.Curve(np.array([5.0]), np.array([[1.0]]))], "apart")


def test_a_run_that_collects_nothing_is_a_curve_over_iterations():
    curve = curves.of_records(runs.batch_rows(*range(51)), "eval/return", "run")
    np.testing.assert_array_equal(curve.steps, np.arange(51))
    np.testing.assert_array_equal(curve.values[:, 0], np.arange(51))
    assert curve.axis == "iterations" and curves.until(curve, 3).axis == "iterations"
    assert curves.of_records(runs.rows(*range(51)), "eval/return", "run").axis == "environment steps"


def test_curves_over_different_axes_are_not_joined():
    each = [curves.of_records(rows(1.0, 2.0, 3.0), "eval/return", "run") for rows in (runs.rows, runs.batch_rows)]
    with pytest.raises(InputError, match=r"'x \(1\)' over environment steps and 'x \(2\)' over iterations cannot be"):
        curves.merged(each, "x")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no records yet"),
        ([{"env/steps": 1, "eval/return": 1.0}], "did you mean 'eval/return'"),
        ([{"env/steps": 1, "eval/retrun": np.nan}], "no finite 'eval/retrun'"),
        ([{"env/steps": 1, "eval/retrun": "<b>"}], "is no number"),
        ([{"eval/retrun": 1.0}], "is no number"),
        ([{"env/steps": 1, "eval/retrun": 1.0}, {"env/steps": 2, "eval/retrun": [1.0, 2.0]}], "numbers of seeds"),
    ],
)
def test_what_is_no_curve_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        curves.of_records(rows, "eval/retrun", "run")
