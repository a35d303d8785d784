"""Critic losses and value-expansion targets.

Targets are constants of the critic's parameters: they are computed with the slow ``target_params`` and bound functions,
so that no stop-gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops.returns import interpolate_horizons
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PyTree, QFn, StepFn, Transition

__all__ = [
    "double_q_targets",
    "entropy_temperature_loss",
    "expansion_values",
    "path_targets",
    "sequence_squared_error",
    "soft_bootstrap",
    "squared_error",
    "steve_target",
]


def squared_error(
    critic_params: PyTree, example: tuple[Array, Array, Array], key: Key, *, q_fn: Any
) -> tuple[Array, dict[str, Array]]:
    """Squared Bellman error of every critic against one target, ``sum_c (Q_c(s, a) - y)^2``.

    Args:
      critic_params: parameters of the critics.
      example: ``(obs [D], action [A], target [])``.
      key: unused; the signature is that of every loss.
      q_fn: ``q_fn(critic_params, obs, action) -> []`` or ``[C]``.

    Returns:
      ``(loss [], aux)`` with aux ``q``, the mean over critics.

    Raises:
      AssertionError: a target that is not a scalar.
    """
    del key
    obs, action, target = example
    chex.assert_rank(target, 0)
    q = jnp.atleast_1d(q_fn(critic_params, obs, action))
    return jnp.sum(jnp.square(q - target)), {"q": jnp.mean(q)}


def double_q_targets(
    reward: Array, discount: Array, next_q: Array, slow_next_q: Array, *, gamma: Array | float
) -> Array:
    """Targets of a sequence, ``y_t = r_t + gamma d_t Q_slow(s_{t+1}, argmax_a Q(s_{t+1}, a))``, ``[T]``.

    Args:
      reward: ``[T]``.
      discount: 0 iff the step terminated, ``[T]``.
      next_q: values after every step, which choose the action, ``[T, A]``.
      slow_next_q: those of the slow copy, which value it, ``[T, A]``.
      gamma: discount factor.

    Raises:
      AssertionError: shapes that do not fit.

    Source: van Hasselt et al. 2016, equation 4.
    """
    chex.assert_rank([reward, next_q], [1, 2])
    chex.assert_equal_shape([next_q, slow_next_q])
    chex.assert_equal_shape_prefix([reward, discount, next_q], 1)
    best = jnp.argmax(next_q, axis=-1)
    value = jnp.take_along_axis(slow_next_q, best[:, None], axis=-1)[:, 0]
    # A select: past the end of a sequence a value may be anything.
    return reward + gamma * jnp.where(discount > 0, discount * value, 0.0)


def sequence_squared_error(
    critic_params: PyTree,
    example: tuple[PyTree, Array, Array, Array],
    key: Key,
    *,
    q_fn: Callable[[PyTree, PyTree], Array],
    num_steps: Array | float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared Bellman error of a critic with a memory over a padded sequence.

    ``1 / n sum_t m_t (Q_t(a_t) - y_t)^2``.

    Args:
      critic_params: parameters of the critic.
      example: the sequence, in whatever form ``q_fn`` takes; actions taken, integer ``[T]``; targets ``[T]``; and the
        mask, 1 for steps and 0 for padding, ``[T]``.
      key: unused; the signature is that of every loss.
      q_fn: ``q_fn(critic_params, sequence) -> [T, A]``.
      num_steps: ``n``, by default that of this sequence. The mean number in a batch makes the batch's mean a mean over
        all its steps.

    Returns:
      ``(loss [], aux)`` with aux ``q``, the mean over the steps.

    Raises:
      AssertionError: lengths that do not fit.
    """
    del key
    sequence, action, target, mask = example
    q = q_fn(critic_params, sequence)
    chex.assert_rank([q, target], [2, 1])
    chex.assert_equal_shape_prefix([q, action, target, mask], 1)
    taken = jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
    # A select, not a product: nothing of the padding, not even a NaN, reaches the loss or its gradient.
    error = jnp.where(mask > 0, taken - target, 0.0)
    own = jnp.maximum(jnp.sum(mask), 1.0)
    mean_q = jnp.sum(jnp.where(mask > 0, taken, 0.0)) / own
    return jnp.sum(jnp.square(error)) / (own if num_steps is None else num_steps), {"q": mean_q}


