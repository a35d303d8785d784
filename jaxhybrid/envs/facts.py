"""What the observations of the Brax and Gymnasium tasks determine: rewards and terminations as pure functions.

Each function is checked against the task itself. Where a reward differences positions (every forward velocity) or reads
contact forces, the observation does not determine it and the table says so.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp

from jaxhybrid.types import Array, RewardFn, TerminatedFn

__all__ = ["GYMNASIUM", "UNKNOWN", "Facts", "brax"]


class Facts(NamedTuple):
    """See the fields of the same names in `jaxhybrid.types.EnvSpec`."""

    reward_fn: RewardFn | None = None
    terminated_fn: TerminatedFn | None = None
    observable_termination: bool = True
    notes: str = ""


def _norm(x: Array) -> Array:
    """Euclidean norm of ``x [D]`` with gradient 0, instead of NaN, at the origin."""
    squared = jnp.sum(x * x)
    # The inner where keeps the square root's infinite slope at 0 out of the backward pass.
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _leaves_range(
    obs: Array, action: Array, next_obs: Array, *, index: int, low: float, high: float, closed: bool
) -> Array:
    del obs, action
    x = next_obs[index]
    inside = (x >= low) & (x <= high) if closed else (x > low) & (x < high)
    return ~inside


def _hopper_terminated(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    in_bounds = jnp.all(jnp.abs(next_obs[1:]) < 100.0)
    return ~(in_bounds & (next_obs[0] > 0.7) & (jnp.abs(next_obs[1]) < 0.2))


def _walker_terminated(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return ~((next_obs[0] > 0.8) & (next_obs[0] < 2.0) & (jnp.abs(next_obs[1]) < 1.0))


def _pendulum_fell(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return ~(jnp.all(jnp.isfinite(next_obs)) & (jnp.abs(next_obs[1]) <= 0.2))


def _upright_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    return jnp.where(_pendulum_fell(obs, action, next_obs), 0.0, 1.0).astype(next_obs.dtype)


def _reacher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs
    return -_norm(next_obs[8:10]) - jnp.sum(action * action)


def _pusher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs
    tip, ball, goal = next_obs[14:17], next_obs[17:20], next_obs[20:23]
    return -_norm(ball - goal) - 0.5 * _norm(ball - tip) - 0.1 * jnp.sum(action * action)


def _brax_reacher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs
    return -_norm(next_obs[8:11]) - jnp.sum(action * action)


def _brax_pusher_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del next_obs
    tip, ball, goal = obs[14:17], obs[17:20], obs[20:23]
    torque = 2.0 * action  # actions in [-1, 1] are stretched to the actuators' [-2, 2] before they are charged
    return -_norm(ball - goal) - 0.5 * _norm(ball - tip) - 0.1 * jnp.sum(torque * torque)


def _brax_standup_reward(obs: Array, action: Array, next_obs: Array, *, dt: float) -> Array:
    del obs
    torque = 0.4 * action  # actions in [-1, 1] are stretched to the actuators' [-0.4, 0.4] before they are charged
    return next_obs[0] / dt + 1.0 - 0.01 * jnp.sum(torque * torque)


def _brax_upright_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return jnp.ones((), next_obs.dtype)


def _brax_pendulum_fell(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return jnp.abs(next_obs[1]) > 0.2


def _brax_tip_fell(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    sin_1, sin_2, cos_1, cos_2 = next_obs[1:5]
    # The second angle is relative to the first pole; both poles are 0.6 m long.
    return 0.6 * cos_1 + 0.6 * (cos_1 * cos_2 - sin_1 * sin_2) <= 1.0


def _brax_fast_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return next_obs[0]


def _swing_up_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    del next_obs
    torque = jnp.clip(action[0], -2.0, 2.0)
    return -(jnp.arctan2(obs[1], obs[0]) ** 2) - 0.1 * obs[2] ** 2 - 0.001 * torque**2


def _hill_reached(obs: Array, action: Array, next_obs: Array) -> Array:
    del obs, action
    return (next_obs[0] >= 0.45) & (next_obs[1] >= 0.0)


def _hill_reward(obs: Array, action: Array, next_obs: Array) -> Array:
    reached = _hill_reached(obs, action, next_obs)
    return jnp.where(reached, 100.0, 0.0).astype(next_obs.dtype) - 0.1 * action[0] ** 2


_VELOCITY = "The reward differences positions that the observation leaves out, so a model must learn it."
_CLIPPED = "The observation clips speeds to +-10."

UNKNOWN = Facts(
    observable_termination=False, notes="Whether the observation determines reward and termination is not known."
)

GYMNASIUM: dict[str, Facts] = {
    "Ant-v5": Facts(
        terminated_fn=functools.partial(_leaves_range, index=0, low=0.2, high=1.0, closed=True),
        notes=f"{_VELOCITY} The observation includes the contact forces.",
    ),
    "HalfCheetah-v5": Facts(notes=_VELOCITY),
    "Hopper-v5": Facts(
        terminated_fn=_hopper_terminated,
        notes=f"{_VELOCITY} {_CLIPPED} A speed above 100 also terminates and cannot be told from it.",
    ),
    "Humanoid-v5": Facts(
        terminated_fn=functools.partial(_leaves_range, index=0, low=1.0, high=2.0, closed=False), notes=_VELOCITY
    ),
    "HumanoidStandup-v5": Facts(notes="The reward contains contact forces of unclipped size: a model must learn it."),
    "InvertedDoublePendulum-v5": Facts(
        observable_termination=False,
        notes="Reward and termination use the tip's height one substep behind the observation, which does not tell it.",
    ),
    "InvertedPendulum-v5": Facts(reward_fn=_upright_reward, terminated_fn=_pendulum_fell),
    "MountainCarContinuous-v0": Facts(reward_fn=_hill_reward, terminated_fn=_hill_reached),
    "Pendulum-v1": Facts(reward_fn=_swing_up_reward, notes="The reward is that of the observation before the step."),
    "Pusher-v5": Facts(reward_fn=_pusher_reward),
    "Reacher-v5": Facts(reward_fn=_reacher_reward),
    "Swimmer-v5": Facts(notes=_VELOCITY),
    "Walker2d-v5": Facts(terminated_fn=_walker_terminated, notes=f"{_VELOCITY} {_CLIPPED}"),
}

_BRAX: dict[str, Facts] = {
    "ant": Facts(
        terminated_fn=functools.partial(_leaves_range, index=0, low=0.2, high=1.0, closed=True), notes=_VELOCITY
    ),
    "fast": Facts(reward_fn=_brax_fast_reward, notes="A trivial task without physics, the same on every back-end."),
    "halfcheetah": Facts(notes=_VELOCITY),
    "hopper": Facts(
        terminated_fn=_hopper_terminated,
        notes=f"{_VELOCITY} {_CLIPPED} A speed above 100 also terminates and cannot be told from it.",
    ),
    "humanoid": Facts(
        terminated_fn=functools.partial(_leaves_range, index=0, low=1.0, high=2.0, closed=True), notes=_VELOCITY
    ),
    "inverted_double_pendulum": Facts(
        observable_termination=False,
        notes="The tip's height, which ends episodes, is not that of the joint angles on this back-end.",
    ),
    "inverted_pendulum": Facts(reward_fn=_brax_upright_reward, terminated_fn=_brax_pendulum_fell),
    "pusher": Facts(reward_fn=_brax_pusher_reward, notes="The reward's distances are those before the step."),
    "reacher": Facts(reward_fn=_brax_reacher_reward),
    "swimmer": Facts(notes=_VELOCITY),
    "walker2d": Facts(terminated_fn=_walker_terminated, notes=f"{_VELOCITY} {_CLIPPED}"),
}

_LATE = "Heights in reward and termination are one substep behind the observation on this back-end."


def brax(env_name: str, backend: str, dt: float) -> Facts:
    """The facts of a Brax task on one back-end.

    Args:
      env_name: name of the task.
      backend: name of the back-end.
      dt: seconds per step; one task is paid in metres per second of it.
    """
    if env_name == "humanoidstandup":
        # MuJoCo's body positions lag its joints by one substep, Brax's own back-ends keep them together.
        reward_fn = None if backend == "mjx" else functools.partial(_brax_standup_reward, dt=dt)
        return Facts(reward_fn=reward_fn, notes=_LATE if backend == "mjx" else "")
    if env_name in ("ant", "humanoid") and backend == "mjx":
        return Facts(observable_termination=False, notes=f"{_VELOCITY} {_LATE}")
    if env_name == "inverted_double_pendulum" and backend == "generalized":
        return Facts(
            terminated_fn=_brax_tip_fell,
            notes=f"The reward charges for joint speeds. {_CLIPPED}",
        )
    return _BRAX[env_name]
