"""The gradient-error study: its truths, its Monte-Carlo check, the lemma's bound, and a small run end to end."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_error
from experiments._gradient_error import report
from experiments._gradient_error.lemma import lemma_bound
from experiments._gradient_error.problem import GAIN, policy, true_step, truth
from experiments._gradient_error.sweep import errors
from jaxhybrid.envs.lqr_functions import q_fn
from jaxhybrid.errors import InputError
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.runtime import records
from tests.oracles import check_monte_carlo_mean

HORIZONS = (0, 1, 2, 3, 5, 10, 20, 50)


@functools.cache
def known(gamma):
    return truth(gamma, HORIZONS)


@functools.partial(jax.jit, static_argnums=1)
def maac_draws(key, horizon, critic, gamma):
    """4096 draws of the model-augmented gradient with the true model and the given quadratic critic."""

    def draw(draw_key):
        loss = functools.partial(
            maac_loss,
            policy_fn=policy,
            step_fn=true_step,
            q_fn=functools.partial(q_fn, critic=critic),
            horizon=horizon,
            gamma=gamma,
        )
        return -jax.grad(loss, has_aux=True)(jnp.array(GAIN), jnp.ones(2), draw_key)[0]

    return jax.vmap(draw)(jax.random.split(key, 4096))


@pytest.mark.parametrize(
    ("gamma", "relative_l1", "full"),
    [
        (0.9, (0.904, 0.817, 0.738, 0.666, 0.541, 0.319, 0.106, 0.003), (-3.54068, -2.19532)),
        (0.99, (0.982, 0.964, 0.946, 0.928, 0.892, 0.803, 0.634, 0.262), (-985.837, -226.650)),
    ],
)
def test_error_of_the_truncation_alone(gamma, relative_l1, full):
    """Perfect model and perfect critic: worked out independently, to the digits shown."""
    exact = known(gamma)
    np.testing.assert_allclose(exact.full.ravel(), full, rtol=2e-6)
    found = [errors(g, exact.full)[0] for g in exact.truncated]
    np.testing.assert_allclose(found, relative_l1, atol=5.1e-4)


def test_cosine_of_the_truncation_alone():
    exact = known(0.9)
    found = [errors(g, exact.full)[1] for g in exact.truncated]
    np.testing.assert_allclose(found, (0.974, 0.977, 0.980, 0.983, 0.988, 0.994, 0.999, 1.0), atol=5.1e-4)


@pytest.mark.parametrize("horizon", [3, 10])
def test_true_model_and_exact_critic_give_the_truncated_gradient(horizon):
    exact = known(0.99)
    expected = exact.truncated[HORIZONS.index(horizon)]
    draws = maac_draws(jax.random.key(0), horizon, exact.critic, exact.gamma)
    check_monte_carlo_mean(draws, expected)
    with pytest.raises(AssertionError, match="standard errors"):
        check_monte_carlo_mean(draws, exact.full)


@pytest.mark.parametrize("planted", ["critic slope", "discount"])
def test_a_planted_error_shows(planted):
    exact = known(0.99)
    critic, gamma = exact.critic, exact.gamma
    if planted == "critic slope":
        critic = critic._replace(q_matrix=1.05 * critic.q_matrix)
    else:
        gamma = gamma * 0.95
    draws = maac_draws(jax.random.key(0), 3, critic, gamma)
    with pytest.raises(AssertionError, match="standard errors"):
        check_monte_carlo_mean(draws, exact.truncated[HORIZONS.index(3)])


def test_lemma_bound_is_the_closed_form_of_its_sum():
    eps_f, eps_q, L_r, L_q, K, gamma, H = 0.02, 0.3, 2.7, 11.0, 1.1, 0.9, 7
    constants = {"model_error": eps_f, "critic_error": eps_q, "critic_slope": L_q, "reward_slope": L_r, "growth": K}
    A, B = np.array([[1.0, 0.05], [0.0, 1.0]]), np.array([[0.0], [0.05]])
    L = np.linalg.norm(np.hstack([A, B]), 2) * (1.0 + np.linalg.norm([0.1, 0.3]))
    gK = gamma * K
    model = eps_f * L_r / (L - 1) * (L * ((gK * L) ** H - 1) / (gK * L - 1) - (gK**H - 1) / (gK - 1))
    critic = gK**H * (eps_q + L_q * eps_f * (L**H - 1) / (L - 1))
    np.testing.assert_allclose(lemma_bound(H, gamma, **constants), np.sqrt(2) * (model + critic), rtol=1e-5)
    # One step: eps_f L_r + gamma K (eps_Q + L_Q eps_f); none: eps_Q.
    one = np.sqrt(2) * (eps_f * L_r + gK * (eps_q + L_q * eps_f))
    np.testing.assert_allclose(lemma_bound(1, gamma, **constants), one, rtol=1e-5)
    np.testing.assert_allclose(lemma_bound(0, gamma, **constants), np.sqrt(2) * eps_q, rtol=1e-6)


def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    argv = "--preset smoke --seeds 2 --gammas 0.9 --transitions 40 --horizons 0 1 --epochs 20 --updates 50 --draws 64"
    assert gradient_error.main([*argv.split(), "--out", str(out), "--no-progress"]) == 0
    rows = records.read(out)
    assert len(rows) == 2 * 4 * 2
    assert {row["seed"] for row in rows} == {0, 1}
    assert all(np.isfinite(row[name]).all() for row in rows for name in ("gradient", "l1_full", "lemma_bound"))
    unused = [row for row in rows if row["horizon"] == 0 and (row["model"], row["critic"]) == ("learned", "exact")]
    assert all(row["l1_truncated"] < 1e-5 for row in unused), "without model steps the model cannot matter"
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["rows"]) == 8
    assert summary["monte_carlo_check"]["largest_z"] < 5
    assert (out / "gradient_error_gamma0.9.png").stat().st_size > 10_000
    for row in rows:
        row["gradient"] = [1.5 * g for g in row["gradient"]]
    assert report.monte_carlo_check(rows)["largest_z"] > 5, "a wrong gradient must fail the check"


@pytest.mark.parametrize(
    ("argv", "field"),
    [
        (["--seeds", "0"], "seeds"),
        (["--horizons", "-1"], "horizons"),
        (["--gammas", "1.0"], "gammas"),
        (["--draws", "10"], "draws"),
        (["--transitions", "5"], "transitions"),
        (["--seed", "-1"], "seed"),
        (["--out", " "], "out"),
    ],
)
def test_bad_arguments_are_refused(argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        gradient_error.main(argv)
