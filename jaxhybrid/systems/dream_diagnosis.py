"""What extensions of DREAM may fail by: episodes that say nothing about the task, and policies that do not listen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxhybrid.envs import city_oracle
from jaxhybrid.envs.city import City
from jaxhybrid.trials import Episode
from jaxhybrid.types import Array

__all__ = ["action_entropy", "informative_steps"]


def informative_steps(town: City, episodes: Episode) -> Array:
    """Number of steps whose outcome depends on the task, ``[...]`` for episodes ``[...]``: rides, and looks at the map.

    A model that predicts all others is nearly right and of no use.
    """
    informative = jnp.asarray(city_oracle.informative_actions(town))
    obs = episodes.obs[..., :-1, :]
    told = informative[obs[..., 0], obs[..., 1], episodes.action]
    return jnp.sum(jnp.where(told, episodes.mask, 0.0), axis=-1)


def action_entropy(town: City, episodes: Episode) -> Array:
    """Entropy of the action among episodes ``[N, ...]`` at the same step, in nats, mean over all steps, ``[]``.

    Zero where every episode is the same sequence of actions, whatever it was told.
    """
    counts = jnp.sum(jax.nn.one_hot(episodes.action, town.num_actions) * episodes.mask[..., None], axis=0)  # [T, A]
    alive = jnp.sum(counts, axis=1, keepdims=True)
    shares = counts / jnp.maximum(alive, 1.0)
    # Entropies of the steps, each with the number of episodes that are still going.
    entropy = -jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=1, keepdims=True)
    return jnp.sum(alive * entropy) / jnp.sum(alive)
