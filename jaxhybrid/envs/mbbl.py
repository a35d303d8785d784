"""The locomotion benchmark of model-based reinforcement learning: rewards that the observation determines, no ends.

Five tasks of Wang et al., *Benchmarking Model-Based Reinforcement Learning* (2019), 1,000 steps each, whose reward is

    r = v - c |a|^2 - 3 (z - z0)^2 + 1          (the last two terms only where the task has a height target z0)

with v the forward velocity and z the torso height, both read off the observation, so that a planner can evaluate it on
predicted states. Falling does not end an episode: the height term charges for it.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, PyTree, RewardFn, TimeStep

__all__ = ["MBBL_TASKS", "MbblHostState", "MbblState", "MbblTask", "RewardOn", "make", "reward", "reward_fn"]

RewardOn = Literal["current", "next", "released"]

_CLIPPED = "The observation clips speeds to +-10, the benchmark's did not."
_SLOWER = "One step lasts {dt} s here and {paper_dt} s in the benchmark."


class MbblTask(NamedTuple):
    """Facts of one task.

    Attributes:
      brax: name of the task in Brax.
      gymnasium: id of the task in Gymnasium.
      options: what Gymnasium's task needs to give the benchmark's observation.
      obs_dim: size ``D`` of the observation: joint positions without the horizontal ones, then joint velocities.
      dt: seconds per step in the benchmark.
      velocity_index: where the forward velocity is in the observation.
      control_cost: factor ``c`` of the squared action.
      height_target: torso height ``z0`` in metres, or None; the height is ``obs[0]``.
      released: what each of velocity and height is read from in the released model-augmented actor, or None when that
        release has no such task.
      has_health: whether the simulators' own task ends on a fall, which is turned off.
      notes: differences from the benchmark that every physics shares.
    """

    brax: str
    gymnasium: str
    options: dict[str, Any]
    obs_dim: int
    dt: float
    velocity_index: int
    control_cost: float
    height_target: float | None
    released: tuple[Literal["current", "next"], Literal["current", "next"]] | None
    has_health: bool
    notes: str = ""


MBBL_TASKS: dict[str, MbblTask] = {
    "halfcheetah": MbblTask(
        "halfcheetah", "HalfCheetah-v5", {}, 17, 0.05, 8, 0.1, None, ("next", "next"), has_health=False
    ),
    "ant": MbblTask(
        "ant",
        "Ant-v5",
        {"include_cfrc_ext_in_observation": False},
        27,
        0.05,
        13,
        0.1,
        0.57,
        ("next", "next"),
        has_health=True,
    ),
    "hopper": MbblTask(
        "hopper", "Hopper-v5", {}, 11, 0.008, 5, 0.1, 1.3, ("current", "current"), has_health=True, notes=_CLIPPED
    ),
    "walker2d": MbblTask(
        "walker2d", "Walker2d-v5", {}, 17, 0.008, 8, 0.1, 1.3, ("current", "next"), has_health=True, notes=_CLIPPED
    ),
    "swimmer": MbblTask("swimmer", "Swimmer-v5", {}, 8, 0.04, 3, 1e-4, None, None, has_health=False),
}

_BRAX_NOTES = {
    ("halfcheetah", "spring"): "Brax changes the last two gears from 60 and 30 to 100 and 100 on this back-end.",
    ("halfcheetah", "positional"): "Brax changes the last two gears from 60 and 30 to 100 and 100 on this back-end.",
    ("ant", "positional"): "Brax changes the gears from 150 to 200 on this back-end.",
}


class MbblState(NamedTuple):
    """State of one environment: that of the physics, and the observation ``[D]`` which the next reward reads."""

    physics: PyTree
    obs: Array


class MbblHostState(NamedTuple):
    """State of ``N`` host environments: that of the physics, and the observations ``[N, D]``."""

    physics: PyTree
    obs: np.ndarray


def reward(
    obs: Array,
    action: Array,
    next_obs: Array,
    *,
    velocity_index: int,
    control_cost: float,
    height_target: float | None,
    velocity_on: Literal["current", "next"],
    height_on: Literal["current", "next"],
) -> Array:
    """The reward in the formula above, with the action clipped to [-1, 1].

    **Gradient flows through** everything; the clipped part of an action has gradient 0.

    Args:
      obs: observation before the step, ``[..., D]``, JAX or NumPy.
      action: action, ``[..., A]``.
      next_obs: observation after the step, ``[..., D]``.
      velocity_index: where the forward velocity (m/s) is in the observation.
      control_cost: factor of the squared action.
      height_target: torso height in metres, or None for a task without.
      velocity_on: whether the velocity is that before or after the step.
      height_on: the same for the height.

    Returns:
      The reward, ``[...]``.
    """
    velocity = (obs if velocity_on == "current" else next_obs)[..., velocity_index]
    action = action.clip(-1.0, 1.0)
    value = velocity - control_cost * (action * action).sum(-1)
    if height_target is None:
        return value
    height = (obs if height_on == "current" else next_obs)[..., 0]
    return value - 3.0 * (height - height_target) ** 2 + 1.0


def reward_fn(task: str, reward_on: RewardOn = "current") -> RewardFn:
    """Returns a task's reward as a function of ``(obs, action, next_obs)``.

    Args:
      task: a key of `MBBL_TASKS`.
      reward_on: ``"current"`` reads velocity and height before the step, as the benchmark's environments do;
        ``"next"`` reads both after it, so that a single model step already shows what the action did;
        ``"released"`` reads what the released model-augmented actor optimised, which was neither throughout: after the
        step in half cheetah and ant, before it in hopper, velocity before and height after in walker.

    Raises:
      InputError: an unknown task or reading, or ``"released"`` for swimmer, which that release does not have.
    """
    if task not in MBBL_TASKS:
        raise unknown("task", task, MBBL_TASKS)
    facts = MBBL_TASKS[task]
    readings = {"current": ("current", "current"), "next": ("next", "next"), "released": facts.released}
    if reward_on not in readings:
        raise unknown("reward_on", reward_on, readings)
    reading = readings[reward_on]
    if reading is None:
        raise InputError(f"reward_on='released' does not exist for {task!r}: choose 'current' or 'next'.")
    return functools.partial(
        reward,
        velocity_index=facts.velocity_index,
        control_cost=facts.control_cost,
        height_target=facts.height_target,
        velocity_on=reading[0],
        height_on=reading[1],
    )


def make(
    task: str,
    physics: str | None = None,
    *,
    reward_on: RewardOn = "current",
    num_envs: int = 1,
    max_episode_steps: int = 1000,
) -> Env | HostEnv:
    """Makes a task of the benchmark on Brax or MuJoCo physics.

    Episodes end only by truncation; actions are clipped to [-1, 1] before the physics and the reward see them. Both
    physics start from the benchmark's distribution of states.

    Args:
      task: a key of `MBBL_TASKS`.
      physics: ``"mujoco"`` for a `HostEnv`, or a Brax back-end for an `Env`; by default Brax's ``"spring"``, and
        ``"generalized"`` for swimmer, which has no other.
      reward_on: see `reward_fn`.
      num_envs: number ``N`` of instances with MuJoCo; an `Env` is batched by ``jax.vmap`` instead.
      max_episode_steps: steps after which an episode is truncated.

    Raises:
      InputError: an unknown task, physics or reading, or a count that the physics does not take.
    """
    rewards = reward_fn(task, reward_on)
    facts = MBBL_TASKS[task]
    health = {"terminate_when_unhealthy": False} if facts.has_health else {}
    if physics == "mujoco":
        gymnasium = importlib.import_module("jaxhybrid.envs.gymnasium")
        host: HostEnv = gymnasium.make(
            facts.gymnasium, num_envs=num_envs, max_episode_steps=max_episode_steps, **facts.options, **health
        )
        return _wrap_host(host, _spec(host.spec, task, "mujoco", rewards), rewards)
    if num_envs != 1:
        raise InputError(f"num_envs={num_envs} is for physics='mujoco': batch this environment with jax.vmap.")
    brax = importlib.import_module("jaxhybrid.envs.brax")
    backends = brax.SUPPORTED[facts.brax]
    backend = backends[0] if physics is None else physics
    if backend not in backends:
        raise unknown(f"physics of {task!r}", backend, [*backends, "mujoco"])
    env: Env = brax.make(facts.brax, backend, max_episode_steps=max_episode_steps, **health)
    return _wrap(env, _spec(env.spec, task, backend, rewards), rewards)


def _spec(spec: EnvSpec, task: str, physics: str, rewards: RewardFn) -> EnvSpec:
    facts = MBBL_TASKS[task]
    slower = "" if abs(spec.dt - facts.dt) < 1e-6 else _SLOWER.format(dt=round(spec.dt, 6), paper_dt=facts.dt)
    notes = (
        "Returns on this physics compare with each other, not with the benchmark's published ones (MuJoCo 1.5).",
        facts.notes,
        slower,
        _BRAX_NOTES.get((task, physics), ""),
    )
    return spec._replace(
        name=f"mbbl/{task}/{physics}",
        action_low=-np.ones(spec.action_dim, np.float32),
        action_high=np.ones(spec.action_dim, np.float32),
        reward_fn=rewards,
        terminated_fn=None,
        observable_termination=True,
        differentiable_reward=spec.differentiable_transition,
        notes=" ".join(note for note in notes if note),
    )


def _wrap(env: Env, spec: EnvSpec, rewards: RewardFn) -> Env:
    def reset(key: Key) -> tuple[MbblState, Array]:
        physics, obs = env.reset(key)
        # A copy: a caller may donate the state and the observation, and one buffer cannot be donated twice.
        return MbblState(physics, jnp.copy(obs)), obs

    def step(env_state: MbblState, action: Array, key: Key) -> tuple[MbblState, TimeStep]:
        action = jnp.clip(action, -1.0, 1.0)
        physics, after = env.step(env_state.physics, action, key)
        return MbblState(physics, jnp.copy(after.obs)), after._replace(
            reward=rewards(env_state.obs, action, after.obs), terminated=jnp.zeros((), bool)
        )

    return Env(reset, step, spec)


def _wrap_host(env: HostEnv, spec: EnvSpec, rewards: RewardFn) -> HostEnv:
    def reset(seed: int) -> tuple[MbblHostState, np.ndarray]:
        physics, obs = env.reset(seed)
        return MbblHostState(physics, obs.copy()), obs

    def step(env_state: MbblHostState, action: np.ndarray) -> tuple[MbblHostState, TimeStep]:
        clipped = np.clip(np.asarray(action), -1.0, 1.0)
        physics, after = env.step(env_state.physics, clipped)
        value: Any = rewards(env_state.obs, clipped, after.obs)  # type: ignore[arg-type]
        never: Any = np.zeros(env.num_envs, bool)
        return MbblHostState(physics, np.array(after.obs)), after._replace(
            reward=value.astype(np.float32), terminated=never
        )

    def reset_where(env_state: MbblHostState, obs: np.ndarray, mask: np.ndarray) -> tuple[MbblHostState, np.ndarray]:
        physics, obs = env.reset_where(env_state.physics, obs, mask)
        return MbblHostState(physics, obs.copy()), obs

    return HostEnv(reset, step, reset_where, env.close, env.num_envs, spec)
