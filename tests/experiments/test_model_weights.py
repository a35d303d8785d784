"""The study of model weights: a small run end to end, and what it refuses."""

import json

import numpy as np
import pytest

from experiments import model_weights
from jaxhybrid.errors import InputError


@pytest.mark.slow
def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert model_weights.main(["--preset", "smoke", "--out", str(out)]) == 0
    (row,) = json.loads((out / "results.json").read_text())
    returns = {kind: np.array(values) for kind, values in row["returns"].items()}
    assert returns["uniform"].shape == returns["own_score"].shape == (2, 3)
    # Nothing is learnt before the third iteration, and nothing differs until then.
    np.testing.assert_array_equal(returns["uniform"][:, 0], returns["own_score"][:, 0])
    assert (returns["uniform"][:, 2] != returns["own_score"][:, 2]).all()
    assert (out / "returns.png").stat().st_size > 10_000
    assert "p =" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--seeds", "1"], "seeds"),
        (["--iterations", "1"], "iterations=1 must be at least 2"),
        (["--widths", "0"], "widths"),
        (["--seed", "-1"], "seed"),
        (["--out", ""], "out"),
    ],
)
def test_bad_arguments_are_refused(argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        model_weights.main(argv)


def test_numbers_that_make_no_run_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="steps_per_iteration=33 must be a multiple of num_envs=2"):
        model_weights.main(["--steps-per-iteration", "33", "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
