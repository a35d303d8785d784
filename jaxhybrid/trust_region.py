"""The natural gradient by conjugate gradients, and the line search that keeps its promise."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops import trees
from jaxhybrid.types import Array, PolicyFn, PyTree

__all__ = ["fisher_vector_product", "mean_kl", "natural_direction", "trust_region_step"]


def mean_kl(policy_params: PyTree, obs: Array, *, policy_fn: PolicyFn, behaviour_params: PyTree) -> Array:
    """Mean divergence of a policy from the one that acted, ``mean_b KL(b(. | s_b) || pi(. | s_b))`` in nats, ``[]``.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      obs: states, ``[B, D]``.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``kl(other)``.
      behaviour_params: parameters that acted.

    Raises:
      AssertionError: states without a batch axis.
    """
    chex.assert_rank(obs, 2)
    return jnp.mean(jax.vmap(lambda s: policy_fn(behaviour_params, s).kl(policy_fn(policy_params, s)))(obs))


def fisher_vector_product(
    kl_fn: Callable[[PyTree], Array], params: PyTree, *, damping: Array | float = 0.1
) -> Callable[[PyTree], PyTree]:
    """Returns ``v -> (F + damping) v`` with the Hessian ``F`` of the divergence at ``params``, its Fisher information.

    The gradient of the divergence is linearised once; every product is then one forward pass over what it stored.

    Args:
      kl_fn: divergence from the policy at ``params``, ``kl_fn(params) -> []``.
      params: where the divergence is zero; anywhere else its Hessian is not the Fisher information.
      damping: added to the diagonal.
    """
    _, product = jax.linearize(jax.grad(kl_fn), params)
    return lambda vector: trees.axpy(damping, vector, product(vector))


def natural_direction(
    product_fn: Callable[[PyTree], PyTree], gradient: PyTree, *, iterations: int = 10, residual: float = 1e-5
) -> PyTree:
    """Solves ``F x = g`` by conjugate gradients from zero.

    Args:
      product_fn: ``v -> F v``, symmetric and positive definite.
      gradient: ``g``.
      iterations: most products, static.
      residual: length of ``F x - g`` that is small enough; absolute, as in the implementations of TRPO, whose 1e-10
        is its square.

    Returns:
      ``x``, shaped like ``g``.
    """
    return jax.scipy.sparse.linalg.cg(product_fn, gradient, tol=0.0, atol=residual, maxiter=iterations)[0]


def trust_region_step(
    params: PyTree,
    grads: PyTree,
    *,
    loss_fn: Callable[[PyTree], Array],
    kl_fn: Callable[[PyTree], Array],
    max_kl: Array | float = 0.01,
    damping: Array | float = 0.1,
    iterations: int = 10,
    backtracks: int = 10,
    shrink: Array | float = 0.5,
    accept_ratio: Array | float = 0.1,
    hard_kl: bool = True,
) -> tuple[PyTree, dict[str, Array]]:
    """One step of trust-region policy optimisation.

    ``x = F^{-1} g``, ``step = -sqrt(2 max_kl / x' F x) x`` with the damped ``F``; of ``shrink^n step``, ``n <
    backtracks``, the first that lowers the loss by ``accept_ratio`` of what its slope promises and stays in the trust
    region is taken, else none. A gradient that is zero or not finite moves nothing.

    Args:
      params: where the gradient was taken and where ``kl_fn`` is zero.
      grads: slope ``g`` of the loss, to descend; any estimate, also one of other samples.
      loss_fn: the loss as a function of the parameters, with samples, keys and behaviour parameters bound: common
        random numbers, or the comparison is one of noise. For instance a batched `losses.control_variate.mscv_loss`.
      kl_fn: divergence from the policy at ``params``, for instance `mean_kl`.
      max_kl: size of the trust region, nats per state.
      damping: added to the diagonal of ``F``.
      iterations: conjugate-gradient iterations, static.
      backtracks: most tries of the line search, static.
      shrink: factor between two tries.
      accept_ratio: share of the promised improvement that counts as kept.
      hard_kl: whether a step must keep ``kl <= max_kl``, up to the rounding of the divergence, ten units in the last
        place of one. The code that the defaults come from did not ask, and only the quadratic model of the divergence
        held there.

    Returns:
      ``(params, aux)`` with aux ``accepted`` (0 or 1), ``fraction`` of the whole step (0 when none), ``improvement``
      of the loss, ``expected_improvement`` of the accepted step by its slope, and ``kl``.

    Source: Schulman et al. 2015, Trust region policy optimization, appendix C.
    """
    chex.assert_trees_all_equal_shapes(params, grads)
    chex.assert_scalar_positive(backtracks)
    product_fn = fisher_vector_product(kl_fn, params, damping=damping)
    direction = natural_direction(product_fn, grads, iterations=iterations)
    curvature = trees.dot(direction, product_fn(direction))
    # At a zero gradient the direction is zero; its length must not become 0 / 0.
    length = jnp.where(curvature > 0, jnp.sqrt(2.0 * max_kl / jnp.where(curvature > 0, curvature, 1.0)), 0.0)
    start = loss_fn(params)
    promised = length * trees.dot(grads, direction)

    def moved(fraction: Array) -> PyTree:
        return trees.axpy(-fraction * length, direction, params)

    def search(carry: tuple) -> tuple:
        tries, _, _, _, _ = carry
        fraction = jnp.asarray(shrink, start.dtype) ** tries
        candidate = moved(fraction)
        improvement, kl = start - loss_fn(candidate), kl_fn(candidate)
        # Comparisons with NaN are false: what is not finite is not accepted.
        accepted = (improvement > 0) & (improvement >= accept_ratio * fraction * promised)
        accepted &= (kl <= max_kl + _rounding(kl)) if hard_kl else jnp.isfinite(kl)
        return tries + 1, accepted, fraction, improvement.astype(start.dtype), kl.astype(start.dtype)

    nothing = jnp.zeros((), start.dtype)
    begin = (jnp.zeros((), jnp.int32), jnp.asarray(False), nothing, nothing, nothing)
    _, accepted, fraction, improvement, kl = jax.lax.while_loop(
        lambda carry: ~carry[1] & (carry[0] < backtracks), search, begin
    )
    aux = {
        "fraction": fraction,
        "improvement": improvement,
        "expected_improvement": fraction * promised,
        "kl": kl,
    }
    aux = {name: jnp.where(accepted, value, 0.0) for name, value in aux.items()}
    return trees.where(accepted, moved(fraction), params), aux | {"accepted": accepted.astype(start.dtype)}


def _rounding(kl: Array) -> Array:
    # Where the quadratic model is exact and nothing is damped, the whole step ends on the bound itself, where the last
    # bit would decide. A divergence is a difference of terms of order one, so its error does not shrink with it.
    return jnp.asarray(10.0 * jnp.finfo(kl.dtype).eps, kl.dtype)
