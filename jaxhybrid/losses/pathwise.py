"""The model-augmented actor objective: H model steps and a terminal critic, differentiated along the path."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops.returns import discounted_sum
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, QFn, StepFn

__all__ = ["maac_loss"]


def maac_loss(
    policy_params: PyTree,
    obs: Array,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    q_fn: QFn,
    horizon: int,
    gamma: Array | float,
    temperature: Array | float = 0.0,
    num_paths: int = 1,
    num_terminal_actions: int = 1,
    step_noise: PyTree = None,
) -> tuple[Array, dict[str, Array]]:
    """Loss of the model-augmented actor-critic for one start state.

    ``-[sum_{t<H} gamma^t r_t + gamma^H Q(s_H, a_H)] + temperature * log pi(a_0 | s_0)``, ``a_t ~ pi(s_t)``,
    ``s_{t+1} ~ f(s_t, a_t)``; terminated steps end the sum. ``horizon=0`` is the model-free objective of soft
    actor-critic. Entropy counts at the first state only, as in the paper.

    Estimates: the gradient of the return of the policy at ``obs``, without the part in which the critic itself depends
      on the policy (with a perfect model and critic: the H-truncated policy gradient; see `envs.lqr.policy_gradient`).
    Unbiased when: for the truncated gradient, the model and the slope of the critic are exact; for the full gradient,
      additionally as H grows without bound.
    Gradient flows through: the reparameterised actions, the model steps, the rewards and the inputs of the critic.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      obs: start state, ``[D]``.
      key: one draw of all noise.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``sample(key)`` and ``log_prob(action)``; a
        ``sample_and_log_prob(key)`` is preferred where there is one (exact where a squash saturates).
      step_fn: model step with bound parameters, ``(obs, action, key_or_noise) -> (next_obs, reward, discount)``.
      q_fn: critic with bound parameters, ``(obs, action) -> []`` or ``[C]``; of several critics the smallest counts.
      horizon: model steps before the terminal value, ``H >= 0``, static.
      gamma: discount factor.
      temperature: weight of the entropy bonus.
      num_paths: independent paths from ``obs`` that are averaged, static.
      num_terminal_actions: actions at the end of each path over which each critic is averaged before the smallest is
        taken, static (the released code used 5 on a single path, the paper whole paths).
      step_noise: what ``step_fn`` receives instead of fresh keys, leading axes ``[num_paths, H]``; for instance the
        model member of each step.

    Returns:
      ``(loss [], aux)`` with aux ``log_prob`` of the first action and ``value``, the model-augmented return.

    Raises:
      AssertionError: ``obs`` is not a float vector, ``horizon`` negative, or a count below one.
    """
    chex.assert_rank(obs, 1)
    chex.assert_type(obs, float)
    chex.assert_scalar_non_negative(horizon)
    chex.assert_scalar_positive(num_paths)
    chex.assert_scalar_positive(num_terminal_actions)

    def mean_q(s: Array, actions: Array) -> Array:
        return jnp.mean(jax.vmap(lambda a: jnp.atleast_1d(q_fn(s, a)))(actions), axis=0)

    def path(path_key: Key, path_noise: PyTree) -> tuple[Array, Array]:
        policy_key, model_key = jax.random.split(path_key)
        action_keys = jax.random.split(policy_key, horizon + 1)
        # The same key draws the same action again in the roll-out: the log-probability is that of the path's own a_0.
        first_action, log_prob = _sample_and_log_prob(policy_fn(policy_params, obs), action_keys[0])
        if horizon == 0:
            return _smallest(mean_q(obs, first_action[None])), log_prob
        model_noise = jax.random.split(model_key, horizon) if path_noise is None else path_noise
        steps = unroll(
            obs,
            (action_keys[:-1], model_noise),
            act_fn=lambda s, action_key: policy_fn(policy_params, s).sample(action_key),
            step_fn=step_fn,
        )
        final = policy_fn(policy_params, steps.final_obs)
        last_actions = jax.vmap(final.sample)(jax.random.split(action_keys[-1], num_terminal_actions))
        value = jax.vmap(lambda q: discounted_sum(steps.reward, steps.discount, gamma=gamma, bootstrap=q))
        return _smallest(value(mean_q(steps.final_obs, last_actions))), log_prob

    values, log_probs = jax.vmap(path)(jax.random.split(key, num_paths), step_noise)
    value, log_prob = jnp.mean(values), jnp.mean(log_probs)
    return temperature * log_prob - value, {"log_prob": log_prob, "value": value}


def _smallest(values: Array) -> Array:
    """The smallest of ``[C]``, by its index.

    The derivative of ``jnp.min`` divides by the number of values that equal the minimum. A compiler that computes the
    values twice, rounded differently, finds none: 0 / 0.
    """
    chosen = jnp.arange(values.shape[0]) == jnp.argmin(values)
    return jnp.sum(jnp.where(chosen, values, 0.0))


def _sample_and_log_prob(distribution: Any, key: Key) -> tuple[Array, Array]:
    if hasattr(distribution, "sample_and_log_prob"):
        return distribution.sample_and_log_prob(key)
    action = distribution.sample(key)
    return action, distribution.log_prob(action)
