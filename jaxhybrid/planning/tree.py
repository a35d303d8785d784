"""Planning with a finite number of actions: one tree of abstract states that gives the values of every depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array

__all__ = ["action_values", "plan_q", "plan_values", "tree_size"]

_GIB = 2.0**30


class _Model(NamedTuple):
    """What the tree is grown with; every function has its parameters bound."""

    q_fn: Callable[[Array], Array]
    dynamics_fn: Callable[[Array, Array], Array]
    reward_fn: Callable[[Array, Array], Array]
    discount_fn: Callable[[Array, Array], Array]


class _Level(NamedTuple):
    """Nodes of one depth: their critics ``[N, A]``, and rewards and discounts of their expanded actions ``[N, b]``."""

    q: Array
    reward: Array
    discount: Array


def plan_values(
    z: Array,
    *,
    q_fn: Callable[[Array], Array],
    dynamics_fn: Callable[[Array, Array], Array],
    reward_fn: Callable[[Array, Array], Array],
    discount_fn: Callable[[Array, Array], Array],
    depth: int,
    branching: int | None = None,
    memory: float = 2.0**31,
) -> Array:
    """Model-based action values of every depth ``0..D`` from one tree.

    ``Q^0(z, a) = Q(z)_a`` and ``Q^d(z, a) = r(z, a) + g(z, a) max_{a'} Q^{d-1}(z', a')`` with ``z' = f(z, a)``. At the
    root every action is expanded; below it the ``b`` best by ``Q`` are, and only they compete in the maximum, except
    at the leaves, where the maximum is over all actions.

    Exact when: ``b`` is the number of actions. With fewer a value can only be smaller.
    Gradient flows through: everything that leads to the chosen actions; the choice itself is piecewise constant.

    Args:
      z: abstract state of the root, float, any shape.
      q_fn: critic with bound parameters, ``q_fn(z) -> [A]``.
      dynamics_fn: abstract dynamics with bound parameters, ``(z, action []) -> z`` of the same shape.
      reward_fn: reward of an action before it is taken, ``(z, action []) -> []``.
      discount_fn: discount of an action, gamma included and 0 at a terminal step, ``(z, action []) -> []``.
      depth: model steps, ``D >= 0``, static.
      branching: actions ``b`` that are expanded below the root, static; None expands all.
      memory: bytes that the abstract states of the tree may take; a batch takes a multiple of it.

    Returns:
      Values, ``[D+1, A]``.

    Raises:
      InputError: a negative depth, a branching that cannot be, or a tree that does not fit; says the largest that does.
      AssertionError: ``z`` is not float, or ``q_fn`` does not return a vector.

    Source: Francois-Lavet et al. 2019 (CRAR), section 4; Chadha 2020 (GMAS), equation 4.
    """
    model = _Model(q_fn, dynamics_fn, reward_fn, discount_fn)
    num_actions = jax.eval_shape(q_fn, z).shape[-1]
    return _grow(z, jnp.arange(num_actions), model, depth, branching, memory)


def action_values(
    z: Array,
    action: Array,
    *,
    q_fn: Callable[[Array], Array],
    dynamics_fn: Callable[[Array, Array], Array],
    reward_fn: Callable[[Array, Array], Array],
    discount_fn: Callable[[Array, Array], Array],
    depth: int,
    branching: int | None = None,
    memory: float = 2.0**31,
) -> Array:
    """The column of `plan_values` that belongs to one action, at the cost of that action's branch alone.

    Args:
      z: abstract state of the root, float, any shape.
      action: integer ``[]``.
      q_fn: as in `plan_values`, and so are all that follow.
      dynamics_fn: abstract dynamics.
      reward_fn: reward.
      discount_fn: discount.
      depth: model steps.
      branching: actions that are expanded below the root.
      memory: bytes that the abstract states of the tree may take.

    Returns:
      Values, ``[D+1]``.

    Raises:
      InputError: as `plan_values`.
      AssertionError: as `plan_values`, or an action that is not an integer scalar.
    """
    chex.assert_rank(action, 0)
    chex.assert_type(action, int)
    model = _Model(q_fn, dynamics_fn, reward_fn, discount_fn)
    return _grow(z, action[None], model, depth, branching, memory)[:, 0]


def plan_q(values: Array, weights: Array | None = None) -> Array:
    """Mixes the values of all depths, ``sum_d w_d Q^d / sum_d w_d``.

    Args:
      values: ``[D+1, ...]``, from `plan_values` or `action_values`.
      weights: of the depths, ``[D+1]``, not negative and not all zero; None weighs them alike, as CRAR does (the GMAS
        paper prints a division by ``D``, which is undefined at ``D = 0`` and prefers the same action elsewhere).

    Returns:
      Mixed values, ``[...]``.

    Raises:
      AssertionError: another number of weights than of depths.

    Source: Francois-Lavet et al. 2019 (CRAR), section 4.
    """
    if weights is None:
        return jnp.mean(values, axis=0)
    chex.assert_shape(weights, (values.shape[0],))
    return jnp.tensordot(weights / jnp.sum(weights), values, axes=1)


def tree_size(num_roots: int, branching: int, depth: int) -> int:
    """Number of abstract states that a tree creates, ``num_roots (1 + b + ... + b^(D-1))``; the root is not counted.

    Args:
      num_roots: actions expanded at the root.
      branching: actions expanded below it.
      depth: model steps.
    """
    return num_roots * sum(branching**level for level in range(depth))


def _grow(z: Array, root_actions: Array, model: _Model, depth: int, branching: int | None, memory: float) -> Array:
    """Values ``[D+1, R]`` of the root's actions ``[R]``: the levels from the root down, then the backup."""
    chex.assert_type(z, float)
    root_q = model.q_fn(z)
    chex.assert_rank(root_q, 1)
    num_actions = root_q.shape[0]
    branching = num_actions if branching is None else branching
    _check(z, root_actions.shape[0], num_actions, depth, branching, memory)

    actions, nodes, q = root_actions[None], z[None], root_q[None]
    levels = []
    for level in range(depth):
        if level:
            actions = _best(q, branching)
        expand = jax.vmap(jax.vmap(lambda x, a: _expand(model, x, a), in_axes=(None, 0)))
        children, reward, discount = expand(nodes, actions)
        levels.append(_Level(q, reward, discount))
        nodes = children.reshape((-1, *z.shape))
        q = jax.vmap(model.q_fn)(nodes)

    # Values of the nodes of a level, [N, d] for the depths that still fit below them; at the leaves only depth 0.
    value, backed_up = _max(q)[:, None], jnp.zeros((1, root_actions.shape[0], 0), root_q.dtype)
    for q, reward, discount in reversed(levels):
        below = value.reshape((*reward.shape, -1))
        backed_up = reward[..., None] + discount[..., None] * below  # [N, b, d]
        value = jnp.concatenate([_max(q)[:, None], _max(jnp.swapaxes(backed_up, 1, 2))], axis=1)
    return jnp.concatenate([root_q[root_actions][None], backed_up[0].T])


def _expand(model: _Model, z: Array, action: Array) -> tuple[Array, Array, Array]:
    return model.dynamics_fn(z, action), model.reward_fn(z, action), model.discount_fn(z, action)


def _best(q: Array, count: int) -> Array:
    """The ``count`` best actions of every node, ``[N, count]``."""
    if count == q.shape[-1]:
        return jnp.broadcast_to(jnp.arange(count)[None], q.shape)
    return jax.lax.top_k(jax.lax.stop_gradient(q), count)[1]


def _max(values: Array) -> Array:
    """Maximum over the last axis, by its index: the slope is that of one best action, also between equal ones."""
    best = jnp.argmax(values, axis=-1, keepdims=True)
    return jnp.take_along_axis(values, best, axis=-1)[..., 0]


def _check(z: Array, num_roots: int, num_actions: int, depth: int, branching: int, memory: float) -> None:
    if depth < 0:
        raise InputError(f"depth={depth} must not be negative; 0 is the critic alone.")
    if not 1 <= branching <= num_actions:
        raise InputError(f"branching={branching} must lie between 1 and the number of actions, {num_actions}.")
    each = z.size * z.dtype.itemsize
    count = tree_size(num_roots, branching, depth)
    if count * each <= memory:
        return
    largest = 0
    while tree_size(num_roots, branching, largest + 1) * each <= memory:
        largest += 1
    narrower = f", or a branching below {branching}" if branching > 1 else ""
    raise InputError(
        f"depth={depth} with branching={branching} makes {count:,} abstract states of {each:,} bytes, "
        f"{count * each / _GIB:,.1f} GiB where memory={memory / _GIB:,.1f} GiB: use the largest depth that fits, "
        f"{largest}{narrower}."
    )
