"""The multi-step control variate as an estimator, with a coefficient for every parameter tensor."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxhybrid.losses.control_variate import Tail, mscv_loss
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, Segment, StepFn, ValueFn

__all__ = ["control_variate"]


def control_variate(
    policy_params: PyTree,
    segment: Segment,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    value_fn: ValueFn,
    horizon: int,
    gamma: Array | float,
    eta: PyTree = 1.0,
    fresh_paths: int = 0,
    tail: Tail = "fresh",
) -> tuple[PyTree, dict[str, Array]]:
    """Policy gradient of one recorded step with a multi-step control variate.

    ``grad log pi(a | s) A - eta h`` with ``h = grad log pi(a | s) A_hat - grad Q_hat``, whose mean is zero.

    Estimates: ``E[grad log pi(a | s) Q(s, a)]`` over the states of the recording.
    Unbiased when: as for `losses.control_variate.mscv_loss`, for every ``eta``, of every tensor its own.
    Gradient flows through: what it flows through in `losses.control_variate.mscv_loss`.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      segment: one recorded step.
      key: one draw, as for the loss.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)`` and ``reparameterise(noise)``.
      step_fn: model step with bound parameters.
      value_fn: value with bound parameters.
      horizon: model steps, static.
      gamma: discount factor.
      eta: one coefficient ``[]``, or a tree shaped like the parameters with one per tensor; from a past batch by
        `ops.control_variates.optimal_coefficient`.
      fresh_paths: as for the loss, static.
      tail: as for the loss.

    Returns:
      ``(grads, aux)``, the direction of ascent and the aux of the loss.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), equation 5.
    """
    loss = partial(
        mscv_loss,
        policy_fn=policy_fn,
        step_fn=step_fn,
        value_fn=value_fn,
        horizon=horizon,
        gamma=gamma,
        fresh_paths=fresh_paths,
        tail=tail,
    )

    def losses(params: PyTree) -> tuple[Array, dict[str, Array]]:
        without, aux = loss(params, segment, key, eta=0.0)
        with_it, _ = loss(params, segment, key, eta=1.0)
        return jnp.stack([without, with_it]), aux

    # The loss is linear in its coefficient: two values of it give every other, from one pass forward.
    slopes, aux = jax.jacrev(losses, has_aux=True)(policy_params)
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(eta)):
        eta = jax.tree.map(lambda _: eta, policy_params)
    return jax.tree.map(lambda slope, e: -(slope[0] + e * (slope[1] - slope[0])), slopes, eta), aux
