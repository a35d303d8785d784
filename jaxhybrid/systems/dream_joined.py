"""E-RL2, the baseline: one agent with a memory that goes from the exploration episode on into the execution episode.

It is told nothing about the task but what it remembers, and learns from returns alone: exploration, which pays nothing,
is worth what the execution after it gains.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array

__all__ = ["joined", "obs_sizes", "seen"]


def obs_sizes(town: City) -> tuple[int, ...]:
    """Number of values of every component of `seen`."""
    return (*town.obs_sizes, town.num_actions + 1, city.SIZE + 1, city.SIZE + 1)


def seen(obs: Array, previous: Array, goal: Array, *, exploring: Array | bool) -> Array:
    """What the agent sees: the city, its last action, and the instruction once there is one, integer ``[..., C+3]``.

    Args:
      obs: of the city, ``[..., C]``.
      previous: the action before it, plus one; 0 at the start of either episode, ``[...]``.
      goal: ``[..., 2]``.
      exploring: whether there is no instruction yet, ``[...]``.
    """
    told = jnp.where(jnp.asarray(exploring)[..., None], 0, goal + 1)
    return jnp.concatenate([obs, previous[..., None], told], axis=-1)


def joined(trial: Trial) -> Episode:
    """Both episodes as one of twice the length, whose first part pays nothing.

    The padding of the first episode is left out, so that the memory runs through; its end is not the end of the task.
    """
    first, second = trial.exploration, trial.execution
    horizon, count = first.action.shape[0], first.lengths
    place = jnp.arange(2 * horizon + 1)
    exploring = place < count
    here, there = jnp.minimum(place, horizon), jnp.clip(place - count, 0, horizon)

    def merged(x: Array, y: Array) -> Array:
        exploring_steps = exploring[:-1]
        # A step of the second episode past its last place does not exist.
        inside = jnp.where(place - count < horizon, 1, 0)[:-1].astype(y.dtype)
        return jnp.where(exploring_steps, x[here[:-1] % horizon], inside * y[there[:-1] % horizon])

    obs = jnp.where(exploring[:, None], first.obs[here], second.obs[there])
    action = merged(first.action, second.action)
    starts = (place == 0) | (place == count)
    previous = jnp.where(starts, 0, jnp.concatenate([jnp.zeros(1, jnp.int32), action]) + 1)
    goal = jnp.broadcast_to(trial.goal[None], (place.shape[0], 2))
    return Episode(
        obs=seen(obs, previous, goal, exploring=exploring),
        action=action,
        reward=merged(jnp.zeros_like(first.reward), second.reward),
        discount=merged(jnp.ones_like(first.discount), second.discount),
        mask=merged(first.mask, second.mask),
    )
