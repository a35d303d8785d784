"""Linear-quadratic problems: the record, two families of them, and the check that every user of one starts with."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Key

__all__ = ["Problem", "check_problem", "double_integrator", "is_concrete", "random_problem"]


class Problem(NamedTuple):
    """A discounted linear-quadratic problem; the exploration noise of the policy is not part of it.

    Attributes:
      A: how the state moves by itself, ``[D, D]``.
      B: how the action moves it, ``[D, A]``.
      Q: state cost, ``[D, D]``; only its symmetric part matters.
      R: action cost, ``[A, A]``; only its symmetric part matters.
      gamma: discount, ``[]``; below 1 except for `optimal_gain`.
      start_mean: mean ``m`` of the start state, ``[D]``.
      start_scale: ``L`` in ``s_0 = m + L eps``, ``[D, D]``; zeros for a fixed start.
      process_scale: ``W``, the scale of the process noise, ``[D, D]``; zeros for a deterministic transition.
    """

    A: Array
    B: Array
    Q: Array
    R: Array
    gamma: Array
    start_mean: Array
    start_scale: Array
    process_scale: Array


def double_integrator(gamma: float = 0.9, dt: float = 0.05) -> Problem:
    """Returns the double integrator: position and velocity, pushed by a force, from ``(1, 1)``.

    ``A = [[1, dt], [0, 1]]``, ``B = [0, dt]'``, ``Q = I``, ``R = 1``.

    Args:
      gamma: discount.
      dt: seconds per step.

    Source: Clavera, Fu and Abbeel (2020), "Model-Augmented Actor-Critic", Section 5.2, without its clipping and
    squashing, which would make the problem non-linear.
    """
    return Problem(
        A=jnp.array([[1.0, dt], [0.0, 1.0]]),
        B=jnp.array([[0.0], [dt]]),
        Q=jnp.eye(2),
        R=jnp.eye(1),
        gamma=jnp.asarray(gamma, float),
        start_mean=jnp.ones(2),
        start_scale=jnp.zeros((2, 2)),
        process_scale=jnp.zeros((2, 2)),
    )


def random_problem(
    key: Key,
    obs_dim: int,
    action_dim: int,
    *,
    gamma: float = 0.95,
    norm: float = 0.9,
    start_noise: float = 0.5,
    process_noise: float = 0.0,
) -> Problem:
    """Draws a problem that the zero gain stabilises, with full cost matrices and a random start.

    Args:
      key: consumed.
      obs_dim: ``D``.
      action_dim: ``A``.
      gamma: discount.
      norm: largest singular value of ``A``; below 1 the free motion decays at any discount.
      start_noise: standard deviation of each coordinate of the start state.
      process_noise: standard deviation of each coordinate of the process noise.
    """
    if obs_dim < 1 or action_dim < 1:
        raise InputError(f"obs_dim={obs_dim} and action_dim={action_dim} must be at least 1.")
    a_key, b_key, q_key, r_key, start_key = jax.random.split(key, 5)
    free_motion = jax.random.normal(a_key, (obs_dim, obs_dim))

    def cost(cost_key: Key, size: int) -> Array:
        root = jax.random.normal(cost_key, (size, size))
        return jnp.eye(size) + root @ root.T / size

    return Problem(
        A=norm * free_motion / jnp.linalg.norm(free_motion, ord=2),
        B=jax.random.normal(b_key, (obs_dim, action_dim)) / obs_dim**0.5,
        Q=cost(q_key, obs_dim),
        R=cost(r_key, action_dim),
        gamma=jnp.asarray(gamma, float),
        start_mean=jax.random.normal(start_key, (obs_dim,)),
        start_scale=start_noise * jnp.eye(obs_dim),
        process_scale=process_noise * jnp.eye(obs_dim),
    )


def check_problem(problem: Problem, *, undiscounted: bool = False) -> Problem:
    """Returns the problem with symmetric costs, which the closed forms assume.

    Args:
      problem: the problem.
      undiscounted: whether ``gamma = 1`` is allowed.

    Raises:
      InputError: on a wrong shape, a dtype that is not floating, or a discount out of range.
    """
    if jnp.ndim(problem.A) != 2 or jnp.ndim(problem.B) != 2:
        raise InputError(
            f"problem.A and problem.B must be matrices, got shapes {jnp.shape(problem.A)} and {jnp.shape(problem.B)}."
        )
    obs_dim, action_dim = jnp.shape(problem.B)
    square, vector = (obs_dim, obs_dim), (obs_dim,)
    wanted = (square, (obs_dim, action_dim), square, (action_dim, action_dim), (), vector, square, square)
    for field, array, shape in zip(Problem._fields, problem, wanted, strict=True):
        if jnp.shape(array) != shape:
            raise InputError(
                f"problem.{field} has shape {jnp.shape(array)}, want {shape} to go with B of {jnp.shape(problem.B)}."
            )
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise InputError(f"problem.{field} has dtype {jnp.result_type(array)}, want a floating one.")
    if is_concrete(problem.gamma):
        gamma = float(problem.gamma)
        if not (0 <= gamma < 1 or (undiscounted and gamma == 1)):
            limit = "[0, 1]" if undiscounted else "[0, 1)"
            raise InputError(f"problem.gamma={gamma} must be in {limit}: the return is not finite otherwise.")
    return problem._replace(Q=0.5 * (problem.Q + problem.Q.T), R=0.5 * (problem.R + problem.R.T))


def is_concrete(*arrays: object) -> bool:
    """Whether every array has a value now, so that a Python exception may depend on it."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)
