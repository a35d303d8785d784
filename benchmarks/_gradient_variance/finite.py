"""The return of T steps: its exact values by steps to go, and its exact gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import lqr
from jaxhybrid.types import Array

__all__ = ["FiniteValues", "finite_gradient", "finite_values", "mean_to_go", "value_to_go"]


class FiniteValues(NamedTuple):
    """``V_k(s) = -1/2 s' P_k s - c_k``, the value of ``k`` more steps of the policy.

    Attributes:
      matrices: ``P_0 .. P_T``, ``[T + 1, D, D]``.
      constants: ``c_0 .. c_T``, ``[T + 1]``.
    """

    matrices: Array
    constants: Array


def finite_values(problem: lqr.Problem, gain: np.ndarray, noise_std: float, horizon: int) -> FiniteValues:
    """Returns the values of up to ``horizon`` steps, float64 NumPy arrays.

    ``P_k = Q + K' R K + gamma (A + B K)' P_{k-1} (A + B K)``, ``P_0 = 0``,
    ``c_k = sigma^2 / 2 [tr R + gamma tr(B' P_{k-1} B)] + gamma c_{k-1}``, ``c_0 = 0``.
    """
    A, B, Q, R, gamma = (np.asarray(x, np.float64) for x in problem[:5])
    closed_loop, cost = A + B @ gain, Q + gain.T @ R @ gain
    matrices, constants = [np.zeros_like(A)], [0.0]
    for _ in range(horizon):
        P = matrices[-1]
        per_step = 0.5 * noise_std**2 * (np.trace(R) + gamma * np.trace(B.T @ P @ B))
        constants.append(float(per_step + gamma * constants[-1]))
        matrices.append(cost + gamma * closed_loop.T @ P @ closed_loop)
    return FiniteValues(np.stack(matrices), np.array(constants))  # type: ignore[arg-type]


def value_to_go(values: FiniteValues, obs: Array, steps_to_go: Array) -> Array:
    """Returns ``V_k(s)`` for ``k = steps_to_go``, ``[]``."""
    index = steps_to_go.astype(jnp.int32)
    P, (x, y) = values.matrices[index], obs
    # Written out for the two coordinates, which XLA fuses with the draw around it.
    return -0.5 * (P[0, 0] * x * x + 2.0 * P[0, 1] * x * y + P[1, 1] * y * y) - values.constants[index]


def mean_to_go(problem: lqr.Problem, gain: np.ndarray, noise_std: float, horizon: int) -> float:
    """Returns the constant ``b`` that minimises ``sum_t gamma^{2t} E (G_t - b)^2``: the weighted mean return to go."""
    values = finite_values(problem, gain, noise_std, horizon)
    with jax.enable_x64(True):
        moments = np.asarray(lqr.second_moments(problem, jnp.asarray(gain), horizon=horizon - 1, noise_std=noise_std))
    to_go = -0.5 * np.einsum("tij,tij->t", values.matrices[:0:-1], moments) - values.constants[:0:-1]
    weights = float(problem.gamma) ** (2.0 * np.arange(horizon))
    return float(weights @ to_go / weights.sum())


def finite_gradient(problem: lqr.Problem, gain: np.ndarray, noise_std: float, horizon: int) -> np.ndarray:
    """Returns the exact gradient of ``E sum_{t<T} gamma^t r_t`` with respect to the gain, ``[A, D]``.

    ``E r_t = -1/2 [tr((Q + K' R K) S_t) + tr(R Sigma)]`` with the second moments ``S_t``, differentiated in ``K``.
    """
    with jax.enable_x64(True):

        def expected_return(K: Array) -> Array:
            moments = lqr.second_moments(problem, K, horizon=horizon - 1, noise_std=noise_std)
            cost = problem.Q + K.T @ problem.R @ K
            return -0.5 * jnp.sum(problem.gamma ** jnp.arange(horizon) * jnp.einsum("ij,tij->t", cost, moments))

        return np.asarray(jax.grad(expected_return)(jnp.asarray(gain)))
