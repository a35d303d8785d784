"""Minigolf: the distance to the hole, the speed of the putter, and the fewest strokes.

    u = a l (1 + eps),  x' = x - u^2 / (2 d),  d = 5/7 mu g

where ``x`` is the distance in m, ``a`` the angular velocity of a putter of length ``l``, ``d`` the deceleration of a
rolling ball under friction ``mu``. A ball that would stop behind the hole falls in unless it is too fast to be caught.
Every outcome can be read off the landing position ``x'``, so a model of positions knows the reward.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["LENGTH", "MinigolfState", "make", "optimal_return"]

LENGTH = 20.0
"""Largest distance to the hole, m."""

_BOUNDARY = LENGTH * 2.0 / 3.0  # m: the area next to the hole is twice as long as the other
_GRAVITY = 9.81  # m/s^2
_PUTTER = 1.0  # m
_HOLE = 0.10  # m, diameter
_BALL = 0.02135  # m, radius
_SLOWEST, _FASTEST = 1e-5, 5.0  # rad/s
# Square of the speed over the hole, in m^2/s^2, up to which the ball falls in by half its diameter while it passes.
_CAPTURE = (2.0 * _HOLE - _BALL) ** 2 * _GRAVITY / (2.0 * _BALL)


class MinigolfState(NamedTuple):
    """Distance to the hole in m ``[]`` and number of strokes taken ``[]``."""

    position: Array
    step: Array


class _Course(NamedTuple):
    """Decelerations near the hole and far from it in m/s^2, and whether they are integrated along the path."""

    near: float
    far: float
    integrated: bool


def make(
    *,
    friction: float = 0.131,
    far_friction: float | None = 0.19,
    path_integrated: bool = False,
    noise: float = 0.3,
    max_episode_steps: int = 20,
) -> Env:
    """Returns the course: ``obs = (x,)``, start uniform in (0, 20] m, one action, clipped to [1e-5, 5] rad/s.

    Reward -1 for a stroke that stops short, 0 for the hole, -100 for a ball that jumps over it; the last two end the
    episode.

    Args:
      friction: of the 13.3 m next to the hole.
      far_friction: of the rest: 0.19 in the line of earlier versions, 0.5 or 1.0 for sand; None: as near the hole.
      path_integrated: whether the ball feels the ground it rolls over. False applies the friction of the place it is
        hit from to the whole stroke, as earlier versions do.
      noise: standard deviation of ``eps``, which is drawn again until it is at most 1 in size.
      max_episode_steps: strokes after which an episode is truncated.

    Raises:
      InputError: a friction that is not positive, a negative noise or a time limit below 1.
    """
    course = _course(friction, far_friction, path_integrated, noise, max_episode_steps)

    def reset(key: Key) -> tuple[MinigolfState, Array]:
        position = LENGTH * (1.0 - jax.random.uniform(key))
        return MinigolfState(position, jnp.zeros((), jnp.int32)), position[None]

    def step(env_state: MinigolfState, action: Array, key: Key) -> tuple[MinigolfState, TimeStep]:
        eps = noise * jax.random.truncated_normal(key, -1.0 / noise, 1.0 / noise) if noise else 0.0
        landing = _landing(course, env_state.position, action[0], eps)
        count = env_state.step + 1
        obs = landing[None]
        reward, ended = _outcome(course, env_state.position, landing)
        return MinigolfState(landing, count), TimeStep(obs, reward, ended, count >= max_episode_steps)

    spec = EnvSpec(
        name="minigolf",
        obs_dim=1,
        action_dim=1,
        action_low=np.full(1, _SLOWEST),
        action_high=np.full(1, _FASTEST),
        max_episode_steps=max_episode_steps,
        reward_fn=lambda obs, action, next_obs: _outcome(course, obs[0], next_obs[0])[0],
        terminated_fn=lambda obs, action, next_obs: _outcome(course, obs[0], next_obs[0])[1],
        differentiable_transition=True,
        notes="The landing position decides everything; positions behind the hole are negative and end the episode.",
    )
    return Env(reset, step, spec)


def optimal_return(
    *,
    friction: float = 0.131,
    far_friction: float | None = 0.19,
    path_integrated: bool = False,
    noise: float = 0.3,
    max_episode_steps: int = 20,
    gamma: float = 0.99,
    cells: int = 400,
    actions: int = 200,
    nodes: int = 61,
) -> float:
    """Returns the largest expected discounted return, by dynamic programming on a grid of distances and actions.

    ``V_k(x) = max_a E[r + gamma V_{k-1}(x')]`` with ``V_0 = 0``, values interpolated linearly, noise by quadrature.

    Args:
      friction: see `make`.
      far_friction: see `make`.
      path_integrated: see `make`.
      noise: see `make`.
      max_episode_steps: see `make`.
      gamma: discount factor.
      cells: distances.
      actions: candidate actions, denser among the gentle ones.
      nodes: quadrature nodes of the noise.

    Raises:
      InputError: as for `make`.
    """
    course = _course(friction, far_friction, path_integrated, noise, max_episode_steps)
    x = (jnp.arange(cells) + 0.5) * (LENGTH / cells)
    a = _FASTEST * jnp.sqrt((jnp.arange(actions) + 1.0) / actions)
    eps = jnp.linspace(-1.0, 1.0, nodes) if noise else jnp.zeros(1)
    density = jnp.exp(-0.5 * jnp.square(eps / noise)) if noise else jnp.ones(1)
    landing = _landing(course, x[:, None, None], a[None, :, None], eps[None, None, :])
    reward, ended = _outcome(course, x[:, None, None], landing)
    goes_on = 1.0 - ended.astype(x.dtype)
    weights = density / jnp.sum(density)

    def stroke(value: Array, _: None) -> tuple[Array, None]:
        following = reward + gamma * goes_on * jnp.interp(landing, x, value)
        return jnp.max(following @ weights, axis=1), None

    value, _ = jax.lax.scan(stroke, jnp.zeros(cells), None, length=max_episode_steps)
    return float(jnp.mean(value))


def _course(friction: float, far: float | None, integrated: bool, noise: float, limit: int) -> _Course:
    for name, value in (("friction", friction), ("far_friction", friction if far is None else far)):
        if not value > 0:
            raise InputError(f"{name}={value} must be positive: without friction the ball never stops.")
    if not noise >= 0:
        raise InputError(f"noise={noise} must be 0 or more.")
    if limit < 1:
        raise InputError(f"max_episode_steps={limit} must be at least 1.")
    rolling = 5.0 / 7.0 * _GRAVITY
    return _Course(rolling * friction, rolling * (friction if far is None else far), integrated)


def _landing(course: _Course, position: Array, action: Array, eps: Array | float) -> Array:
    """Where the ball stops, were there no hole."""
    speed = jnp.clip(action, _SLOWEST, _FASTEST) * _PUTTER * (1.0 + eps)
    energy = 0.5 * jnp.square(speed)  # per mass; a metre costs the deceleration
    if not course.integrated:
        return position - energy / _deceleration(course, position)
    to_boundary = jnp.maximum(position - _BOUNDARY, 0.0)
    spent = jnp.minimum(energy, course.far * to_boundary)
    return position - spent / course.far - (energy - spent) / course.near


def _outcome(course: _Course, position: Array, landing: Array) -> tuple[Array, Array]:
    """Reward and end of a stroke: 2 d |x'| is the square of the speed over the hole."""
    deceleration = course.near if course.integrated else _deceleration(course, position)
    short = landing > 0
    too_fast = -2.0 * deceleration * landing > _CAPTURE
    return jnp.where(short, -1.0, jnp.where(too_fast, -100.0, 0.0)), ~short


def _deceleration(course: _Course, position: Array) -> Array:
    return jnp.where(position < _BOUNDARY, course.near, course.far)
