"""Cross-entropy planning at test time: start from the policy, improve on the model, end with the critic."""

from __future__ import annotations

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops.returns import discounted_sum
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PyTree, QFn, StepFn

__all__ = ["plan", "refit"]


def plan(
    obs: Array,
    key: Key,
    *,
    policy_fn: Any,
    step_fn: StepFn,
    q_fn: QFn,
    horizon: int = 5,
    gamma: Array | float = 0.99,
    num_candidates: int = 256,
    num_iterations: int = 5,
    num_elites: int = 25,
    smoothing: float = 0.1,
    step_noise: PyTree = None,
    released: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """Plans one action by the cross-entropy method.

    Maximises ``sum_{t<H} gamma^t r_t + gamma^H min_c Q_c(s_H, a_H)`` over sequences of ``H + 1`` actions, which are
    drawn from a Gaussian before the policy's squash. Its mean and standard deviation start as the policy's along a
    model roll-out from ``obs``, and are refitted to the best candidates. All candidates of an iteration meet the same
    model noise, so that they differ by their actions alone. One whose value is NaN counts as minus infinity.

    Args:
      obs: state to act in, ``[D]``.
      key: consumed.
      policy_fn: policy with bound parameters, ``policy_fn(obs)`` -> `TanhGaussian` or `Gaussian`.
      step_fn: model step with bound parameters.
      q_fn: critic with bound parameters, ``(obs, action) -> []`` or ``[C]``; of several critics the smallest counts.
      horizon: model steps, ``H >= 0``, static; 0 searches over the critic alone.
      gamma: discount factor.
      num_candidates: sequences per iteration, static.
      num_iterations: refits, static.
      num_elites: candidates that a refit uses, ``1 <= num_elites <= num_candidates``, static.
      smoothing: weight of the old mean and variance in a refit.
      step_noise: what ``step_fn`` receives instead of fresh keys, leading axes ``[num_iterations + 1, H]``: one for the
        first roll-out and one for every iteration; for instance the model member of each step.
      released: as the released MAAC does, discounts the critic by ``gamma^(H+1)`` and executes the action unsquashed.

    Returns:
      ``(action [A], aux)`` with aux ``value``, the mean objective of the last elites, and ``std``, the mean standard
      deviation that is left.

    Raises:
      AssertionError: ``obs`` is not a float vector, a negative horizon, or counts that cannot be.

    Source: Clavera, Fu and Abbeel 2020 (MAAC), section 5.4.
    """
    chex.assert_rank(obs, 1)
    chex.assert_type(obs, float)
    chex.assert_scalar_non_negative(horizon)
    chex.assert_scalar_in(num_elites, 1, num_candidates)
    noise_key, candidates_key = jax.random.split(key)
    if step_noise is None:
        step_noise = jax.random.split(noise_key, (num_iterations + 1, horizon))
    first = policy_fn(obs)

    def squash(u: Array) -> Array:
        return first._replace(mean=u).mode()

    def objective(sequence: Array, noise: PyTree) -> Array:
        actions = jax.vmap(squash)(sequence)
        reward, discount, final_obs = jnp.zeros((0,), obs.dtype), jnp.zeros((0,), obs.dtype), obs
        if horizon:
            path = unroll(obs, (actions[:-1], noise), act_fn=lambda _, action: action, step_fn=step_fn)
            reward, discount, final_obs = path.reward, path.discount, path.final_obs
        q = jnp.min(jnp.atleast_1d(q_fn(final_obs, actions[-1])))
        return discounted_sum(reward, discount, gamma=gamma, bootstrap=gamma * q if released else q)

    def iterate(carry: tuple[Array, Array], step: tuple[Key, PyTree]) -> tuple[tuple[Array, Array], Array]:
        mean, variance = carry
        candidate_key, noise = step
        draws = jax.random.normal(candidate_key, (num_candidates, *mean.shape), mean.dtype)
        candidates = mean[None] + jnp.sqrt(variance)[None] * draws
        values = jax.vmap(partial(objective, noise=noise))(candidates)
        # The order of top_k puts NaN above every number.
        best, index = jax.lax.top_k(jnp.where(jnp.isnan(values), -jnp.inf, values), num_elites)
        return refit(mean, variance, candidates[index], smoothing=smoothing), jnp.mean(best)

    start = _policy_sequence(obs, policy_fn, step_fn, jax.tree.map(lambda x: x[0], step_noise), horizon)
    rest = jax.tree.map(lambda x: x[1:], step_noise)
    (mean, variance), values = jax.lax.scan(iterate, start, (jax.random.split(candidates_key, num_iterations), rest))
    action = mean[0] if released else squash(mean[0])
    return action, {"value": values[-1], "std": jnp.mean(jnp.sqrt(variance))}


def refit(mean: Array, variance: Array, elites: Array, *, smoothing: Array | float) -> tuple[Array, Array]:
    """Moves a Gaussian towards its elites: ``new = smoothing * old + (1 - smoothing) * elite``, mean and variance.

    Args:
      mean: mean of the sequences, ``[H+1, A]``.
      variance: elementwise variance, ``[H+1, A]``.
      elites: the best sequences, ``[E, H+1, A]``.
      smoothing: weight of the old values.

    Returns:
      ``(mean, variance)``.
    """

    def mix(old: Array, new: Array) -> Array:
        return smoothing * old + (1.0 - smoothing) * new

    return mix(mean, jnp.mean(elites, axis=0)), mix(variance, jnp.var(elites, axis=0))


def _policy_sequence(obs: Array, policy_fn: Any, step_fn: StepFn, noise: PyTree, horizon: int) -> tuple[Array, Array]:
    """Mean and variance, before the squash, of the policy along a roll-out of its own modes, ``[H+1, A]`` each."""
    states = obs[None]
    if horizon:
        path = unroll(obs, (jnp.zeros(horizon), noise), act_fn=lambda s, _: policy_fn(s).mode(), step_fn=step_fn)
        states = jnp.concatenate([path.obs, path.final_obs[None]])
    policies = jax.vmap(policy_fn)(states)
    return policies.mean, jnp.exp(2.0 * policies.log_std)
