"""The loss of a model of one task among many, in the abstract space of a policy: it is told the task by a code."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.losses.abstract import disambiguation_loss, discount_loss, reward_loss, transition_loss
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["ContextStep", "context_model_loss", "mixed"]

ModelFn = Callable[[PyTree, Array, Array, Array, Array], Array]


class ContextStep(NamedTuple):
    """A step, what is known about its task, and another observation.

    Attributes:
      step: the transition.
      goal: the instruction, integer ``[G]``.
      code: what is known about the task, ``[Z]``.
      other_obs: of an unrelated step, ``[C]``; see `losses.abstract.rolled_pairs`.
      rewarded: 0 for a step of exploration, whose reward and end say nothing about the instruction, float ``[]``.
    """

    step: Transition
    goal: Array
    code: Array
    other_obs: Array
    rewarded: Array


def context_model_loss(
    params: PyTree,
    example: ContextStep,
    key: Key,
    *,
    encode_fn: Callable[[PyTree, Array], Array],
    dynamics_fn: Callable[[PyTree, Array, Array, Array], Array],
    reward_fn: ModelFn | None = None,
    discount_fn: ModelFn | None = None,
    gamma: Array | float = 0.99,
    disambiguation: Array | float = 1.0,
    sharpness: Array | float = 5.0,
) -> tuple[Array, dict[str, Array]]:
    """Errors of dynamics, reward and continuation in an abstract space, and what keeps it from collapsing.

        mean (T(e(s), a, z) - e(s'))^2 + w exp(-C ||e(s) - e(s_2)||)
            + (r - rho(e(s), a, g, z))^2 + (gamma d - c(e(s), a, g, z))^2

    The second line is for planning; without ``reward_fn`` and ``discount_fn`` the first is a shared representation.

    Gradient flows through: the encodings and the model; the code of the task is an example, and so a constant unless
      the caller computes it inside what is differentiated.

    Args:
      params: of encoder and model.
      example: a step; a terminal one counts zero in the dynamics.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> x``.
      dynamics_fn: ``dynamics_fn(params, x, action, code) -> x``.
      reward_fn: ``reward_fn(params, x, action, goal, code) -> []``.
      discount_fn: the same of the discount, gamma included.
      gamma: discount factor of the problem.
      disambiguation: ``w``.
      sharpness: ``C``, 5 in CRAR; the paper does not say.

    Returns:
      ``(loss [], aux)`` with aux ``transition``, ``disambiguation``, ``distance``, ``reward`` and ``discount``, the
      terms before they are weighted; those that are not learnt are zero.

    Raises:
      InputError: one of reward and discount without the other.

    Source: Tan and Dworschak, Combining model-based and model-free meta-RL, sections 3.2 and 3.3.
    """
    if (reward_fn is None) != (discount_fn is None):
        raise InputError("reward_fn and discount_fn belong together: planning needs both, a representation neither.")
    step, goal, code = example.step, example.goal, example.code

    def informed(fn: ModelFn) -> Callable[[PyTree, Array, Array], Array]:
        return lambda p, x, action: fn(p, x, action, goal, code)

    transition, _ = transition_loss(
        params, step, key, encode_fn=encode_fn, dynamics_fn=lambda p, x, action: dynamics_fn(p, x, action, code)
    )
    apart, distance = disambiguation_loss(
        params, (step.obs, example.other_obs), key, encode_fn=encode_fn, sharpness=sharpness
    )
    reward = discount = jnp.zeros_like(transition)
    if reward_fn is not None and discount_fn is not None:
        reward, _ = reward_loss(params, step, key, encode_fn=encode_fn, reward_fn=informed(reward_fn))
        discount, _ = discount_loss(
            params, step, key, encode_fn=encode_fn, discount_fn=informed(discount_fn), gamma=gamma
        )
    loss = transition + disambiguation * apart + example.rewarded * (reward + discount)
    return loss, {
        "transition": transition,
        "disambiguation": apart,
        "reward": example.rewarded * reward,
        "discount": example.rewarded * discount,
        **distance,
    }


def mixed(execution: ContextStep, exploration: ContextStep, *, share: Array | float = 0.5) -> ContextStep:
    """Replaces the last rows of a batch by steps of exploration, so that the dynamics are met where a policy is not.

    Args:
      execution: ``[B, ...]``.
      exploration: ``[B, ...]``, of which as many rows are taken as are replaced; they count as not rewarded.
      share: of the batch that is replaced, rounded to whole rows.

    Raises:
      InputError: a share outside of [0, 1]; one that is traced cannot be checked.
    """
    if not isinstance(share, jax.core.Tracer) and not 0.0 <= share <= 1.0:
        raise InputError(f"share={share} must lie in [0, 1].")
    size = execution.rewarded.shape[0]
    kept = jnp.arange(size) < size - jnp.round(share * size)
    exploration = exploration._replace(rewarded=jnp.zeros_like(exploration.rewarded))

    def chosen(own: Array, other: Array) -> Array:
        return jnp.where(kept.reshape((-1,) + (1,) * (own.ndim - 1)), own, other)

    return jax.tree.map(chosen, execution, exploration)
