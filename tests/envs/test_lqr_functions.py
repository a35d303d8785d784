"""The linear-quadratic problem as functions, against the closed forms and the environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.envs.lqr_functions import exact_critic, policy_fn, q_fn, step_fn, value_fn
from jaxhybrid.errors import InputError

STD = jnp.array([0.2, 0.5])


@pytest.fixture(scope="module")
def setting():
    with jax.enable_x64(True):
        problem = lqr.random_problem(jax.random.key(0), 3, 2)
        gain = 0.1 * jax.random.normal(jax.random.key(1), (2, 3))
        yield problem, gain, jax.random.normal(jax.random.key(2), (3,)), jax.random.normal(jax.random.key(3), (2,))


@pytest.mark.float64
def test_critic_is_the_closed_form(setting):
    problem, gain, obs, action = setting
    critic = exact_critic(problem, gain, STD)
    np.testing.assert_allclose(value_fn(obs, critic=critic), lqr.value(problem, gain, obs, STD), rtol=1e-10)
    np.testing.assert_allclose(
        q_fn(obs, action, critic=critic), lqr.q_value(problem, gain, obs, action, STD), rtol=1e-10
    )


@pytest.mark.float64
def test_step_is_that_of_the_environment(setting):
    problem, _, obs, action = setting
    env = lqr.make(problem)
    _, outcome = env.step(lqr.LQRState(obs, jnp.zeros((), jnp.int32)), action, jax.random.key(0))
    next_obs, reward, discount = step_fn(obs, action, None, problem=problem)
    np.testing.assert_allclose(next_obs, outcome.obs, rtol=1e-12)
    np.testing.assert_allclose(reward, outcome.reward, rtol=1e-12)
    assert discount == 1


@pytest.mark.float64
def test_policy_is_linear_gaussian(setting):
    _, gain, obs, _ = setting
    policy = policy_fn(gain, obs, noise_std=STD)
    np.testing.assert_allclose(policy.mean, np.asarray(gain) @ np.asarray(obs), rtol=1e-12)
    np.testing.assert_allclose(np.exp(policy.log_std), STD, rtol=1e-6)


def test_process_noise_is_refused():
    problem = lqr.random_problem(jax.random.key(0), 2, 1, process_noise=0.1)
    with pytest.raises(InputError, match="process_scale"):
        step_fn(jnp.zeros(2), jnp.zeros(1), None, problem=problem)
