"""Policy-gradient surrogates on recorded trajectories: values from a model, or from the returns of the recording."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops import trees
from jaxhybrid.ops.importance import per_decision_coefficients, per_decision_log_ratios
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Key, PolicyFn, PyTree

__all__ = ["model_value_surrogate", "per_decision_surrogate"]


def model_value_surrogate(
    policy_params: PyTree,
    trajectory: Trajectory,
    key: Key,
    *,
    policy_fn: PolicyFn,
    q_fn: Callable[[Array, Array, Key], Array],
    gamma: Array | float,
) -> tuple[Array, dict[str, Array]]:
    """Surrogate of the model-value gradient: its slope is the estimator, its value means nothing.

    ``-sum_t gamma^t rho_{0:t} Q(s_t, a_t) log pi(a_t | s_t)``, everything before the logarithm held constant.

    Estimates: minus the model-value gradient, ``1 / (1 - gamma) E_delta [grad log pi Q^{pi,p'}]``, up to step ``T``.
    Unbiased when: ``q_fn`` is unbiased for the model's values and its draws are independent of the recording; for the
      policy gradient itself, additionally the model is exact.
    Gradient flows through: ``log pi`` at the recorded actions alone.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      trajectory: one episode of length ``T`` of the behaviour policy, in the real environment.
      key: one draw of what ``q_fn`` needs.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      q_fn: value of a pair under the model, ``(obs [D], action, key) -> []``; for instance
        `rollout_values.rollout_value`, or a table of `envs.finite.q_values`.
      gamma: discount factor.

    Returns:
      ``(loss [], aux)`` with aux ``q``, the mean value over the steps, and ``log_ratio`` of the trajectory.

    Raises:
      AssertionError: a value or a log-probability that is no number, ``[]``.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 5.
    """
    chex.assert_rank(trajectory.reward, 1)
    length = trajectory.reward.shape[0]
    inside, keys = trajectory.mask > 0, jax.random.split(key, length)
    q = jax.vmap(q_fn)(*_filled(trajectory), keys)
    chex.assert_equal_shape([q, trajectory.mask])
    q = jnp.where(inside, q, 0.0)

    def coefficients(log_ratio: Array) -> Array:
        return jnp.power(gamma, jnp.arange(length, dtype=q.dtype)) * jnp.exp(log_ratio) * q

    loss, log_ratio = _surrogate(policy_params, trajectory, policy_fn, coefficients)
    return loss, {"q": jnp.sum(q) / jnp.maximum(jnp.sum(trajectory.mask), 1.0), "log_ratio": log_ratio}


def per_decision_surrogate(
    policy_params: PyTree,
    trajectory: Trajectory,
    key: Key,
    *,
    policy_fn: PolicyFn,
    gamma: Array | float,
    past_rewards: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Surrogate of the model-free policy gradient off policy, importance ratios per decision.

    ``-sum_t c_t log pi(a_t | s_t)`` with the coefficients of `ops.importance.per_decision_coefficients`, constant.

    Estimates: minus the gradient of ``E sum_{t<T} gamma^t r_t``.
    Unbiased when: always, if the behaviour policy takes every action of the target.
    Gradient flows through: ``log pi`` at the recorded actions alone.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      trajectory: one episode of length ``T`` of the behaviour policy.
      key: unused, the recording is the draw.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      gamma: discount factor.
      past_rewards: False counts the rewards that follow a decision (PGT), True all of them (REINFORCE).

    Returns:
      ``(loss [], aux)`` with aux ``log_ratio`` of the trajectory.

    Raises:
      AssertionError: a log-probability that is no number, ``[]``.

    Source: Sutton et al. 2000, theorem 1; Williams 1992; ratios as in Precup, Sutton and Singh 2000.
    """
    del key

    def coefficients(log_ratio: Array) -> Array:
        reward = jnp.where(trajectory.mask > 0, trajectory.reward, 0.0)
        return per_decision_coefficients(log_ratio, reward, gamma=gamma, past_rewards=past_rewards)

    loss, log_ratio = _surrogate(policy_params, trajectory, policy_fn, coefficients)
    return loss, {"log_ratio": log_ratio}


def _filled(trajectory: Trajectory) -> tuple[Array, Array]:
    """Observations and actions; past the end, where anything may stand, those of the first step."""
    return trees.fill(trajectory.mask > 0, (trajectory.obs, trajectory.action))


def _surrogate(
    policy_params: PyTree, trajectory: Trajectory, policy_fn: PolicyFn, coefficients: Callable[[Array], Array]
) -> tuple[Array, Array]:
    log_prob = jax.vmap(lambda s, a: policy_fn(policy_params, s).log_prob(a))(*_filled(trajectory))
    chex.assert_equal_shape([log_prob, trajectory.mask])
    inside = trajectory.mask > 0
    # The ratio is of the same parameters, but a constant of the estimator.
    target = jnp.where(inside, jax.lax.stop_gradient(log_prob), 0.0)
    log_ratio = per_decision_log_ratios(target, jnp.where(inside, trajectory.behaviour_log_prob, 0.0))
    weights = jnp.where(inside, jax.lax.stop_gradient(coefficients(log_ratio)), 0.0)
    # Where the ratio is 0 the logarithm is minus infinity.
    return -jnp.sum(jnp.where(weights != 0, weights * log_prob, 0.0)), log_ratio[-1]
