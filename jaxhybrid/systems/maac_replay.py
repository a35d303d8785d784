"""What MAAC keeps of a real step, and what its model's fit is given: rows, splits and, if asked for, weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxhybrid.dynamics import Bootstrap
from jaxhybrid.rollout_values import score_weights
from jaxhybrid.systems.maac_updates import Learner, Parts, blank_transition
from jaxhybrid.types import Array, EnvSpec, Key, PyTree, Transition

__all__ = ["blank_item", "bootstrap", "items", "random_action", "random_log_prob"]

# Steps whose scores exist at the same time: with a policy of 10^5 parameters 25 MB.
_CHUNK = 64


def random_action(spec: EnvSpec, key: Key) -> Array:
    """Draws the action of a policy that has learnt nothing, uniform in [-1, 1] or standard normal."""
    if spec.bounded:
        return jax.random.uniform(key, (spec.action_dim,), minval=-1.0, maxval=1.0)
    return jax.random.normal(key, (spec.action_dim,))


def random_log_prob(spec: EnvSpec, action: Array) -> Array:
    """Log-density of `random_action`, ``[]``."""
    if spec.bounded:
        return jnp.full((), -spec.action_dim * jnp.log(2.0))
    return jnp.sum(jax.scipy.stats.norm.logpdf(action))


def blank_item(parts: Parts) -> tuple:
    """A real step of zeros, which gives the replay its shapes."""
    item = (blank_transition(parts.spec), jnp.zeros(parts.config.ensemble_size, bool))
    return item if parts.config.model_weights == "uniform" else (*item, jnp.zeros(()))


def items(parts: Parts, policy_params: PyTree, explored: Array, rows: Transition, key: Key) -> tuple:
    """Steps ``[B, ...]`` with the members that validate on them and, where the fit needs it, their log-probability.

    Args:
      parts: of the system.
      policy_params: the policy that acted.
      explored: whether it acted at random instead, boolean ``[]``.
      rows: the steps.
      key: decides which members train and which validate.
    """
    config, count = parts.config, rows.reward.shape[0]
    held_out = jax.random.bernoulli(key, config.validation_fraction, (count, config.ensemble_size))
    if config.model_weights == "uniform":
        return rows, held_out

    def log_prob(obs: Array, action: Array) -> Array:
        own = parts.policy.apply(policy_params, obs).log_prob(action)
        return jnp.where(explored, random_log_prob(parts.spec, action), own)

    return rows, held_out, jax.vmap(log_prob)(rows.obs, rows.action)


def bootstrap(parts: Parts, learner: Learner, replay: Any) -> Bootstrap:
    """Everything in the replay, as the model's fit takes it; weights are those of the current policy."""
    kept, size = parts.real_replay.contents(replay)
    transitions, held_out = kept[:2]
    if parts.config.model_weights == "uniform":
        return Bootstrap(transitions, held_out, size)
    weight = score_weights(
        learner.policy_params,
        transitions.obs,
        transitions.action,
        kept[2],
        jnp.arange(held_out.shape[0]) < size,
        policy_fn=parts.policy.apply,
        max_ratio=parts.config.model_max_ratio,
        chunk=_CHUNK,
    )
    return Bootstrap(transitions, held_out, size, weight)
