"""Execution episodes of the city as an environment like any other, for learners that know nothing of trials."""

from __future__ import annotations

import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import city
from jaxhybrid.envs.city import CityState
from jaxhybrid.envs.city_planes import NUM_PLANES, planes
from jaxhybrid.errors import unknown
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["environment"]

Observation = Literal["integers", "image"]


def environment(
    task: str,
    *,
    phase: city.Phase = "train",
    split: city.Split | None = None,
    task_id: int | None = None,
    terminal_limit: bool = True,
    observation: Observation = "integers",
) -> Env:
    """Returns execution episodes as an environment: every one is another task and another goal.

    The task is not seen, and over all tasks nothing beats walking, 0.3; with ``task_id`` it is always the same, and 0.8
    can be learnt.

    Args:
      task: name in `city.TASKS`.
      phase: draws tasks of "train" or "test".
      split: see `city.make`.
      task_id: the one task; None draws it.
      terminal_limit: see `city.make`.
      observation: "integers" is that of the city with the goal behind it, as floats; "image" is `city_planes.planes`.

    Raises:
      InputError: an unknown name or a ``task_id`` that does not exist.
    """
    town = city.make(task, split=split, terminal_limit=terminal_limit)
    if phase not in ("train", "test"):
        raise unknown("phase", phase, ("train", "test"))
    if observation not in ("integers", "image"):
        raise unknown("observation", observation, ("integers", "image"))
    if task_id is not None:
        city.reset(town, task_id, town.goals[0], exploring=False)

    def observed(obs: Array, goal: Array) -> Array:
        if observation == "image":
            return planes(town, obs, goal)
        return jnp.concatenate([obs, goal]).astype(jnp.float32)

    def start(key: Key) -> tuple[CityState, Array]:
        drawn, goal = city.sample_task(town, key, split=phase)
        state, obs = city.reset(town, drawn if task_id is None else task_id, goal, exploring=False)
        return state, observed(obs, goal)

    def advance(env_state: CityState, action: Array, key: Key) -> tuple[CityState, TimeStep]:
        del key  # the transition is deterministic
        state, after = city.step(town, env_state, action)
        return state, after._replace(obs=observed(after.obs, state.goal))

    shape = (city.SIZE, city.SIZE, NUM_PLANES) if observation == "image" else (len(town.obs_sizes) + 2,)
    spec = EnvSpec(
        name=f"city/{task}",
        obs_dim=math.prod(shape),
        action_dim=0,
        action_low=np.zeros(0),
        action_high=np.zeros(0),
        max_episode_steps=town.horizon,
        observable_termination=False,
        notes="Execution episodes alone; without exploration nothing beats walking, 0.3. The reward of giving up "
        "depends on the steps left.",
        num_actions=town.num_actions,
        obs_shape=shape if len(shape) > 1 else None,
    )
    return Env(start, advance, spec)
