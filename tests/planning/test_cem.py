import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from jaxhybrid.planning import cem

PROBLEM = lqr.double_integrator(gamma=0.9)
GAIN = jnp.array([[-0.1, -0.3]])
OBS = jnp.array([1.0, 1.0])
KEY = jax.random.key(0)


def policy_fn(obs):
    return Gaussian(GAIN @ obs, jnp.full((1,), jnp.log(0.5)))


def step_fn(obs, action, key):
    del key
    reward = -0.5 * (obs @ PROBLEM.Q @ obs + action @ PROBLEM.R @ action)
    return PROBLEM.A @ obs + PROBLEM.B @ action, reward, jnp.ones(())


def exact_q(gain):
    return lambda obs, action: lqr.q_value(PROBLEM, gain, obs, action)


def planned(key=KEY, q_fn=None, **options):
    run = jax.jit(lambda o, k: cem.plan(o, k, policy_fn=policy_fn, step_fn=step_fn, q_fn=q_fn, gamma=0.9, **options))
    return run(OBS, key)


def test_refit_by_hand():
    mean, variance = cem.refit(jnp.array([[1.0]]), jnp.array([[4.0]]), jnp.array([[[2.0]], [[4.0]]]), smoothing=0.1)
    np.testing.assert_allclose(mean, [[0.1 * 1 + 0.9 * 3]], rtol=1e-6)
    np.testing.assert_allclose(variance, [[0.1 * 4 + 0.9 * 1]], rtol=1e-6)


@pytest.mark.parametrize("horizon", [0, 5])
def test_the_exact_critic_of_the_optimum_gives_the_optimal_action(horizon):
    best = lqr.optimal_gain(PROBLEM)
    action, aux = planned(q_fn=exact_q(best), horizon=horizon, num_iterations=15)
    np.testing.assert_allclose(action, best @ OBS, atol=0.02)
    # The value of the optimum bounds that of the elites from above; after 15 refits they are close.
    optimum = lqr.value(PROBLEM, best, OBS)
    assert optimum - 0.05 < aux["value"] <= optimum + 1e-4


def test_a_plan_is_better_than_the_policy_it_starts_from():
    q = exact_q(GAIN)
    keys = jax.random.split(KEY, 20)
    actions = jax.vmap(lambda k: planned(k, q_fn=q, horizon=3)[0])(keys)
    gains = jax.vmap(lambda a: q(OBS, a))(actions) - q(OBS, GAIN @ OBS)
    assert jnp.mean(gains) > 5 * jnp.std(gains) / np.sqrt(20)


def test_the_released_reading_discounts_once_more():
    # At horizon 0 the objective is the critic alone, once with gamma^0 and once with gamma^1.
    right = planned(q_fn=exact_q(GAIN), horizon=0)[1]["value"]
    released = planned(q_fn=exact_q(GAIN), horizon=0, released=True)[1]["value"]
    np.testing.assert_allclose(released, 0.9 * right, rtol=1e-5)


def test_executed_actions_are_squashed_unless_released():
    def squashed(obs):
        return TanhGaussian(jnp.full((1,), 3.0) + 0.0 * obs[:1], jnp.zeros(1))

    def run(released):
        return cem.plan(
            OBS, KEY, policy_fn=squashed, step_fn=step_fn, q_fn=lambda o, a: a[0], horizon=0, released=released
        )[0]

    assert run(False) < 1.0 < run(True)
    np.testing.assert_allclose(jnp.tanh(run(True)), run(False), rtol=1e-5)


def test_a_candidate_without_a_value_is_no_elite():
    def q_fn(obs, action):
        return jnp.where(action[0] > 1.5, jnp.nan, -(action[0] ** 2))

    action, aux = cem.plan(
        OBS, KEY, policy_fn=lambda s: Gaussian(jnp.ones(1), jnp.zeros(1)), step_fn=step_fn, q_fn=q_fn, horizon=0
    )
    np.testing.assert_allclose(action, 0.0, atol=0.05)
    assert -0.05 < aux["value"] <= 0.0


def test_same_key_same_plan_and_jit_is_eager():
    eager = cem.plan(OBS, KEY, policy_fn=policy_fn, step_fn=step_fn, q_fn=exact_q(GAIN), gamma=0.9, horizon=2)[0]
    np.testing.assert_allclose(planned(q_fn=exact_q(GAIN), horizon=2)[0], eager, rtol=1e-4)
    assert planned(q_fn=exact_q(GAIN), horizon=2)[0] == planned(q_fn=exact_q(GAIN), horizon=2)[0]
    assert planned(jax.random.key(1), q_fn=exact_q(GAIN), horizon=2)[0] != eager


def test_counts_that_cannot_be_are_refused():
    for options in ({"horizon": -1}, {"num_elites": 300}, {"num_elites": 0}):
        with pytest.raises(AssertionError):
            planned(q_fn=exact_q(GAIN), **options)