def soft_bootstrap(obs: Array, key: Key, *, policy_fn: Any, q_fn: QFn, temperature: Array | float = 0.0) -> Array:
    """Entropy-regularised value of a state, one draw: ``Q_c(s, a) - temperature * log pi(a | s)``.

    All critics value the same action, so the errors of the draw are common to them.

    Args:
      obs: state, ``[D]``.
      key: draw of the action.
      policy_fn: policy with bound parameters, ``policy_fn(obs)`` -> distribution record.
      q_fn: critic with bound parameters, ``(obs, action) -> []`` or ``[C]``.
      temperature: weight of the entropy.

    Returns:
      Values, ``[C]``.
    """
    action, log_prob = policy_fn(obs).sample_and_log_prob(key)
    return jnp.atleast_1d(q_fn(obs, action)) - temperature * log_prob


def expansion_values(
    transition: Transition,
    key: Key,
    *,
    policy_fn: Any,
    step_fn: StepFn,
    q_fn: QFn,
    horizon: int,
    gamma: Array | float,
    temperature: Array | float = 0.0,
    step_noise: PyTree = None,
    cumulative_discount: bool = True,
    path_entropy: bool = True,
) -> Array:
    """Targets of depth 0..H along one model path that starts at a real transition.

    ``T_h = sum_{i<=h} gamma^i (prod_{j<i} d_j) r_i + gamma^{h+1} (prod_{j<=h} d_j) V_c(s_{h+1})``, where step 0 is the
    transition itself and later steps are the model's. The rewards of the model's steps carry the entropy bonus of their
    action, ``r_i - temperature * log pi(a_i | s_i)``, so that every depth estimates the same soft value.

    Args:
      transition: real step, without a batch axis.
      key: one draw of all noise.
      policy_fn: policy with bound parameters, ``policy_fn(obs)`` -> distribution record.
      step_fn: model step with bound parameters.
      q_fn: (slow) critics with bound parameters, ``(obs, action) -> []`` or ``[C]``.
      horizon: model steps after the transition, ``H >= 0``, static.
      gamma: discount factor.
      temperature: weight of the entropy, in the bootstrap and in the bonus along the path.
      step_noise: what ``step_fn`` receives instead of fresh keys, leading axis ``[H]``.
      cumulative_discount: False multiplies a reward by the discount of the step before it alone, as the released MAAC
        does, so that a path that ended goes on being paid.
      path_entropy: False leaves the bonus out of the path, so that depths differ in what they estimate.

    Returns:
      Candidate targets, ``[H+1, C]``.

    Raises:
      AssertionError: a batch axis on the transition or a negative horizon.

    Source: Buckman et al. 2018, equation 2; MAAC, section 4.3.
    """
    chex.assert_rank([transition.obs, transition.action, transition.reward], [1, 1, 0])
    chex.assert_scalar_non_negative(horizon)
    action_key, model_key, value_key = jax.random.split(key, 3)
    reward, discount, reached = transition.reward[None], transition.discount[None], transition.next_obs[None]
    if horizon > 0:
        model_noise = jax.random.split(model_key, horizon) if step_noise is None else step_noise
        action_keys = jax.random.split(action_key, horizon)
        path = unroll(
            transition.next_obs,
            (action_keys, model_noise),
            act_fn=lambda s, k: policy_fn(s).sample(k),
            step_fn=step_fn,
        )
        bonus = jnp.zeros_like(path.reward)
        if path_entropy:
            # The same keys draw the path's own actions again, with their exact log-probabilities.
            log_prob = jax.vmap(lambda s, k: policy_fn(s).sample_and_log_prob(k)[1])(path.obs, action_keys)
            bonus = -temperature * log_prob
        reward = jnp.concatenate([reward, path.reward + bonus])
        discount = jnp.concatenate([discount, path.discount])
        reached = jnp.concatenate([path.obs, path.final_obs[None]])
    return path_targets(
        reward,
        discount,
        reached,
        value_key,
        policy_fn=policy_fn,
        q_fn=q_fn,
        gamma=gamma,
        temperature=temperature,
        cumulative_discount=cumulative_discount,
    )


