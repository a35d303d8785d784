import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import plots


def rows(seeds):
    return [{"env/steps": [10 * i] * seeds, "eval/return": [float(i + s) for s in range(seeds)]} for i in range(4)]


def test_one_figure_for_sweeps_single_seeds_and_a_reference(tmp_path):
    path = tmp_path / "curve.png"
    single = [{"env/steps": 5, "eval/return": 2.0}, {"env/steps": 6}]
    plots.learning_curves({"a": rows(3), "b": single}, path, reference=("random policy", -1.0), title="toy")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(InputError, match="'a' has no finite"):
        plots.learning_curves({"a": [{"env/steps": 1, "eval/return": np.nan}]}, tmp_path / "x.png")
    with pytest.raises(InputError, match="runs is empty"):
        plots.learning_curves({}, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
