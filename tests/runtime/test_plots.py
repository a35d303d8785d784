import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import plots
from jaxhybrid.runtime.statistics import interquartile_interval, interquartile_mean, mean_interval
from tests.runtime import figures


def rows(seeds):
    return [{"env/steps": [10 * i] * seeds, "eval/return": [float(i + s) for s in range(seeds)]} for i in range(4)]


STEPS = np.arange(4) * 10.0
VALUES = np.array([[float(i + s) for s in range(3)] for i in range(4)])


def test_one_figure_for_sweeps_single_seeds_and_a_reference(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    drawn = figures.kept(monkeypatch)
    single = [{"env/steps": 5, "eval/return": 2.0}, {"env/steps": 6}]
    plots.learning_curves({"a": rows(3), "b": single}, path, reference=("random policy", -1.0), title="toy")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    (axes,) = figure.axes
    mean, low, high = mean_interval(VALUES)
    figures.check_curve(axes, 0, STEPS, mean)
    figures.check_band(axes, 0, STEPS, low, high)
    figures.check_curve(axes, 1, [5], [2])
    figures.check_curve(axes, 2, [0, 1], [-1, -1])
    assert len(axes.collections) == 1
    assert figures.legend(figure) == ["a (mean of 3 seeds, band: 95 % t interval)", "b (1 seed)", "random policy"]
    assert (axes.get_title(), axes.get_xlabel()) == ("toy", "real environment steps")


def test_the_other_centre_and_the_other_axis(tmp_path, monkeypatch):
    drawn = figures.kept(monkeypatch)
    still = [{"iteration": i, "env/steps": 500, "eval/return": list(row)} for i, row in enumerate(VALUES, start=1)]
    plots.learning_curves({"a": still}, tmp_path / "curve.png", centre="interquartile mean")
    (axes,) = drawn[0].axes
    figures.check_curve(axes, 0, np.arange(1, 5), interquartile_mean(VALUES))
    figures.check_band(axes, 0, np.arange(1, 5), *interquartile_interval(VALUES))
    assert figures.legend(drawn[0]) == ["a (interquartile mean of 3 seeds, band: 95 % bootstrap interval)"]
    assert axes.get_xlabel() == "iterations"
    with pytest.raises(InputError, match="'a' over iterations and 'b' over environment steps cannot be compared"):
        plots.learning_curves({"a": still, "b": rows(1)}, tmp_path / "both.png")


def test_a_dollar_sign_begins_no_formula(tmp_path, monkeypatch):
    drawn = figures.kept(monkeypatch)
    evil = "a$\\frac{$"
    row = {"env/steps": 5, evil: 2.0}
    path = tmp_path / "curve.png"
    plots.learning_curves({evil: [row]}, path, metric=evil, title=evil, reference=(evil, 1.0))
    assert figures.legend(drawn[0]) == [r"a\$/frac{\$ (1 seed)", r"a\$/frac{\$"] and path.exists()


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="'a' has no finite"):
        plots.learning_curves({"a": [{"env/steps": 1, "eval/return": np.nan}]}, tmp_path / "x.png")
    with pytest.raises(InputError, match="runs is empty"):
        plots.learning_curves({}, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
