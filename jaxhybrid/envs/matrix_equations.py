"""The two matrix equations of linear-quadratic control, solved differentiably and without a data-dependent loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxhybrid.types import Array

__all__ = ["lyapunov", "riccati"]

# k doublings cover 2^k steps of the Riccati recursion: 40 resolve a closed loop whose spectral radius is as close to 1
# as 1e-10.
_DOUBLINGS = 40


def lyapunov(M: Array, C: Array) -> Array:
    """Solves ``X = C + M X M'``, that is ``X = sum_t M^t C M'^t``, or returns NaN where the sum diverges.

    The linear system has a solution for unstable ``M`` too, and it means nothing. For ``C = I`` the solution is
    positive definite iff ``M`` is stable (Lyapunov), so the same factorisation answers that question with a symmetric
    eigenvalue problem, which every backend has.

    Args:
      M: ``[D, D]``.
      C: symmetric, ``[D, D]``.

    Returns:
      ``X``, symmetric, ``[D, D]``; NaN if the spectral radius of ``M`` is 1 or more. Costs ``O(D^6)``.
    """
    size = M.shape[0]
    right = jnp.stack([C.ravel(), jnp.eye(size, dtype=M.dtype).ravel()], axis=-1)
    solution = jnp.linalg.solve(jnp.eye(size * size, dtype=M.dtype) - jnp.kron(M, M), right)
    X, witness = (solution[:, i].reshape(size, size) for i in range(2))
    # A stable witness is at least I. The comparison is also False for the NaN of a singular system.
    stable = jnp.linalg.eigvalsh(jax.lax.stop_gradient(witness))[0] > 0.5
    return jnp.where(stable, 0.5 * (X + X.T), jnp.nan)


def riccati(A: Array, B: Array, Q: Array, R: Array) -> Array:
    """Solves ``P = Q + A' P (I + B R^{-1} B' P)^{-1} A`` for the stabilising ``P``.

    Args:
      A: ``[D, D]``.
      B: ``[D, A]``.
      Q: positive semi-definite, ``[D, D]``.
      R: positive definite, ``[A, A]``.

    Returns:
      ``P``, ``[D, D]``.

    Source: the structure-preserving doubling algorithm of Chu, Fan, Lin and Wang (2004), quadratically convergent.
    """
    identity = jnp.eye(A.shape[0], dtype=A.dtype)

    def double(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        motion, control, cost = carry
        inverse = jnp.linalg.inv(identity + control @ cost)
        return (
            motion @ inverse @ motion,
            control + motion @ inverse @ control @ motion.T,
            cost + motion.T @ cost @ inverse @ motion,
        ), None

    start = (A, B @ jnp.linalg.solve(R, B.T), Q)
    (_, _, P), _ = jax.lax.scan(double, start, None, length=_DOUBLINGS)
    return P
