"""A small random problem with a behaviour and a target policy, whose gradients are known exactly."""

import functools

import jax
import jax.numpy as jnp

from jaxhybrid import trajectories
from jaxhybrid.envs import finite
from jaxhybrid.ops.categorical import Categorical

S, A, T = 3, 2, 12
# The part of the gradient after T steps is below gamma^T = 1e-5 of the whole.
GAMMA = 0.38


def policy_fn(table, obs):
    return Categorical(table[jnp.round(obs[0]).astype(int)])


def probs_fn(table):
    return jax.nn.softmax(table)


def build():
    """``(problem, transitions of a model, target table, behaviour table)``; call inside float64."""
    # A problem whose gradient is large beside the noise of an estimate.
    keys = jax.random.split(jax.random.key(27), 4)
    problem = finite.random_problem(keys[0], S, A, gamma=GAMMA)
    problem = problem._replace(reward=problem.reward - jnp.mean(problem.reward))
    model = finite.random_problem(keys[1], S, A, gamma=GAMMA, sharpness=3.0).transition
    target = jax.random.normal(keys[2], (S, A))
    return problem, model, target, target + 0.3 * jax.random.normal(keys[3], (S, A))


def q_fn(problem, model, table):
    """Values of a model as a function of a pair."""
    values = finite.q_values(problem._replace(transition=model), probs_fn(table))
    return lambda obs, action, key: values[jnp.round(obs[0]).astype(int), action]


@functools.partial(jax.jit, static_argnums=1)
def recordings(key, count, problem, behaviour):
    """``count`` trajectories of the behaviour policy."""
    env = finite.make(problem, max_episode_steps=T)

    def act_fn(obs, action_key):
        return policy_fn(behaviour, obs).sample_and_log_prob(action_key)

    return jax.vmap(lambda k: trajectories.collect(env, k, act_fn=act_fn, length=T))(jax.random.split(key, count))
