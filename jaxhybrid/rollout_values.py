"""Values of state-action pairs by model roll-outs, and the norms of scores, without storing a path or a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops.importance import truncated_weights
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, StepFn, ValueFn

__all__ = ["batch_rollout_values", "rollout_value", "score_norms", "score_weights"]


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
    antithetic: bool = False,
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
      antithetic: whether the second half of the roll-outs mirrors the noise of the first, static: as unbiased, half the
        normals, and nothing is left of the noise that enters a value linearly.

    Returns:
      Values, ``[B]``.

    Raises:
      AssertionError: other ranks, or an odd number of roll-outs to mirror.
    """
    chex.assert_rank([obs, action], 2)
    assert not (antithetic and num_rollouts % 2), f"num_rollouts={num_rollouts} must be even to mirror its noise."
    shape = (2, num_rollouts // 2, obs.shape[0]) if antithetic else (1, num_rollouts, obs.shape[0])
    sign = jnp.array([1.0, -1.0] if antithetic else [1.0], obs.dtype).reshape(-1, 1, 1, 1)

    def every(fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.vmap(jax.vmap(jax.vmap(fn)))

    def noise(noise_key: Key, like: Array) -> Array:
        return sign * jax.random.normal(noise_key, like.shape[1:], like.dtype)[None]

    def advance(carry: tuple[Array, Array, Array, Array], step_key: Key) -> tuple[tuple, None]:
        s, a, weight, total = carry
        model_key, policy_key = jax.random.split(step_key)
        following, reward, discount = every(step_fn)(s, a, noise(model_key, s))
        next_action = every(act_fn)(following, noise(policy_key, a))
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
    return jnp.mean(total, axis=(0, 1))


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


def score_weights(
    policy_params: PyTree,
    obs: Array,
    action: Array,
    behaviour_log_prob: Array,
    used: Array,
    *,
    policy_fn: PolicyFn,
    max_ratio: Array | float,
    order: float = 2.0,
    chunk: int | None = None,
) -> Array:
    """Weights of replayed steps in a model's likelihood, larger where the policy gradient needs the model; mean one.

    ``w_n = min(rho_n, max_ratio) |grad log pi(a_n | s_n)|_q``, ``rho_n = pi(a_n | s_n) / b(a_n | s_n)``, over its mean.

    What is left of `ops.importance.gradient_aware_weights` when steps are replayed one by one: the products and sums
    over the steps *before* n, and ``gamma^t``, need the path that led there, which a replay does not keep. So the ratio
    is that of the step's own action, the states stay those of the replay, and a step counts by its own score alone.

    Args:
      policy_params: parameters of the policy, a constant of the fit.
      obs: ``[B, D]``.
      action: ``[B, A]``.
      behaviour_log_prob: log-probability of each action under the policy that took it, ``[B]``.
      used: which rows hold data, boolean ``[B]``; the others get the weight zero.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      max_ratio: largest ratio; every bound biases the weights towards those of the behaviour policies.
      order: ``q``: 1, 2 or infinity.
      chunk: as in `score_norms`.

    Returns:
      Weights of mean one over the rows in use, ``[B]``; all one where every score is zero.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 3, without its sums over the past.
    """
    chex.assert_equal_shape([behaviour_log_prob, used])
    norms = score_norms(policy_params, obs, action, policy_fn=policy_fn, order=order, chunk=chunk)
    log_prob = jax.vmap(lambda s, a: policy_fn(policy_params, s).log_prob(a))(obs, action)
    weights = truncated_weights(log_prob - behaviour_log_prob, maximum=max_ratio) * norms
    # A select, not a product: rows without data may give anything.
    weights = jnp.where(used, weights, 0.0)
    total = jnp.sum(weights)
    mean = total / jnp.maximum(jnp.sum(used), 1)
    return jnp.where(total > 0, weights / jnp.where(total > 0, mean, 1.0), used.astype(weights.dtype))