def path_targets(
    reward: Array,
    discount: Array,
    reached: Array,
    key: Key,
    *,
    policy_fn: Any,
    q_fn: QFn,
    gamma: Array | float,
    temperature: Array | float = 0.0,
    cumulative_discount: bool = True,
) -> Array:
    """Targets of every depth along one recorded path; the formula of `expansion_values`.

    Args:
      reward: rewards, ``[H+1]``.
      discount: 0 iff the step terminated, ``[H+1]``.
      reached: observations after each step, ``[H+1, D]``.
      key: draws of the bootstrap actions.
      policy_fn: policy with bound parameters, ``policy_fn(obs)`` -> distribution record.
      q_fn: (slow) critics with bound parameters, ``(obs, action) -> []`` or ``[C]``.
      gamma: discount factor.
      temperature: weight of the entropy in the bootstrap.
      cumulative_discount: see `expansion_values`.

    Returns:
      Candidate targets, ``[H+1, C]``.

    Raises:
      AssertionError: unequal lengths.
    """
    chex.assert_equal_shape_prefix([reward, discount, reached], 1)
    depths = reward.shape[0]
    bootstrap = jax.vmap(lambda s, k: soft_bootstrap(s, k, policy_fn=policy_fn, q_fn=q_fn, temperature=temperature))(
        reached, jax.random.split(key, depths)
    )
    powers = gamma ** jnp.arange(depths)
    alive = jnp.cumprod(discount) if cumulative_discount else discount
    before = jnp.concatenate([jnp.ones((1,), alive.dtype), alive[:-1]])
    return jnp.cumsum(powers * before * reward)[:, None] + (gamma * powers * alive)[:, None] * bootstrap


def steve_target(values: Array, *, epsilon: Array | float = 1e-8, pessimistic: bool = True) -> tuple[Array, Array]:
    """Mixes the candidate targets of an ensemble by inverse variance over models and critics.

    Args:
      values: candidates, ``[M, H+1, C]`` over models, depths and critics.
      epsilon: variance floor, see `ops.returns.interpolate_horizons`.
      pessimistic: whether the mixed means are those of the critic with the smaller mean (the variance always is over
        all pairs); False averages over critics, as the original STEVE does.

    Returns:
      ``(target [], weights [H+1])``.

    Raises:
      AssertionError: another rank than 3.

    Source: Buckman et al. 2018, equations 4-5; twin critics as in Fujimoto et al. 2018.
    """
    chex.assert_rank(values, 3)
    num_depths = values.shape[1]
    target, weights = interpolate_horizons(jnp.swapaxes(values, 0, 1).reshape(num_depths, -1), epsilon)
    if pessimistic:
        target = jnp.sum(weights * jnp.min(jnp.mean(values, axis=0), axis=-1))
    return target, weights


def entropy_temperature_loss(
    log_temperature: Array, log_prob: Array, key: Key, *, target_entropy: Array | float
) -> tuple[Array, dict[str, Array]]:
    """Moves the temperature so that the policy's entropy meets its target, ``-log alpha (log pi(a | s) + H_target)``.

    Args:
      log_temperature: logarithm of the temperature, ``[]``.
      log_prob: log-probability of the policy's action, a constant here, ``[]``.
      key: unused; the signature is that of every loss.
      target_entropy: entropy to hold, in nats; often minus the action dimension.

    Returns:
      ``(loss [], aux)`` with aux ``temperature``.

    Source: Haarnoja et al. 2018b, Soft actor-critic algorithms and applications, equation 18 (released form).
    """
    del key
    return -log_temperature * (log_prob + target_entropy), {"temperature": jnp.exp(log_temperature)}
