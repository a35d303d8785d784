"""Values of state-action pairs by model roll-outs, and the norms of scores, both without storing a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array, Key, PolicyFn, PyTree, StepFn, ValueFn

__all__ = ["batch_rollout_values", "rollout_value", "score_norms"]


def rollout_value(
    obs: Array,
    action: Array,
    noise: tuple[PyTree, PyTree],
    *,
    act_fn: Callable[[Array, PyTree], Array],
    step_fn: StepFn,
    gamma: Array | float,
    value_fn: ValueFn | None = None,
    unroll: int = 1,
) -> Array:
    """Value of one pair by ``M`` roll-outs that start with the given action.

    ``1/M sum_j sum_{h<H} gamma^h (prod_{i<h} d_i) r(s_h, a_h)`` with ``a_0`` given, ``a_h ~ pi(s_h)`` from then on;
    with ``value_fn``, additionally ``gamma^H (prod_{i<H} d_i) V(s_H)``.

    Args:
      obs: ``[D]``.
      action: of the pair.
      noise: ``(action_noise, step_noise)``, pytrees with leading axes ``[M, H]``: keys, or recorded noise for either
        function (drawing it for all pairs at once costs a third). The first action noise of a roll-out is not used.
      act_fn: ``act_fn(obs, noise) -> action``, the policy of the later steps.
      step_fn: ``(obs, action, noise) -> (next_obs, reward, discount)``, the model.
      gamma: discount factor.
      value_fn: what is expected after ``H`` steps, ``obs -> []``; short roll-outs then compound less model error.
      unroll: steps per turn of the compiled loop.

    Returns:
      The value, ``[]``.

    Raises:
      AssertionError: noise without the two leading axes.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 4.
    """
    chex.assert_equal_shape_prefix(jax.tree.leaves(noise), 2)

    def path(path_noise: tuple[PyTree, PyTree]) -> Array:
        def advance(carry: tuple[Array, Array, Array, Array], noise_h: tuple[PyTree, PyTree]) -> tuple[tuple, None]:
            s, a, weight, total = carry
            action_noise, step_noise = noise_h
            following, reward, discount = step_fn(s, a, step_noise)
            total = total + weight * reward
            return (following, act_fn(following, action_noise), weight * gamma * discount, total), None

        # The action of step h + 1 is drawn at step h, so the noise of the (given) first action comes last, unused.
        actions, steps = path_noise
        shifted = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), actions)
        start = (obs, action, jnp.ones(()), jnp.zeros(()))
        (final, _, weight, total), _ = jax.lax.scan(advance, start, (shifted, steps), unroll=unroll)
        return total if value_fn is None else total + weight * value_fn(final)

    return jnp.mean(jax.vmap(path)(noise))


def batch_rollout_values(
    obs: Array,
    action: Array,
    key: Key,
    *,
    act_fn: Callable[[Array, Array], Array],
    step_fn: Callable[[Array, Array, Array], tuple[Array, Array, Array]],
    num_rollouts: int,
    horizon: int,
    gamma: Array | float,
    value_fn: ValueFn | None = None,
) -> Array:
    """`rollout_value` of many pairs, for policies and models that take standard normal noise.

    The noise of one step of all roll-outs is drawn at once and used at once: nothing of the length of a path is ever
    stored, and a large batch is bound by the generator of normals.

    Args:
      obs: ``[B, D]``.
      action: ``[B, A]``.
      key: one draw.
      act_fn: ``act_fn(obs [D], noise [A]) -> action [A]``, the policy of the later steps.
      step_fn: ``(obs [D], action [A], noise [D]) -> (next_obs, reward, discount)``, the model.
      num_rollouts: ``M``, static.
      horizon: ``H``, static.
      gamma: discount factor.
      value_fn: what is expected after ``H`` steps, ``obs -> []``.

    Returns:
      Values, ``[B]``.
    """
    chex.assert_rank([obs, action], 2)
    shape = (num_rollouts, obs.shape[0])

    def every(fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(jax.vmap(fn))

    def advance(carry: tuple[Array, Array, Array, Array], step_key: Key) -> tuple[tuple, None]:
        s, a, weight, total = carry
        model_key, policy_key = jax.random.split(step_key)
        following, reward, discount = every(step_fn)(s, a, jax.random.normal(model_key, s.shape, s.dtype))
        next_action = every(act_fn)(following, jax.random.normal(policy_key, a.shape, a.dtype))
        return (following, next_action, weight * gamma * discount, total + weight * reward), None

    start = (
        jnp.broadcast_to(obs, shape + obs.shape[1:]),
        jnp.broadcast_to(action, shape + action.shape[1:]),
        jnp.ones(shape, obs.dtype),
        jnp.zeros(shape, obs.dtype),
    )
    (final, _, weight, total), _ = jax.lax.scan(advance, start, jax.random.split(key, horizon))
    if value_fn is not None:
        total = total + weight * every(value_fn)(final)
    return jnp.mean(total, axis=0)


def score_norms(
    policy_params: PyTree,
    obs: Array,
    action: Array,
    *,
    policy_fn: PolicyFn,
    order: float = 2.0,
    chunk: int | None = None,
) -> Array:
    """``|grad log pi(a | s)|_q`` of many pairs, by one gradient per pair.

    Args:
      policy_params: parameters of the policy.
      obs: ``[B, D]``.
      action: ``[B, A]`` or ``[B]``.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      order: ``q``: 1, 2 or infinity.
      chunk: pairs whose gradients exist at the same time; None: all. With ``P`` parameters the memory is ``chunk x P``.

    Returns:
      Norms, ``[B]``.

    Raises:
      AssertionError: unequal numbers of observations and actions, or another order.
    """
    chex.assert_equal_shape_prefix([obs, action], 1)
    assert order in (1, 2, jnp.inf), f"order={order} must be 1, 2 or infinity."

    def norm(pair: tuple[Array, Array]) -> Array:
        s, a = pair
        score = jax.tree.leaves(jax.grad(lambda p: policy_fn(p, s).log_prob(a))(policy_params))
        if order == 1:
            return sum((jnp.sum(jnp.abs(g)) for g in score), jnp.zeros(()))
        if order == 2:
            return jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in score), jnp.zeros(())))
        return jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in score]))

    if chunk is None:
        return jax.vmap(norm)((obs, action))
    return jax.lax.map(norm, (obs, action), batch_size=chunk)
