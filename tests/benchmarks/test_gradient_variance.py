"""The gradient-variance benchmark: its truths, what it says of bias and variance, and a small run end to end."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gradient_variance
from benchmarks._gradient_variance.estimators import GAIN, NOISE_STD, estimators, exact
from benchmarks._gradient_variance.finite import finite_gradient, finite_values, mean_to_go, value_to_go
from benchmarks._gradient_variance.measure import measure, recorded_noise_rate
from jaxhybrid.envs import lqr
from jaxhybrid.errors import InputError
from tests.oracles import finite_difference


def policy_return(gain, gamma=0.9, horizon=6):
    """The expected return, summed up moment by moment."""
    A, B = np.array([[1.0, 0.05], [0.0, 1.0]]), np.array([[0.0], [0.05]])
    K, moment, total = np.asarray(gain), np.ones((2, 2)), 0.0
    for t in range(horizon):
        action = K @ moment @ K.T + NOISE_STD**2
        total -= gamma**t * 0.5 * (np.trace(moment) + action[0, 0])
        moment = (A + B @ K) @ moment @ (A + B @ K).T + NOISE_STD**2 * B @ B.T
    return total


@pytest.mark.float64
def test_gradient_of_the_finite_return():
    gain, step = np.array(GAIN), 1e-5
    found = np.zeros_like(gain)
    for j in range(2):
        moved = step * np.eye(2)[j][None]
        found[0, j] = (policy_return(gain + moved) - policy_return(gain - moved)) / (2 * step)
    np.testing.assert_allclose(finite_gradient(lqr.double_integrator(0.9), gain, NOISE_STD, 6), found, rtol=1e-7)


@pytest.mark.float64
def test_values_by_steps_to_go():
    values = finite_values(lqr.double_integrator(0.9), np.array(GAIN), NOISE_STD, 6)
    for steps in (0, 1, 6):
        found = value_to_go(values, jnp.ones(2), jnp.asarray(float(steps)))
        np.testing.assert_allclose(found, policy_return(GAIN, horizon=steps), rtol=1e-10)
    # Without the first step's weight nothing is left to average: one step to go from a known state.
    np.testing.assert_allclose(
        mean_to_go(lqr.double_integrator(0.9), np.array(GAIN), NOISE_STD, 1), policy_return(GAIN, horizon=1)
    )


@pytest.mark.float64
def test_gradient_of_the_return_without_end():
    _, full = exact(0.9, 3)
    problem = lqr.double_integrator(0.9)
    returns = functools.partial(lqr.expected_return, problem, noise_std=NOISE_STD)
    np.testing.assert_allclose(full, finite_difference(returns, jnp.array(GAIN)), rtol=1e-8)


@functools.cache
def rows():
    known, full = exact(0.9, 10)
    return {
        row.name: measure(row, known, full, draws=40_000, chunk=10_000, key=jax.random.key(1))
        for row in estimators(0.9, 10, (0,))
    }


def test_every_estimator_is_unbiased_for_its_own_target():
    for name, row in rows().items():
        assert np.abs(row["bias_z"]).max() < 5, name


def test_biases_against_the_full_gradient_are_those_of_the_truncation():
    for name in ("MAAC, H = 0", "pathwise, value tail"):
        assert np.abs(rows()[name]["bias_full_z"]).max() > 20, name


def test_variances_are_ordered_as_theory_says():
    total = {name: row["total_variance"] for name, row in rows().items()}
    assert total["score function, constant baseline"] < total["score function"]
    assert total["score function, exact value baseline"] < 0.1 * total["score function, constant baseline"]
    assert total["pathwise"] < total["score function, exact value baseline"]
    # With the true model more of the return is explained the longer the control variate looks ahead.
    assert total["MSCV, k = 5"] < total["MSCV, k = 1"]
    assert total["MSCV, k = 1"] < total["score function, value baseline and tail"]


def test_variance_of_one_step_by_hand():
    """MAAC with H = 0: a = K s + sigma eps, so the gradient is dQ/da s with dQ/da = m + q_aa sigma eps."""
    known, _ = exact(0.9, 10)
    q_aa = float(known.critic.q_matrix[2, 2])
    np.testing.assert_allclose(rows()["MAAC, H = 0"]["variance"], np.full(2, (q_aa * NOISE_STD) ** 2), rtol=0.03)


def test_a_planted_bias_shows():
    known, full = exact(0.9, 10)
    row = next(r for r in estimators(0.9, 10, (0,)) if r.name == "pathwise, value tail")
    found = measure(
        row._replace(truth=1.05 * row.truth), known, full, draws=40_000, chunk=10_000, key=jax.random.key(1)
    )
    assert np.abs(found["bias_z"]).max() > 5


def test_rates():
    rates = recorded_noise_rate(exact(0.9, 5)[0], horizon=5, chunk=1000, repeats=2, key=jax.random.key(0))
    assert min(rates.values()) > 0


def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    argv = "--draws 4000 --chunk 2000 --gammas 0.9 --horizon 3 --maac-horizons 1"
    assert gradient_variance.main([*argv.split(), "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["estimator"] for row in results["gammas"]["0.9"]][-1] == "MAAC, H = 1"
    assert {"bias", "bias_full", "variance", "signal_to_noise", "wall_seconds_per_draw"} <= set(
        results["gammas"]["0.9"][0]
    )
    assert (out / "manifest.json").exists()
    assert (out / "gradient_variance_gamma0.9.png").stat().st_size > 10_000
    assert "score function" in capsys.readouterr().out


def test_small_run_from_recordings(tmp_path, capsys):
    out = tmp_path / "run"
    argv = "--problem gridworld --preset smoke --datasets 4 --trajectories 3"
    assert gradient_variance.main([*argv.split(), "--out", str(out)]) == 0
    rows = json.loads((out / "results.json").read_text())["gridworld"]
    assert [row["estimator"].split(",")[0] for row in rows] == ["MFG", "MFG", "FMG", "FMG", "MVG", "MVG"]
    assert all(row["mse"] >= row["bias"] ** 2 and row["variance"] > 0 for row in rows)
    assert (out / "gradient_variance_gridworld.png").stat().st_size > 10_000
    assert "MVG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--draws", "15000"], "draws"),
        (["--horizon", "0"], "horizon"),
        (["--maac-horizons", "-1"], "maac_horizons"),
        (["--gammas", "1"], "gammas"),
        (["--datasets", "1"], "datasets"),
        (["--trajectories", "1"], "trajectories"),
        (["--seed", "-1"], "seed"),
        (["--out", ""], "out"),
    ],
)
def test_bad_arguments_are_refused(argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        gradient_variance.main(argv)
