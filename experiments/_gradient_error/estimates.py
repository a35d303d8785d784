"""Gradients of every combination of a true or learned model with an exact or learned critic."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments._gradient_error.fits import Critic, build_ensemble, learned_q
from experiments._gradient_error.problem import GAIN, Sizes, Truth, policy, reward, true_step
from jaxhybrid.dynamics import EnsembleState, StepNoise, model_step
from jaxhybrid.envs.lqr_functions import q_fn
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.ops import trees
from jaxhybrid.types import Array, Key

__all__ = ["COMBINATIONS", "Result", "gradients"]

# (learned model?, learned critic?), in the order of the leading axis of every gradient below.
COMBINATIONS = {
    "true model, exact critic": (False, False),
    "true model, learned critic": (False, True),
    "learned model, exact critic": (True, False),
    "learned model, learned critic": (True, True),
}


class Result(NamedTuple):
    """Gradients of every combination at one horizon, for every seed.

    Attributes:
      gradient: estimated expectation of the MAAC gradient, ``[S, 4, A, D]``.
      standard_error: of every coordinate, ``[S, 4, A, D]``.
    """

    gradient: Array
    standard_error: Array


def _draws(exact: Truth, model: EnsembleState, critic: Critic, key: Key, *, horizon: int, sizes: Sizes) -> Array:
    """Draws of the MAAC gradient of the return from (1, 1) for every combination, ``[4, N, A, D]``.

    All combinations share their keys, so their draws can be compared one by one.
    """
    ensemble = build_ensemble(sizes)

    def draw(flags: Array, member: Array, draw_key: Key) -> Array:
        learned_step = model_step(ensemble, model, reward_fn=reward)

        def step(obs: Array, action: Array, noise: StepNoise) -> tuple[Array, Array, Array]:
            outcomes = learned_step(obs, action, noise), true_step(obs, action, None)
            return trees.where(flags[0], *outcomes)

        def q(obs: Array, action: Array) -> Array:
            known = q_fn(obs, action, critic=exact.critic)
            return jnp.where(flags[1], learned_q(critic, sizes, obs, action), known)

        policy_key, model_key = jax.random.split(draw_key)
        noise = StepNoise(jnp.broadcast_to(member, (1, horizon)), jax.random.split(model_key, (1, horizon)))
        grads, _ = jax.grad(maac_loss, has_aux=True)(
            jnp.array(GAIN),
            jnp.ones(2),
            policy_key,
            policy_fn=policy,
            step_fn=step,
            q_fn=q,
            horizon=horizon,
            gamma=exact.gamma,
            step_noise=noise,
        )
        return -grads

    # A group of draws keeps its member: the group axis lies outside, so that no weights are gathered per draw.
    keys = jax.random.split(key, (sizes.members, sizes.draws // sizes.members))
    grouped = jax.vmap(jax.vmap(draw, in_axes=(None, None, 0)), in_axes=(None, 0, 0))
    draws = jax.vmap(grouped, in_axes=(0, None, None))(
        jnp.array(list(COMBINATIONS.values())), jnp.arange(sizes.members), keys
    )
    return draws.reshape((len(COMBINATIONS), -1) + draws.shape[3:])


@functools.partial(jax.jit, static_argnames=("horizon", "sizes"))
def gradients(
    exact: Truth, truncated: Array, model: EnsembleState, critic: Critic, keys: Key, *, horizon: int, sizes: Sizes
) -> Result:
    """Estimates the gradient of every combination for every seed, with ``truncated`` the known mean of the first."""

    def one(m: EnsembleState, c: Critic, key: Key) -> Result:
        draws = _draws(exact, m, c, key, horizon=horizon, sizes=sizes)
        # The draws of the true model with the exact critic are a control variate with a known mean.
        paired = jnp.concatenate([draws[:1], draws[1:] - draws[:1] + truncated[None, None]])
        return Result(jnp.mean(paired, axis=1), jnp.std(paired, axis=1, ddof=1) / sizes.draws**0.5)

    return jax.vmap(one)(model, critic, keys)
