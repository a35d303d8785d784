"""One scan for roll-outs with sampled noise and for roll-outs with recorded noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.types import Array, Key, PyTree, StepFn

__all__ = ["Rollout", "noise_keys", "unroll"]

# Below this length storing every step is faster than recomputing it, and the memory is small.
_CHECKPOINT_FROM = 64
# Short scans are unrolled: XLA then fuses across steps (a fifth to a third faster for the actor's few steps).
_UNROLL_UP_TO = 8


class Rollout(NamedTuple):
    """What `unroll` returns.

    Attributes:
      obs: observations the actions were taken in, ``[H, D]``.
      action: actions, ``[H, A]``.
      reward: rewards, ``[H]``.
      discount: 0 iff the step terminated, ``[H]``.
      final_obs: observation after the last step, ``[D]``.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    final_obs: Array


def noise_keys(key: Key, horizon: int) -> tuple[Key, Key]:
    """Returns fresh noise for `unroll`: keys for the actions ``[H]`` and keys for the steps ``[H]``."""
    action_key, step_key = jax.random.split(key)
    return jax.random.split(action_key, horizon), jax.random.split(step_key, horizon)


def unroll(
    obs: Array,
    noise: tuple[PyTree, PyTree],
    *,
    act_fn: Callable[[Array, PyTree], Array],
    step_fn: StepFn,
    checkpoint: bool | None = None,
) -> Rollout:
    """Unrolls a policy and a step function from one observation.

    ``a_t = act_fn(s_t, noise_t)``, ``s_{t+1}, r_t, d_t = step_fn(s_t, a_t, noise'_t)``. With keys as noise this
    samples; with recorded noise (``infer_noise``) it embeds a real trajectory into the model. Gradient flows through
    everything.

    Args:
      obs: first observation, ``[D]``.
      noise: ``(action_noise, step_noise)``, pytrees with leading axis ``H``: keys or recorded noise for either
        function.
      act_fn: ``act_fn(obs [D], noise_t) -> action [A]``.
      step_fn: ``step_fn(obs [D], action [A], key_or_noise) -> (next_obs [D], reward [], discount [])``.
      checkpoint: whether reverse mode stores about ``2 sqrt(H)`` observations and recomputes the rest, instead of
        storing every intermediate of every step; None decides by the length. Values and gradients are the same.

    Returns:
      The `Rollout`.

    Raises:
      AssertionError: a first observation that is not a float vector, unequal lengths of the noise, or no step.
    """
    chex.assert_rank(obs, 1)
    chex.assert_type(obs, float)
    chex.assert_equal_shape_prefix(jax.tree.leaves(noise), 1)
    horizon = jax.tree.leaves(noise)[0].shape[0]
    chex.assert_scalar_positive(horizon)

    def body(s: Array, noise_t: tuple[PyTree, PyTree]) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        action_noise, step_noise = noise_t
        action = act_fn(s, action_noise)
        next_obs, reward, discount = step_fn(s, action, step_noise)
        return next_obs, (s, action, reward, discount)

    if checkpoint if checkpoint is not None else horizon >= _CHECKPOINT_FROM:
        final_obs, steps = _checkpointed_scan(body, obs, noise, horizon)
    else:
        final_obs, steps = jax.lax.scan(body, obs, noise, unroll=horizon if horizon <= _UNROLL_UP_TO else 1)
    visited, action, reward, discount = steps
    return Rollout(visited, action, reward, discount, final_obs)


def _checkpointed_scan(body: Callable, carry: Array, xs: PyTree, length: int) -> tuple[Array, PyTree]:
    """Scans in segments of about ``sqrt(length)`` steps, each a checkpoint of checkpointed steps."""
    segment = math.isqrt(length)
    whole = length - length % segment
    step = jax.checkpoint(body)
    segments = jax.tree.map(lambda x: x[:whole].reshape((whole // segment, segment) + x.shape[1:]), xs)
    carry, ys = jax.lax.scan(jax.checkpoint(lambda c, x: jax.lax.scan(step, c, x)), carry, segments)
    ys = jax.tree.map(lambda y: y.reshape((whole,) + y.shape[2:]), ys)
    carry, rest = jax.lax.scan(step, carry, jax.tree.map(lambda x: x[whole:], xs))
    return carry, jax.tree.map(lambda y, z: jnp.concatenate([y, z]), ys, rest)
