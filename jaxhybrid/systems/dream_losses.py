"""The losses of DREAM's agents on a batch of trials: temporal difference, decoder, bottleneck."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxhybrid.context_networks import Heads, dueling
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.context import bottleneck_loss, decoder_loss
from jaxhybrid.losses.critic import double_q_targets, sequence_squared_error
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, PyTree

__all__ = ["KNOWN", "context_loss", "td_loss"]

KNOWN = ("decoder", "first_error", "last_error", "code_square")
"""What `context_loss` logs."""


def context_loss(
    parts: Any, params: PyTree, constants: PyTree, trials: Trial, codes: Array, num_prefixes: Array
) -> tuple[Array, dict[str, Array]]:
    """Losses of decoder and bottleneck; the code of a task is a constant of the decoder's."""
    config, key = parts.config, jax.random.key(0)  # neither loss draws anything
    if config.method != "dream":
        return jnp.zeros(()), dict.fromkeys(KNOWN, jnp.zeros(()))
    # Decoded before, once for all losses.
    examples = (codes, trials.exploration.mask, parts.nets.problem.apply(constants["problem"], trials.task_id))
    decode = partial(decoder_loss, decode_fn=_given, num_prefixes=num_prefixes)
    decoder, errors = batched(decode)(None, examples, key)
    told = parts.nets.problem.apply(params["problem"], trials.task_id)
    length, code = batched(partial(bottleneck_loss, encode_fn=_given, bound=config.bound))(None, told, key)
    total = decoder + config.bottleneck * length
    return total, {"decoder": decoder, **errors, "code_square": code["square"]}


def _given(_: PyTree, codes: Array) -> Array:
    return codes


def td_loss(
    config: Config, fast: Heads, slow: Heads, episodes: Episode, reward: Array, num_steps: Array
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of double Q-learning over all steps of a batch of episodes, from heads ``[B, T+1, ...]``."""

    def before(heads: Heads) -> Array:
        return dueling(Heads(heads.value[:, :-1], heads.advantage[:, :-1]), mean=config.dueling_mean)

    def after(heads: Heads) -> Array:
        return dueling(Heads(heads.value[:, 1:], heads.advantage[:, 1:]), mean=config.dueling_mean)

    # The same parameters choose the action, as a constant.
    next_q = jax.lax.stop_gradient(after(fast))
    targets = jax.vmap(partial(double_q_targets, gamma=config.gamma))(reward, episodes.discount, next_q, after(slow))
    examples = (before(fast), episodes.action, targets, episodes.mask)
    td = partial(sequence_squared_error, q_fn=_given, num_steps=num_steps)
    loss, aux = batched(td)(None, examples, jax.random.key(0))
    return loss, {"td": loss, **aux}
