"""The MuJoCo tasks of 2017, on today's simulator: rewards of the first version where version 5 changed them.

Papers of that time report these. What differs from version 5 of Gymnasium, task by task:

- swimmer: nothing.
- reacher: the distance in the reward is the one before the step. (The observation had an eleventh coordinate, the
  height of the finger above the target, which is always zero; it is left out.)
- hopper: one point for being alive is paid for every step, also for the one that ends the episode.
- walker: as hopper; and the right foot slides, with a friction of 0.9 in the place of 1.9.

The simulator itself is newer (MuJoCo 1.3 then), so returns are close to those of 2017, not the same.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from jaxhybrid.errors import unknown
from jaxhybrid.types import HostEnv, PyTree, TimeStep

__all__ = ["TASKS", "Task", "V1State", "make"]


class Task(NamedTuple):
    """What is needed to turn a task of version 5 into the one of 2017.

    Attributes:
      gymnasium: id of the task in Gymnasium.
      options: of that task.
      alive_at_end: paid for the step that ends an episode, which version 5 does not.
      distance_before: whether the reward's distance is the one before the step.
    """

    gymnasium: str
    options: dict[str, Any]
    alive_at_end: float = 0.0
    distance_before: bool = False


TASKS: dict[str, Task] = {
    "hopper": Task("Hopper-v5", {}, alive_at_end=1.0),
    "reacher": Task("Reacher-v5", {}, distance_before=True),
    "swimmer": Task("Swimmer-v5", {}),
    "walker": Task("Walker2d-v5", {"xml_file": "walker2d.xml"}, alive_at_end=1.0),
}
# Where the vector from the finger to the target is in the observation.
_DISTANCE = slice(8, 10)


class V1State(NamedTuple):
    """State of ``N`` environments: that of the physics, and the observations ``[N, D]`` that a reward may look at."""

    physics: PyTree
    obs: np.ndarray


def make(task: str, *, num_envs: int = 1, max_episode_steps: int | None = None) -> HostEnv:
    """Makes ``num_envs`` instances of a task.

    Args:
      task: a key of `TASKS`.
      num_envs: number ``N`` of instances.
      max_episode_steps: steps after which an episode is truncated; by default 50 for reacher and 1000 otherwise.

    Raises:
      InputError: an unknown task, or a count below 1.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    facts = TASKS[task]
    gymnasium = importlib.import_module("jaxhybrid.envs.gymnasium")
    env: HostEnv = gymnasium.make(
        facts.gymnasium, num_envs=num_envs, max_episode_steps=max_episode_steps, **facts.options
    )
    # The distance before the step is that of the observation, so the reward is still a function of it.
    reward_fn = _reacher_reward if facts.distance_before else None
    terminated_fn = importlib.import_module("jaxhybrid.envs.facts").GYMNASIUM[facts.gymnasium].terminated_fn
    spec = env.spec._replace(
        name=f"mujoco_v1/{task}", reward_fn=reward_fn, terminated_fn=terminated_fn, observable_termination=True
    )

    def reset(seed: int) -> tuple[V1State, np.ndarray]:
        physics, obs = env.reset(seed)
        return V1State(physics, obs.copy()), obs

    def step(env_state: V1State, action: np.ndarray) -> tuple[V1State, TimeStep]:
        physics, after = env.step(env_state.physics, action)
        reward: Any = np.array(after.reward)
        if facts.distance_before:
            reward += _distance(np.asarray(after.obs)) - _distance(env_state.obs)
        reward += np.float32(facts.alive_at_end) * np.asarray(after.terminated)
        return V1State(physics, np.array(after.obs)), after._replace(reward=reward.astype(np.float32))

    def reset_where(env_state: V1State, obs: np.ndarray, mask: np.ndarray) -> tuple[V1State, np.ndarray]:
        physics, obs = env.reset_where(env_state.physics, obs, mask)
        return V1State(physics, obs.copy()), obs

    return env._replace(reset=reset, step=step, reset_where=reset_where, spec=spec)


def _distance(obs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(obs[:, _DISTANCE], axis=1).astype(np.float32)


def _reacher_reward(obs: Any, action: Any, next_obs: Any) -> Any:
    del next_obs
    vector = obs[_DISTANCE]
    # The root has no slope at the target, and needs none exactly there.
    return -(((vector * vector).sum() + 1e-12) ** 0.5) - (action * action).sum()
