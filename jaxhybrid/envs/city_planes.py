"""The city as a small picture: the same observation, from which a network must find the numbers by itself."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import city as _city
from jaxhybrid.envs.city import SIZE, City
from jaxhybrid.types import Array

__all__ = ["NUM_PLANES", "planes"]

NUM_PLANES = 4
"""The agent, the buses, the note on the map while it is read, and the goal."""


def planes(city: City, obs: Array, goal: Array | None = None) -> Array:
    """Draws an observation, ``[9, 9, 4]`` in [0, 1]; the first axis is ``x``.

    Where buses stand is the same in all tasks, so that the picture tells of the task what the observation does.

    Args:
      city: from `city.make`.
      obs: integer ``[3]`` or ``[4]``.
      goal: integer ``[2]``; None leaves its plane empty.
    """
    buses = (_city.rides(city)[0] != np.moveaxis(np.indices((SIZE, SIZE)), 0, -1)).any(axis=-1)
    agent = _dot(obs[:2])
    note = agent * obs[3] / (city.obs_sizes[3] - 1) if len(city.obs_sizes) == 4 else jnp.zeros_like(agent)
    aim = jnp.zeros_like(agent) if goal is None else _dot(goal)
    return jnp.stack([agent, jnp.asarray(buses, jnp.float32), note, aim], axis=-1)


def _dot(place: Array) -> Array:
    rows = (jnp.arange(SIZE) == place[0])[:, None]
    return (rows & (jnp.arange(SIZE) == place[1])[None]).astype(jnp.float32)
