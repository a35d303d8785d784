"""Gradient updates that are refused, and counted, when anything in them is not finite."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxhybrid.ops import trees
from jaxhybrid.types import Array, PyTree

__all__ = ["Guard", "apply_if_finite"]


class Guard(NamedTuple):
    """Counts of refused updates.

    Attributes:
      refused: updates refused so far, ``[]``.
      streak: updates refused in a row, up to now, ``[]``.
    """

    refused: Array
    streak: Array

    @classmethod
    def new(cls) -> Guard:
        """Returns a guard that has refused nothing."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def apply_if_finite(
    optimiser: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree, guard: Guard
) -> tuple[PyTree, PyTree, Guard]:
    """Takes an optimiser step unless a new parameter or the gradient's squared length is NaN or infinite.

    A refused step leaves parameters and optimiser state as they were. Unlike ``optax.apply_if_finite`` it never gives
    in after several refusals: stopping is the caller's decision, on ``guard.streak``.

    Args:
      optimiser: any optax transformation.
      grads: gradients, shaped like ``params``.
      state: optimiser state.
      params: parameters.
      guard: counts so far.

    Returns:
      ``(params, state, guard)``.
    """
    updates, new_state = optimiser.update(grads, state, params)
    new_params = optax.apply_updates(params, updates)
    # That length is there already where gradients are clipped by it.
    finite = jnp.isfinite(trees.norm(grads)) & trees.all_finite(new_params)
    refused = (~finite).astype(jnp.int32)
    params, state = trees.where(finite, (new_params, new_state), (params, state))
    return params, state, Guard(guard.refused + refused, (guard.streak + 1) * refused)
