"""Categorical distribution over discrete actions."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.types import Array, Key

__all__ = ["Categorical"]


class Categorical(NamedTuple):
    """Categorical distribution ``softmax(logits)`` over the last axis.

    A logit of minus infinity forbids its action: its probability, and its part in entropy and divergence, is zero.

    Attributes:
      logits: unnormalised log-probabilities, ``[A]``.
    """

    logits: Array

    def mode(self) -> Array:
        """Most likely action, integer ``[]``."""
        return jnp.argmax(self.logits, axis=-1)

    def log_probs(self) -> Array:
        """Log-probabilities of all actions, ``[A]``."""
        return jax.nn.log_softmax(self.logits, axis=-1)

    def probs(self) -> Array:
        """Probabilities of all actions, ``[A]``."""
        return jax.nn.softmax(self.logits, axis=-1)

    def sample(self, key: Key) -> Array:
        """Draws an action, integer ``[]``."""
        return jax.random.categorical(key, self.logits, axis=-1)

    def sample_and_log_prob(self, key: Key) -> tuple[Array, Array]:
        """Draws an action, integer ``[]``, with its log-probability ``[]``."""
        action = self.sample(key)
        return action, self.log_prob(action)

    def log_prob(self, action: Array) -> Array:
        """Log-probability of the integer ``action []``, ``[]``."""
        return jnp.take_along_axis(self.log_probs(), action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Array:
        """Entropy in nats, ``[]``."""
        return -jnp.sum(_times_log(self.probs(), self.log_probs()), axis=-1)

    def kl(self, other: Categorical) -> Array:
        """``KL(self || other)`` in nats, ``[]``; infinite where ``other`` forbids what ``self`` allows."""
        return jnp.sum(_times_log(self.probs(), self.log_probs() - other.log_probs()), axis=-1)


def _times_log(prob: Array, log_term: Array) -> Array:
    """``p log(.)`` with ``0 log 0 = 0``, safe under differentiation."""
    possible = prob > 0
    return jnp.where(possible, prob * jnp.where(possible, log_term, 0.0), 0.0)
