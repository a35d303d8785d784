"""The linear-quadratic problem as the functions that losses and estimators take: policy, step, exact critics."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import lqr
from jaxhybrid.envs.lqr_problems import Problem, is_concrete
from jaxhybrid.errors import InputError
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Array, PyTree

__all__ = ["ExactCritic", "exact_critic", "policy_fn", "q_fn", "step_fn", "value_fn"]

_WRITTEN_OUT = 16


class ExactCritic(NamedTuple):
    """Value and action value of a linear-Gaussian policy, both quadratic.

    ``V(s) = 1/2 s' v_matrix s + constant``, ``Q(s, a) = 1/2 x' q_matrix x + constant`` with ``x = (s, a)``; one
    constant each.

    Attributes:
      v_matrix: ``[D, D]``.
      v_constant: ``[]``.
      q_matrix: ``[D + A, D + A]``.
      q_constant: ``[]``.
    """

    v_matrix: Array
    v_constant: Array
    q_matrix: Array
    q_constant: Array


def exact_critic(problem: Problem, gain: Array, noise_std: float | Array) -> ExactCritic:
    """Returns the critic of ``a = K s + sigma eps``; solve in float64 and cast.

    Args:
      problem: the problem.
      gain: ``K``, ``[A, D]``.
      noise_std: ``sigma``, ``[]`` or ``[A]``.

    Raises:
      InputError: as for `lqr.value`.
    """
    action_dim, obs_dim = gain.shape

    def v(s: Array) -> Array:
        return lqr.value(problem, gain, s, noise_std)

    def q(x: Array) -> Array:
        return lqr.q_value(problem, gain, x[:obs_dim], x[obs_dim:], noise_std)

    s, x = jnp.zeros(obs_dim), jnp.zeros(obs_dim + action_dim)
    return ExactCritic(jax.hessian(v)(s), v(s), jax.hessian(q)(x), q(x))


def value_fn(obs: Array, *, critic: ExactCritic) -> Array:
    """Returns ``V(s)``, ``[]``."""
    return 0.5 * _quadratic(critic.v_matrix, obs) + critic.v_constant


def q_fn(obs: Array, action: Array, *, critic: ExactCritic) -> Array:
    """Returns ``Q(s, a)``, ``[]``."""
    return 0.5 * _quadratic(critic.q_matrix, jnp.concatenate([obs, action])) + critic.q_constant


def policy_fn(gain: Array, obs: Array, *, noise_std: float | Array) -> Gaussian:
    """Returns the linear-Gaussian policy ``N(K s, sigma^2)``, differentiable in the gain ``[A, D]``."""
    mean = _product(gain, obs)
    return Gaussian(mean, jnp.broadcast_to(jnp.log(jnp.asarray(noise_std, mean.dtype)), mean.shape))


def step_fn(obs: Array, action: Array, noise: PyTree, *, problem: Problem) -> tuple[Array, Array, Array]:
    """One step without process noise: ``(A s + B a, -1/2 (s' Q s + a' R a), 1)``.

    Args:
      obs: state, ``[D]``.
      action: action, ``[A]``.
      noise: unused; the signature is that of every step function.
      problem: the problem.

    Raises:
      InputError: the problem has process noise.
    """
    del noise
    if is_concrete(problem.process_scale) and np.any(np.asarray(problem.process_scale)):
        raise InputError("problem.process_scale is not zero, and this step draws no noise: step lqr.make(problem).")
    reward = -0.5 * (_quadratic(problem.Q, obs) + _quadratic(problem.R, action))
    return _product(problem.A, obs) + _product(problem.B, action), reward, jnp.ones((), obs.dtype)


def _product(matrix: Array, vector: Array) -> Array:
    # Under vmap XLA fuses sums that are written out with what surrounds them, and a batch of tiny products it does not:
    # a draw of a roll-out takes half the time. With more entries than this a product is the better program.
    if matrix.size > _WRITTEN_OUT:
        return matrix @ vector
    return jnp.stack([_dot(row, vector) for row in matrix])


def _quadratic(matrix: Array, vector: Array) -> Array:
    product = _product(matrix, vector)
    return vector @ product if matrix.size > _WRITTEN_OUT else _dot(vector, product)


def _dot(x: Array, y: Array) -> Array:
    return functools.reduce(operator.add, [x[i] * y[i] for i in range(x.shape[0])])
