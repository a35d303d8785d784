"""A torque-limited pendulum to swing up, smooth in state and action everywhere.

The classic task clips its speed, its torque and its angle, and each clip is a point where the gradient vanishes or
jumps. Here friction bounds the speed, ``tanh`` the torque and the cosine the angle, so that finite differences and
reverse mode agree in every state.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["PendulumState", "make"]

_DT = 0.05  # s
_GRAVITY = 9.81  # m/s^2
_LENGTH = 1.0  # m, a uniform rod
_MASS = 1.0  # kg
_INERTIA = _MASS * _LENGTH**2 / 3.0  # kg m^2, about the pivot
_SPEED_COST = 0.02  # at 8 rad/s about two thirds of the cost of hanging down
_ACTION_COST = 1e-3


class PendulumState(NamedTuple):
    """Angle from upright in rad ``[]``, angular velocity in rad/s ``[]``, number of steps taken ``[]``."""

    angle: Array
    speed: Array
    step: Array


def make(*, max_torque: float = 2.5, friction: float = 0.1, max_episode_steps: int = 200) -> Env:
    """Returns the pendulum: ``obs = (cos, sin, speed)``, upright is ``(1, 0, 0)``.

        speed' = speed + dt (m g l / 2 sin(angle) + max_torque tanh(a) - friction speed) / I
        angle' = angle + dt speed'                                     (semi-implicit Euler, dt = 0.05 s)
        r = -(1 - cos(angle')) - 0.02 speed'^2 - 0.001 a^2

    Args:
      max_torque: bound of the torque in N m. Gravity pulls with up to 4.9 N m: with less, the pendulum must be swung.
      friction: viscous friction in N m s, which bounds the speed by ``max_torque / friction``.
      max_episode_steps: steps after which an episode is truncated; it never terminates.

    Raises:
      InputError: on a torque that is not positive, a negative friction or a time limit below 1.
    """
    if max_torque <= 0:
        raise InputError(f"max_torque={max_torque} must be positive.")
    if friction < 0:
        raise InputError(f"friction={friction} must be 0 or more.")
    if max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")

    def reset(key: Key) -> tuple[PendulumState, Array]:
        angle_key, speed_key = jax.random.split(key)
        angle = jax.random.uniform(angle_key, minval=-jnp.pi, maxval=jnp.pi)
        speed = jax.random.uniform(speed_key, minval=-1.0, maxval=1.0)
        return PendulumState(angle, speed, jnp.zeros((), jnp.int32)), _observe(angle, speed)

    def step(env_state: PendulumState, action: Array, key: Key) -> tuple[PendulumState, TimeStep]:
        del key  # the transition is deterministic
        gravity = 0.5 * _MASS * _GRAVITY * _LENGTH * jnp.sin(env_state.angle)
        torque = max_torque * jnp.tanh(action[0])
        speed = env_state.speed + _DT * (gravity + torque - friction * env_state.speed) / _INERTIA
        angle = env_state.angle + _DT * speed
        count = env_state.step + 1
        obs = _observe(angle, speed)
        time_step = TimeStep(obs, _reward(obs, action, obs), jnp.zeros((), bool), count >= max_episode_steps)
        return PendulumState(angle, speed, count), time_step

    spec = EnvSpec(
        name="pendulum",
        obs_dim=3,
        action_dim=1,
        action_low=np.full(1, -1.0),
        action_high=np.full(1, 1.0),
        max_episode_steps=max_episode_steps,
        dt=_DT,
        reward_fn=_reward,
        differentiable_transition=True,
        differentiable_reward=True,
        notes="A smooth variant: returns do not compare with Gymnasium's. The torque is max_torque tanh(action).",
    )
    return Env(reset, step, spec)


def _observe(angle: Array, speed: Array) -> Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def _reward(obs: Array, action: Array, next_obs: Array) -> Array:
    """Reward of arriving in ``next_obs``; the observation before the step does not enter."""
    del obs
    return -(1.0 - next_obs[0]) - _SPEED_COST * jnp.square(next_obs[2]) - _ACTION_COST * jnp.sum(jnp.square(action))
