"""Whole trials in the city as one environment: exploration, then execution, and all that was seen as the observation.

What an agent with a memory would remember is written into the observation, so that a policy of one observation, which
is all that an environment can ask for, can act as one with a memory does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import city
from jaxhybrid.envs.city import City, CityState, Phase
from jaxhybrid.errors import unknown
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["Record", "TrialState", "environment", "read"]


class Record(NamedTuple):
    """What was seen and done so far; the first axis of two is exploration and execution.

    Attributes:
      obs: before every step and after the last one, zeros where nothing was seen yet, integer ``[2, T+1, C]``.
      action: zeros past the last one, integer ``[2, T]``.
      steps: taken, integer ``[2]``.
      goal: the instruction, integer ``[2]``.
      executing: 1 once exploration is over, ``[]``.
    """

    obs: Array
    action: Array
    steps: Array
    goal: Array
    executing: Array


class TrialState(NamedTuple):
    """State of the episode of the trial, and the record."""

    episode: CityState
    record: Record


def environment(town: City, *, phase: Phase = "test") -> Env:
    """Returns trials as an environment: a return is that of the execution episode.

    Args:
      town: from `envs.city.make`.
      phase: draws tasks of "train" or "test".

    Raises:
      InputError: an unknown ``phase``.
    """
    if phase not in ("train", "test"):
        raise unknown("phase", phase, ("train", "test"))
    shape = (2, town.horizon + 1, len(town.obs_sizes))

    def reset(key: Key) -> tuple[TrialState, Array]:
        task_id, goal = city.sample_task(town, key, split=phase)
        state, obs = city.reset(town, task_id, goal, exploring=True)
        nothing = jnp.zeros(shape, jnp.int32)
        counts = jnp.zeros(2, jnp.int32)
        actions = jnp.zeros((2, town.horizon), jnp.int32)
        record = Record(nothing.at[0, 0].set(obs), actions, counts, goal, jnp.zeros((), jnp.int32))
        return TrialState(state, record), _written(record)

    def step(env_state: TrialState, action: Array, key: Key) -> tuple[TrialState, TimeStep]:
        del key  # the transition is deterministic
        episode, record = env_state
        part, exploring = record.executing, record.executing == 0
        after, found = city.step(town, episode, action)
        count = record.steps[part]
        over = found.terminated | found.truncated
        seen = record.obs.at[part, count + 1].set(found.obs)
        # The second episode starts where the first one did, in the same task.
        again, first = city.reset(town, episode.task_id, record.goal, exploring=False)
        begins = exploring & over
        seen = jnp.where(begins, seen.at[1, 0].set(first), seen)
        record = record._replace(
            obs=seen,
            action=record.action.at[part, count].set(action.astype(jnp.int32)),
            steps=record.steps.at[part].add(1),
            executing=jnp.where(begins, 1, part),
        )
        after = jax.tree.map(lambda new, old: jnp.where(begins, new, old), again, after)
        return TrialState(after, record), TimeStep(
            obs=_written(record),
            reward=found.reward,
            terminated=~exploring & found.terminated,
            truncated=~exploring & found.truncated,
        )

    spec = EnvSpec(
        name=f"city/{town.task}",
        obs_dim=int(np.prod(shape)) + 2 * town.horizon + 5,
        action_dim=0,
        action_low=np.zeros(0),
        action_high=np.zeros(0),
        max_episode_steps=2 * town.horizon,
        observable_termination=False,
        notes="Whole trials; an observation is the record of the trial so far, and the return that of execution.",
        num_actions=town.num_actions,
    )
    return Env(reset, step, spec)


def read(town: City, obs: Array) -> Record:
    """Returns the record that an observation ``[D]`` holds."""
    shape = (2, town.horizon + 1, len(town.obs_sizes))
    ends = np.cumsum([np.prod(shape), 2 * town.horizon, 2, 2])
    seen, action, steps, goal, executing = jnp.split(obs.astype(jnp.int32), ends)
    return Record(seen.reshape(shape), action.reshape(2, town.horizon), steps, goal, executing[0])


def _written(record: Record) -> Array:
    """The record as one vector of floats, ``[D]``."""
    return jnp.concatenate([leaf.ravel() for leaf in record]).astype(jnp.float32)
