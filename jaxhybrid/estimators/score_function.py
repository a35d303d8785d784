"""The likelihood-ratio policy gradient."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops.returns import discounted_returns
from jaxhybrid.rollout import noise_keys, unroll
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, StepFn, ValueFn

__all__ = ["score_function"]


def score_function(
    policy_params: PyTree,
    obs: Array,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    horizon: int,
    gamma: Array | float,
    baseline_fn: ValueFn | None = None,
    value_fn: ValueFn | None = None,
    step_noise: PyTree = None,
) -> tuple[PyTree, dict[str, Array]]:
    """Score-function (likelihood-ratio, REINFORCE) gradient with rewards to go, by one roll-out.

    ``sum_{t<H} gamma^t (prod_{i<t} d_i) (G_t - b(s_t)) grad log pi(a_t | s_t)`` with ``G_t = r_t + gamma d_t G_{t+1}``
    and ``G_H = V(s_H)``.

    Estimates: the gradient of ``E[sum_{t<H} gamma^t r_t + gamma^H V(s_H)]`` from ``obs``, ``V`` held fixed.
    Unbiased when: ``step_fn`` is the process whose return is meant; for any baseline and any ``V``. For the return
      without end, ``V`` must be exact, and the terms of the true gradient from step ``H`` on are missing.
    Gradient flows through: ``log pi`` at the drawn actions alone; steps, rewards and values need no derivative.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      obs: start state, ``[D]``.
      key: one draw of all noise.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``sample(key)`` and ``log_prob(action)``; actions may
        be discrete. A squashed action near its bounds has the precision of the record's ``log_prob``.
      step_fn: ``(obs, action, key_or_noise) -> (next_obs, reward, discount)``.
      horizon: steps of the roll-out, ``H >= 1``, static.
      gamma: discount factor.
      baseline_fn: baseline with bound parameters, ``obs -> []``; None subtracts nothing.
      value_fn: value after the last step with bound parameters, ``obs -> []``; None counts nothing after it.
      step_noise: what ``step_fn`` receives instead of fresh keys, leading axis ``[H]``.

    Returns:
      ``(grads, aux)``, the direction of ascent and aux ``value``, the return of the roll-out.

    Raises:
      AssertionError: ``obs`` is not a float vector, ``horizon`` is below 1, or a function returns another shape.

    Source: Williams 1992, Simple statistical gradient-following algorithms; Sutton et al. 2000, theorem 1.
    """
    chex.assert_scalar_positive(horizon)
    action_keys, step_keys = noise_keys(key, horizon)
    path = unroll(
        obs,
        (action_keys, step_keys if step_noise is None else step_noise),
        act_fn=lambda s, action_key: policy_fn(policy_params, s).sample(action_key),
        step_fn=step_fn,
    )
    bootstrap = 0.0 if value_fn is None else value_fn(path.final_obs)
    to_go = discounted_returns(path.reward, path.discount, gamma=gamma, bootstrap=bootstrap)
    baseline = jnp.zeros_like(to_go) if baseline_fn is None else jax.vmap(baseline_fn)(path.obs)
    chex.assert_equal_shape([to_go, baseline])
    reached = jnp.cumprod(jnp.concatenate([jnp.ones((1,), to_go.dtype), gamma * path.discount[:-1]]))
    weight = reached * (to_go - baseline)

    def surrogate(params: PyTree) -> Array:
        log_prob = jax.vmap(lambda s, a: policy_fn(params, s).log_prob(a))(path.obs, path.action)
        chex.assert_equal_shape([weight, log_prob])
        return jnp.sum(weight * log_prob)

    return jax.grad(surrogate)(policy_params), {"value": to_go[0]}
