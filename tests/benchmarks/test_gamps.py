"""The benchmark of gradient-aware search: what it says of the estimators, and that both iterations are the same."""

import json

import pytest

from benchmarks import gamps
from benchmarks._gamps import gradients, iteration
from jaxhybrid.errors import InputError


def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["--preset", "smoke", "--datasets", "30", "--trajectories", "50", "--out", str(out)]
    assert gamps.main(argv) == 0
    results = json.loads((out / "results.json").read_text())
    rows = {row["estimator"]: row for row in results["gradients"]}
    assert set(rows) == set(gradients._ESTIMATORS)
    # The likely model is wrong in the upper area; neither more data nor real states can mend its values.
    assert rows["MVG, gradient-aware model"]["cosine"] > rows["MVG, likely model"]["cosine"] + 0.05
    assert rows["MFG, PGT"]["rmse"] < rows["MFG, REINFORCE"]["rmse"]
    assert "MVG" in capsys.readouterr().out


def test_both_iterations_compute_the_same():
    found = iteration.speed(2000, 1)
    assert found["weight_difference"] < 1e-3
    assert found["gradient_difference"] < 0.05
    assert found["ratio"] > 0


def test_streamed_norms_need_little_memory():
    found = iteration.score_memory(32)
    assert found["streamed_by_64_megabytes"] < found["gradients_at_once_megabytes"] / 10


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--datasets", "1"], "datasets"),
        (["--trajectories", "1"], "trajectories"),
        (["--seed", "-1"], "seed"),
        (["--out", ""], "out"),
    ],
)
def test_bad_arguments_are_refused(argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        gamps.main(argv)
