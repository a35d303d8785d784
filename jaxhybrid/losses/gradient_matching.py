"""Losses that match the slopes of a critic to those of a planner: domain knowledge by gradient matching."""

from __future__ import annotations

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.errors import unknown
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "accurate_depths",
    "critic_slope_loss",
    "discounted_depths",
    "gradient_matching_loss",
    "inverse_error_depths",
    "slope_distance",
]

Distance = Literal["cosine", "l2"]


def gradient_matching_loss(
    params: PyTree,
    example: tuple[Array, Array],
    key: Key,
    *,
    encode_fn: Any,
    q_fn: Any,
    plan_fn: Any,
    distance: Distance = "cosine",
    match_actions: Literal["taken", "all"] = "taken",
) -> tuple[Array, dict[str, Array]]:
    """Distance between the critic's and the planner's slope in the abstract state.

    ``dist(grad_z Q_plan(z, a), grad_z Q(z, a))`` at ``z = e(s)``. The planner's slope is a target: it teaches the
    critic which way values rise, which says more per step than their height.

    Gradient flows through: the critic's slope, to the critic and by ``z`` to the encoder (second derivatives); not
      through the planner's slope.

    Args:
      params: of encoder and critic.
      example: ``(obs, action [])`` of a step, the action an integer.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z`` of any shape.
      q_fn: ``q_fn(params, z) -> [A]``.
      plan_fn: planner with bound parameters, the slow critic's among them, ``plan_fn(z, action []) -> []``; for
        instance `planning.tree.action_values` mixed by `planning.tree.plan_q`.
      distance: see `slope_distance`.
      match_actions: whether the slope of the action "taken" is matched, as in the paper, or those of "all", averaged.

    Returns:
      ``(loss [], aux)`` with aux ``slope`` and ``target``, the lengths of the critic's and the planner's slope.

    Raises:
      AssertionError: an action that is not an integer scalar, or an encoding that is not float.
      InputError: an unknown ``distance`` or ``match_actions``.

    Source: Chadha 2020 (GMAS), equations 5 and 7 and algorithm 1.
    """
    del key
    obs, action = example
    chex.assert_rank(action, 0)
    chex.assert_type(action, int)
    z = encode_fn(params, obs)
    chex.assert_type(z, float)

    def match(a: Array) -> tuple[Array, dict[str, Array]]:
        slope = jax.grad(lambda x: q_fn(params, x)[a])(z)
        # The planner is bound, but the point at which it is differentiated depends on the encoder's parameters.
        target = jax.grad(plan_fn)(jax.lax.stop_gradient(z), a)
        return slope_distance(slope, target, distance=distance), {"slope": _norm(slope), "target": _norm(target)}

    if match_actions == "taken":
        return match(action)
    if match_actions != "all":
        raise unknown("match_actions", match_actions, ("taken", "all"))
    num_actions = jax.eval_shape(q_fn, params, z).shape[-1]
    return jax.tree.map(jnp.mean, jax.vmap(match)(jnp.arange(num_actions)))


def critic_slope_loss(
    critic_params: PyTree,
    example: tuple[Array, Array],
    key: Key,
    *,
    q_fn: Any,
    plan_fn: Any,
    distance: Distance = "cosine",
) -> tuple[Array, dict[str, Array]]:
    """Gradient matching for actions that are real vectors: slopes in the action, the ones that an actor follows.

    ``mean_c dist(grad_a Q_plan(s, a), grad_a Q_c(s, a))``.

    Estimates: with a ``plan_fn`` that draws from ``key``, the distance to the slope of one draw. Its mean over draws is
      not the distance to the mean slope, from which it differs by the noise of the slope.
    Gradient flows through: the critics' slopes; ``plan_fn`` is bound, so its slope is a constant.

    Args:
      critic_params: parameters of the critics.
      example: ``(obs [D], action [A])``.
      key: draw of the planner.
      q_fn: ``q_fn(critic_params, obs, action) -> []`` or ``[C]``.
      plan_fn: planner with bound parameters, ``plan_fn(obs, action, key) -> []``; for instance a value expansion on the
        model.
      distance: see `slope_distance`.

    Returns:
      ``(loss [], aux)`` with aux ``slope``, the mean length over critics, and ``target``.

    Raises:
      AssertionError: an action that is not a float vector.
      InputError: an unknown ``distance``.

    Source: Chadha 2020 (GMAS), equation 7, for actions in place of abstract states.
    """
    obs, action = example
    chex.assert_rank([obs, action], 1)
    chex.assert_type([obs, action], float)
    target = jax.grad(plan_fn, argnums=1)(obs, action, key)
    slopes = jax.jacrev(lambda a: jnp.atleast_1d(q_fn(critic_params, obs, a)))(action)
    distances = jax.vmap(lambda slope: slope_distance(slope, target, distance=distance))(slopes)
    return jnp.mean(distances), {"slope": jnp.mean(jax.vmap(_norm)(slopes)), "target": _norm(target)}


def slope_distance(slope: Array, target: Array, *, distance: Distance) -> Array:
    """Distance of two slopes as flat vectors, ``[]``.

    ``cosine``: ``1 - <x, y> / (||x|| ||y||)``, in [0, 2], blind to length, 1 where a slope vanishes. ``l2``:
    ``||x - y||``, not squared.

    Args:
      slope: any shape.
      target: the same shape.
      distance: "cosine" (the paper's weight is 0.05) or "l2" (1.0).

    Raises:
      AssertionError: unequal shapes.
      InputError: an unknown ``distance``.

    Source: Chadha 2020 (GMAS), section 3.1, whose printed cosine divides by ``||x||^2``.
    """
    chex.assert_equal_shape([slope, target])
    if distance == "cosine":
        return 1.0 - jnp.sum(slope * target) / (_norm(slope) * _norm(target))
    if distance == "l2":
        return _norm(slope - target)
    raise unknown("distance", distance, ("cosine", "l2"))


def discounted_depths(depth: int, decay: Array | float) -> Array:
    """Weights ``decay^d`` of the depths ``0..D``, ``[D+1]``: far slopes, where the model errs most, count less.

    Source: Chadha 2020 (GMAS), section 3.1.2, third proposal.
    """
    return jnp.power(decay, jnp.arange(depth + 1))


def inverse_error_depths(errors: Array, scale: Array | float) -> Array:
    """Weights ``1 / (1 + error_d / scale)`` of the depths, ``[D+1]``: a slope counts as far as the model was right.

    Args:
      errors: error of the model's state after ``d`` steps against the real one, 0 at depth 0, ``[D+1]``.
      scale: error that halves a weight.

    Source: Chadha 2020 (GMAS), section 3.1.2, first proposal, which leaves the form open.
    """
    chex.assert_rank(errors, 1)
    return 1.0 / (1.0 + errors / scale)


def accurate_depths(errors: Array, threshold: Array | float) -> Array:
    """Weights 1 up to the last depth before the model's error first passes a threshold, and 0 beyond, ``[D+1]``.

    Args:
      errors: as in `inverse_error_depths`; depth 0, the critic alone, is always kept.
      threshold: largest error that is trusted.

    Source: Chadha 2020 (GMAS), section 3.1.2, second proposal; Xiao et al. 2019, adaptive value expansion.
    """
    chex.assert_rank(errors, 1)
    trusted = (errors <= threshold).at[0].set(True)
    return jnp.cumprod(trusted).astype(errors.dtype)


def _norm(x: Array) -> Array:
    """Euclidean length, with a finite slope at zero."""
    return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-12)
