"""The study of critic slopes: its parts against closed forms, and a run end to end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import critic_slopes
from experiments._critic_slopes import fits
from jaxhybrid.envs import lqr
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")
PROBLEM_KEY, KEY = jax.random.split(jax.random.key(0))


def problem():
    return lqr.random_problem(PROBLEM_KEY, 3, 2, gamma=0.9, process_noise=0.1)


@pytest.mark.float64
@pytest.mark.parametrize("depth", [1, 3])
def test_expansion_of_the_true_model_with_the_true_value_has_the_true_slope(depth):
    model, gain = problem(), jnp.zeros((2, 3))
    true = fits.Model(model.A, model.B)
    obs, action = jnp.array([0.5, -1.0, 0.3]), jnp.array([0.7, -0.2])

    def expansion(a, model_used=true):
        value = lambda s: lqr.value(model, gain, s)  # noqa: E731
        return fits._expansion(model, model_used, gain, obs, a, depth, value)

    slope = jax.grad(lambda a: lqr.q_value(model, gain, obs, a))(action)
    np.testing.assert_allclose(jax.grad(expansion)(action), slope, rtol=1e-8)
    wrong = fits.Model(0.8 * model.A, model.B)
    assert not np.allclose(jax.grad(lambda a: expansion(a, wrong))(action), slope, rtol=1e-2)


@pytest.mark.float64
def test_the_fitted_model_is_least_squares_on_the_known_steps_alone():
    data = fits._data(problem(), KEY, 200)
    fitted = fits._least_squares(data, jnp.arange(200) < 50)
    inputs = np.concatenate([data[0][:50], data[1][:50]], axis=1)
    expected = np.linalg.lstsq(inputs, np.asarray(data[3][:50]), rcond=None)[0].T
    np.testing.assert_allclose(np.concatenate([fitted.A, fitted.B], axis=1), expected, atol=1e-3)


@pytest.mark.float64
def test_the_exact_critic_scores_no_error():
    gain = jnp.zeros((2, 3))
    scores = fits._scores(problem(), gain, lambda s, a: lqr.q_value(problem(), gain, s, a)[None], KEY)
    assert scores["value_error"] < 1e-6 and scores["slope_error"] < 1e-6
    assert scores["slope_cosine"] == pytest.approx(1.0)


def test_a_smoke_run_writes_a_record_per_cell(tmp_path):
    out = tmp_path / "run"
    assert critic_slopes.main(["--preset", "smoke", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # Two distances, one depth, one size, two models, two weights.
    assert len(rows) == 8 and {len(row["slope_error"]) for row in rows} == {2}
    plain = [row for row in rows if row["alpha"] == 0.0]
    matched = [row for row in rows if row["alpha"] == 1.0]
    assert len(plain) == len(matched) == 4
    assert all(row["slope_error"] == pytest.approx(plain[0]["slope_error"], rel=1e-3) for row in plain)
    assert all(row["slope_error"] != pytest.approx(plain[0]["slope_error"], rel=1e-2) for row in matched)
    with pytest.raises(InputError):
        critic_slopes.main(["--preset", "smoke", "--out", str(out)])


@pytest.mark.parametrize("alpha", ["nan", "inf"])
def test_a_weight_that_is_no_number_is_refused_before_anything_is_written(alpha, tmp_path):
    with pytest.raises(InputError, match=rf"alphas=\(1.0, {alpha}\) must be finite"):
        critic_slopes.main(["--alphas", "1", alpha, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
