"""The double integrator under a fixed linear policy: its exact gradients and critic, its steps and its data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import lqr, lqr_functions
from jaxhybrid.envs.lqr_functions import ExactCritic, exact_critic
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["GAIN", "NOISE_STD", "Sizes", "Truth", "policy", "random_transitions", "reward", "true_step", "truth"]

GAIN = ((-0.1, -0.3),)
NOISE_STD = 0.3


class Sizes(NamedTuple):
    """What the cost of a study depends on.

    Attributes:
      hidden: widths of the hidden layers of model and critic.
      members: members of the ensemble, ``M``.
      epochs: limit on the epochs of a model fit.
      updates: gradient steps of a critic fit.
      draws: Monte-Carlo draws per gradient, a multiple of ``members``.
      batch_size: rows of one gradient step of either fit.
      episode_steps: steps of a random-policy episode.
      start_range: episodes start uniformly within this distance of the origin, in both coordinates.
      action_range: actions of the random policy are uniform within this distance of zero.
    """

    hidden: Sequence[int] = (32, 32)
    members: int = 4
    epochs: int = 1000
    updates: int = 6000
    draws: int = 256
    batch_size: int = 128
    episode_steps: int = 10
    start_range: float = 3.0
    action_range: float = 2.0


class Truth(NamedTuple):
    """What is known exactly of one discount, computed in float64.

    Attributes:
      gamma: the discount, ``[]``.
      critic: the exact critic of the policy.
      truncated: gradient with the critic frozen after each horizon, ``[H, A, D]``.
      full: gradient of the return, ``[A, D]``.
    """

    gamma: Array
    critic: ExactCritic
    truncated: Array
    full: Array


def truth(gamma: float, horizons: Sequence[int]) -> Truth:
    """Returns the exact critic and the exact gradients of the fixed policy, as float32."""
    with jax.enable_x64(True):
        problem, gain = lqr.double_integrator(gamma), jnp.array(GAIN)
        gradients = [lqr.policy_gradient(problem, gain, horizon=h, noise_std=NOISE_STD) for h in horizons]
        exact = Truth(
            problem.gamma,
            exact_critic(problem, gain, NOISE_STD),
            jnp.stack(gradients),
            lqr.policy_gradient(problem, gain, noise_std=NOISE_STD),
        )
        arrays = jax.tree.map(lambda x: np.asarray(x, np.float32), exact)
    return jax.tree.map(jnp.asarray, arrays)


def policy(gain: Array, obs: Array) -> Gaussian:
    """The linear-Gaussian policy, differentiable in its gain ``[A, D]``."""
    return lqr_functions.policy_fn(gain, obs, noise_std=NOISE_STD)


def true_step(obs: Array, action: Array, noise: PyTree) -> tuple[Array, Array, Array]:
    """A step of the double integrator."""
    return lqr_functions.step_fn(obs, action, noise, problem=lqr.double_integrator())


def reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """The known reward, as a model is given it."""
    return true_step(obs, action, next_obs)[1]


def random_transitions(key: Key, capacity: int, sizes: Sizes) -> Transition:
    """Draws ``capacity`` steps of the random policy, in episodes from random starts."""
    start_key, action_key = jax.random.split(key)
    episodes = -(-capacity // sizes.episode_steps)
    starts = jax.random.uniform(start_key, (episodes, 2), minval=-sizes.start_range, maxval=sizes.start_range)
    shape = (episodes, sizes.episode_steps, 1)
    actions = jax.random.uniform(action_key, shape, minval=-sizes.action_range, maxval=sizes.action_range)

    def step(obs: Array, action: Array) -> tuple[Array, Transition]:
        next_obs, r, discount = true_step(obs, action, None)
        return next_obs, Transition(obs, action, r, discount, next_obs)

    steps = jax.vmap(lambda s, a: jax.lax.scan(step, s, a)[1])(starts, actions)
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:])[:capacity], steps)
