"""Gradient updates that are refused, and counted, when anything in them is not finite."""

from __future__ import annotations

from typing import NamedTuple

import jax
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
    optimiser: optax.GradientTransformation,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    guard: Guard,
    *,
    bounded: bool = False,
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
      bounded: the optimiser makes finite steps of all finite gradients, as one does that clips their length and divides
        by their size. The gradient alone is asked then, and the step is taken, or not, in the place of what was there;
        otherwise old and new numbers are kept until it is known which to return. Vectorised, both do the latter.

    Returns:
      ``(params, state, guard)``.
    """

    def stepped() -> tuple[PyTree, PyTree]:
        updates, new_state = optimiser.update(grads, state, params)
        return optax.apply_updates(params, updates), new_state

    # That length is there already where gradients are clipped by it.
    finite = jnp.isfinite(trees.norm(grads))
    if bounded:
        new_params, new_state = jax.lax.cond(finite, stepped, lambda: (params, state))
    else:
        after = stepped()
        finite &= trees.all_finite(after[0])
        new_params, new_state = trees.where(finite, after, (params, state))
    refused = (~finite).astype(jnp.int32)
    return new_params, new_state, Guard(guard.refused + refused, (guard.streak + 1) * refused)
