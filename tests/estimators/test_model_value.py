"""Model-value and per-decision gradients, off policy, against the exact gradients of a finite problem."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import finite
from jaxhybrid.estimators import model_value, per_decision
from jaxhybrid.losses.model_value import model_value_surrogate, per_decision_surrogate
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.trajectories import Trajectory
from tests import finite_case as case
from tests.oracles import check_monte_carlo_mean

pytestmark = pytest.mark.float64

DRAWS = 100_000


def drawn(estimator, data, target, **bound):
    keys = jax.random.split(jax.random.key(7), DRAWS)
    run = jax.jit(jax.vmap(partial(estimator, policy_fn=case.policy_fn, **bound), in_axes=(None, 0, 0)))
    return run(target, data, keys)[0]


@pytest.fixture(name="setting", scope="module")
def _setting():
    with jax.enable_x64(True):
        problem, model, target, behaviour = case.build()
        return problem, model, target, case.recordings(jax.random.key(0), DRAWS, problem, behaviour)


def test_model_value_is_unbiased_for_the_exact_model_value_gradient(setting):
    problem, model, target, data = setting
    draws = drawn(model_value, data, target, q_fn=case.q_fn(problem, model, target), gamma=case.GAMMA)
    truth = finite.model_value_gradient(problem, model, case.probs_fn, target)
    check_monte_carlo_mean(draws, truth)
    # It is not the policy gradient, ...
    with pytest.raises(AssertionError, match="standard errors"):
        check_monte_carlo_mean(draws, finite.policy_gradient(problem, case.probs_fn, target))
    # ... unless the model is the truth.
    true_q = case.q_fn(problem, problem.transition, target)
    draws = drawn(model_value, data, target, q_fn=true_q, gamma=case.GAMMA)
    check_monte_carlo_mean(draws, finite.policy_gradient(problem, case.probs_fn, target))


@pytest.mark.parametrize("past_rewards", [False, True])
def test_per_decision_is_unbiased_for_the_policy_gradient(setting, past_rewards):
    problem, _, target, data = setting
    draws = drawn(per_decision, data, target, gamma=case.GAMMA, past_rewards=past_rewards)
    truth = finite.policy_gradient(problem, case.probs_fn, target)
    check_monte_carlo_mean(draws, truth, visible_bias=0.1 if past_rewards else 0.05)


@pytest.mark.parametrize("planted", ["no ratios", "no discount"])
def test_a_planted_bias_shows(setting, planted):
    problem, model, target, data = setting
    gamma, recorded = case.GAMMA, data
    if planted == "no ratios":
        log_prob = jax.vmap(jax.vmap(lambda s, a: case.policy_fn(target, s).log_prob(a)))(data.obs, data.action)
        recorded = data._replace(behaviour_log_prob=log_prob)
    else:
        gamma = 0.33
    draws = drawn(model_value, recorded, target, q_fn=case.q_fn(problem, model, target), gamma=gamma)
    with pytest.raises(AssertionError, match="standard errors"):
        check_monte_carlo_mean(draws, finite.model_value_gradient(problem, model, case.probs_fn, target))


def test_steps_past_the_end_do_not_count(setting):
    problem, model, target, data = setting
    one = jax.tree.map(lambda x: x[0], data)
    short = jax.tree.map(lambda x: x[:4], one)
    mask = (jnp.arange(case.T) < 4).astype(float)
    padded = one._replace(
        mask=mask, reward=one.reward * mask, behaviour_log_prob=jnp.where(mask > 0, one.behaviour_log_prob, jnp.nan)
    )
    for estimator, bound in (
        (model_value, {"q_fn": case.q_fn(problem, model, target)}),
        (per_decision, {"past_rewards": True}),
    ):
        run = partial(estimator, target, key=jax.random.key(0), policy_fn=case.policy_fn, gamma=0.9, **bound)
        np.testing.assert_allclose(run(trajectory=padded)[0], run(trajectory=short)[0], rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nothing_past_the_end_reaches_loss_or_gradient(bad):
    rng = np.random.default_rng(0)
    obs, action, next_obs = jnp.asarray(rng.normal(size=(3, 5, 2)))
    reward, log_prob = jnp.asarray(rng.normal(size=(2, 5)))
    mask = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    clean = Trajectory(obs, action, reward, jnp.ones(5), next_obs, log_prob, mask)
    spoilt = jax.tree.map(lambda x: x.at[3:].set(bad), clean)._replace(mask=mask)
    bound = {"policy_fn": lambda gain, s: Gaussian(gain * s, 0.1 * s), "gamma": 0.9}
    for loss in (
        partial(model_value_surrogate, q_fn=lambda s, a, key: jnp.sum(s * a**2), **bound),
        partial(per_decision_surrogate, past_rewards=True, **bound),
    ):
        run = jax.jit(partial(jax.value_and_grad(loss, has_aux=True), jnp.ones(2), key=jax.random.key(0)))
        (_, grads), found = run(trajectory=clean), run(trajectory=spoilt)
        jax.tree.map(np.testing.assert_array_equal, found, run(trajectory=clean))
        assert np.all(grads != 0)


def test_a_trajectory_that_the_policy_never_takes_has_no_gradient():
    """Its ratio is 0, the logarithm of its probability minus infinity."""
    zeros = jnp.zeros(2)
    one = Trajectory(zeros[:, None], jnp.zeros(2, int), zeros + 1, zeros + 1, zeros[:, None], zeros - 1, zeros + 1)
    bound = {"policy_fn": lambda table, s: Categorical(jnp.append(table, 0.0).at[0].set(-jnp.inf)), "gamma": 0.9}
    for loss in (
        partial(model_value_surrogate, q_fn=lambda s, a, key: jnp.ones(()), **bound),
        partial(per_decision_surrogate, past_rewards=True, **bound),
    ):
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(jnp.zeros(2), one, jax.random.key(0))
        assert value == 0 and not np.any(grads)
