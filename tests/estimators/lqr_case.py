"""One linear-quadratic problem, the estimators' draws on it and their closed forms."""

import functools
from functools import partial

import jax
import jax.numpy as jnp

from jaxhybrid.envs import lqr
from tests.oracles import linear_policy, lqr_start, lqr_step

HORIZON, NOISE, GAMMA = 3, 0.5, 0.9


def case():
    problem = lqr.random_problem(jax.random.key(0), 2, 1, gamma=GAMMA, start_noise=0.2, process_noise=0.1)
    # A start far from the origin: the gradient is then large next to its noise.
    return problem._replace(start_mean=jnp.array([2.0, -1.5])), jnp.array([[0.1, -0.2]])


def exact_value(obs):
    problem, gain = case()
    return lqr.value(problem, gain, obs, NOISE)


def truncated_gradient():
    """With the exact value after H steps: the first H terms, t = 0 .. H - 1, of the policy gradient."""
    problem, gain = case()
    return lqr.policy_gradient(problem, gain, horizon=HORIZON - 1, noise_std=NOISE)


def finite_horizon_return(gain):
    """``sum_{t<H} gamma^t E[r_t]`` by the second moments of the states."""
    problem, _ = case()
    moments = lqr.second_moments(problem, gain, horizon=HORIZON - 1, noise_std=NOISE)
    cost = jnp.einsum("tij,ij->t", moments, problem.Q + gain.T @ problem.R @ gain) + NOISE**2 * jnp.trace(problem.R)
    return -0.5 * jnp.sum(GAMMA ** jnp.arange(HORIZON) * cost)


@functools.cache
def sampler(estimator, value_scale, **functions):
    problem, gain = case()

    def one(key, gamma):
        start_key, key = jax.random.split(key)
        bound = {} if value_scale is None else {"value_fn": lambda s: value_scale * exact_value(s)}
        grads, aux = estimator(
            gain,
            lqr_start(problem, start_key),
            key,
            policy_fn=linear_policy(NOISE),
            step_fn=lqr_step(problem),
            horizon=HORIZON,
            gamma=gamma,
            **bound,
            **functions,
        )
        return grads, aux["value"]

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def draws(estimator, num, *, value_scale=1.0, gamma=GAMMA, **functions):
    keys = jax.random.split(jax.random.key(1), num)
    return partial(sampler(estimator, value_scale, **functions), keys)(gamma)
