"""The variance study's arithmetic, and what the two benchmarks of MSCV refuse."""

import builtins

import numpy as np
import pytest

from benchmarks import mscv_variance, trpo, trpo_returns
from benchmarks._mscv.estimators import with_coefficient
from experiments import mscv_table
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records


def draws(count=4000):
    """Gradients of two tensors: the first is all control variate, the second has none of it."""
    rng = np.random.default_rng(0)
    h, rest = rng.normal(size=(count, 3)), rng.normal(size=(count, 3))
    base = {"a": 1.0 + 2.0 * h, "b": -1.0 + rest}
    return base, {"a": base["a"] - h, "b": base["b"] - rng.normal(size=(count, 3))}


def test_statistics_of_a_known_signal():
    base, corrected = draws()
    found = mscv_variance._statistics(corrected, base, (1, 10, 4000))
    # Var a = 1, Var b = 2, three coordinates each; the means are 1 and -1.
    np.testing.assert_allclose(found["blocks"]["['a']"]["variance"], 3.0, rtol=0.05)
    np.testing.assert_allclose(found["variance"], 9.0, rtol=0.05)
    np.testing.assert_allclose(found["signal"], 6.0, rtol=0.05)
    np.testing.assert_allclose(found["snr"], 6.0 / 9.0, rtol=0.1)
    assert found["largest_z"] < 5
    # TRPO's is 4 * 3 + 1 * 3. Means of ten have a tenth of it; all episodes make one batch, which tells nothing.
    np.testing.assert_allclose(found["ratio"], 9.0 / 15.0, rtol=0.05)
    low, high = found["ratio_interval"]
    assert low < found["ratio"] < high and high - low < 0.1
    assert {n: row["count"] for n, row in found["batches"].items()} == {1: 4000, 10: 400}
    np.testing.assert_allclose(found["batches"][10]["variance"], 0.9, rtol=0.15)
    assert mscv_variance._statistics(base, base, ())["ratio_interval"] is None
    assert mscv_variance._statistics({**base, "a": base["a"] + 0.2}, corrected, ())["largest_z"] > 10


def test_coefficients_are_found_on_the_other_half():
    base, corrected = draws()
    found, used = with_coefficient(base, corrected, per_tensor=True)
    # Cov / Var is 2 in the first tensor and 0 in the second.
    np.testing.assert_allclose([used["['a']"], used["['b']"]], [2.0, 0.0], atol=0.05)
    np.testing.assert_allclose(found["a"], 1.0, atol=0.2)
    np.testing.assert_allclose(found["b"].var(), 1.0, rtol=0.05)
    # One for both: (6 + 0) / (3 + 3) = 1. The order of the episodes is kept.
    whole, used = with_coefficient(base, corrected, per_tensor=False)
    np.testing.assert_allclose([used["['a']"], used["['b']"]], [1.0, 1.0], atol=0.05)
    np.testing.assert_allclose(whole["b"], corrected["b"], atol=0.3)


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (mscv_variance.main, ["--runs", "nowhere", "--episodes", "30"], "episodes=30 must be"),
        (mscv_variance.main, ["--runs", "nowhere", "--batch-episodes", "0"], "batch_episodes"),
        (mscv_variance.main, ["--runs", "nowhere", "--steps", "0"], "steps=0 must be"),
        (mscv_variance.main, ["--runs"], "runs is empty"),
        (mscv_variance.main, ["--runs", "nowhere"], "nowhere"),
        (trpo.main, ["--methods", "trpoo"], "did you mean 'trpo'"),
        (trpo.main, ["--num-envs", "7"], "multiple of num_envs=7"),
        (trpo.main, ["--repeats", "0"], "repeats=0"),
        (trpo.main, ["--steps", "-20"], "steps=-20 must be at least 1"),
        (trpo.main, ["--task", "swimer"], "did you mean 'swimmer'"),
        (trpo.main, ["--steps", "1500"], "multiple of segment_chunk=1000"),
        (trpo_returns.main, ["--task", "swimer"], "did you mean 'swimmer'"),
        (trpo_returns.main, ["--num-envs", "7"], "multiple of num_envs=7"),
    ],
)
def test_bad_arguments_are_refused(main, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(arguments)
    assert not list(tmp_path.iterdir())


def test_without_the_peer_nothing_is_measured(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest, **named):
        if name.startswith("sb3_contrib"):
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert trpo._peer(trpo.Arguments(), 5) is None


def test_the_peers_returns_are_a_run_that_the_table_reads(tmp_path):
    pytest.importorskip("sb3_contrib")
    assert trpo_returns.main(["--preset", "smoke", "--out", str(tmp_path / "sb3-contrib")]) == 0
    assert mscv_table.main(["--runs", str(tmp_path)]) == 0
    rows = records.read(tmp_path / "sb3-contrib")
    # Two batches of 200 steps over two instances: four whole episodes of 50 steps each.
    assert [row["env/steps"] for row in rows] == [200, 400]
    assert all(-200 < row["collect/episode_return"][0] < -10 for row in rows)
