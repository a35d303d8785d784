import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.estimators import pathwise, score_function
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.ops.gaussian import Gaussian
from tests.estimators import lqr_case
from tests.oracles import check_monte_carlo_mean

DRAWS = 60_000


def baselined(**options):
    return lqr_case.draws(score_function, DRAWS, baseline_fn=lqr_case.exact_value, **options)


@pytest.mark.float64
def test_unbiased_with_a_baseline_and_an_exact_terminal_value():
    problem, gain = lqr_case.case()
    grads, values = baselined()
    check_monte_carlo_mean(grads, lqr_case.truncated_gradient(), visible_bias=0.08)
    check_monte_carlo_mean(values, lqr.expected_return(problem, gain, lqr_case.NOISE))


@pytest.mark.float64
def test_unbiased_for_the_return_of_a_finite_horizon_and_without_a_baseline():
    _, gain = lqr_case.case()
    grads, values = lqr_case.draws(score_function, DRAWS, value_scale=None)
    check_monte_carlo_mean(grads, jax.grad(lqr_case.finite_horizon_return)(gain), visible_bias=0.25)
    check_monte_carlo_mean(values, lqr_case.finite_horizon_return(gain))
    # The exact value of another objective removes much of the variance, and no bias.
    with_baseline, _ = baselined(value_scale=None)
    check_monte_carlo_mean(with_baseline, jax.grad(lqr_case.finite_horizon_return)(gain), visible_bias=0.1)
    assert (with_baseline.var(axis=0) < 0.5 * grads.var(axis=0)).all()


@pytest.mark.float64
@pytest.mark.parametrize("mistake", [{"gamma": 1.0}, {"value_scale": None}])
def test_planted_biases_are_noticed(mistake):
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(baselined(**mistake)[0], lqr_case.truncated_gradient(), visible_bias=0.2)


def test_discrete_actions_need_no_derivative_of_the_reward():
    logits, reward = jnp.array([0.0, 1.0, -0.5]), jnp.array([1.0, 3.0, -2.0])

    def one(key):
        return score_function(
            logits,
            jnp.ones(1),
            key,
            policy_fn=lambda params, s: Categorical(params),
            step_fn=lambda s, a, k: (s, reward[a], jnp.ones(())),
            horizon=1,
            gamma=0.9,
            baseline_fn=lambda s: jnp.asarray(1.5),
        )[0]

    probs = jax.nn.softmax(logits)
    # d E[r] / d logit_i = p_i (r_i - E[r])
    truth = probs * (reward - probs @ reward)
    check_monte_carlo_mean(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 50_000)), truth)


def bound(**knobs):
    return {
        "policy_fn": lambda params, s: Gaussian(params * s, jnp.zeros(1)),
        "step_fn": lambda s, a, noise: (s + a, s[0] + noise, jnp.asarray(0.0)),
        "horizon": 3,
        "gamma": 0.5,
        "step_noise": jnp.array([1.0, 10.0, 100.0]),
    } | knobs


def test_nothing_after_the_end_counts():
    params, obs, key = jnp.array([0.5]), jnp.array([2.0]), jax.random.key(0)
    grads, aux = score_function(params, obs, key, **bound(value_fn=lambda s: jnp.asarray(1e6)))
    assert aux["value"] == 3.0
    # G_0 times the score of the first action alone: s_0 eps_0 for unit variance.
    first = Gaussian(params * obs, jnp.zeros(1)).sample(jax.random.split(jax.random.split(key)[0], 3)[0])
    np.testing.assert_allclose(grads, 3.0 * obs * (first - params * obs), rtol=1e-5)


def test_both_estimators_walk_the_same_path():
    def going(s, a, noise):
        return s + a, s[0] + noise, jnp.ones(())

    params, obs, key = jnp.array([0.5]), jnp.array([2.0]), jax.random.key(0)
    score, path = (f(params, obs, key, **bound(step_fn=going))[1] for f in (score_function, pathwise))
    assert score["value"] == pytest.approx(float(path["value"]), rel=1e-6)


@pytest.mark.parametrize("estimator", [score_function, pathwise])
def test_no_step_is_refused(estimator):
    with pytest.raises((AssertionError, ValueError)):
        estimator(jnp.array([0.5]), jnp.array([2.0]), jax.random.key(0), **bound(horizon=0, step_noise=None))
