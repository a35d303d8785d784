"""The reparameterised policy gradient: backpropagation through the whole path."""

from __future__ import annotations

import chex
import jax

from jaxhybrid.ops.returns import discounted_sum
from jaxhybrid.rollout import noise_keys, unroll
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, StepFn, ValueFn

__all__ = ["pathwise"]


def pathwise(
    policy_params: PyTree,
    obs: Array,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    horizon: int,
    gamma: Array | float,
    value_fn: ValueFn | None = None,
    step_noise: PyTree = None,
) -> tuple[PyTree, dict[str, Array]]:
    """Pathwise (reparameterised) gradient through H steps, by one roll-out.

    ``grad [sum_{t<H} gamma^t (prod_{i<t} d_i) r_t + gamma^H (prod_{i<H} d_i) V(s_H)]`` at fixed noise.

    Estimates: the gradient of the expectation of the bracket from ``obs``, ``V`` held fixed.
    Unbiased when: ``step_fn`` is the process whose return is meant, its steps and rewards are differentiable, and
      whether an episode ends does not depend on the action. For the return without end, ``V`` must be exact, and the
      terms of the true gradient from step ``H`` on are missing.
    Gradient flows through: the reparameterised actions, the steps, the rewards and the input of ``V``.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      obs: start state, ``[D]``.
      key: one draw of all noise; the path is that of `score_function` with the same key.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with a reparameterised ``sample(key)``.
      step_fn: differentiable ``(obs, action, key_or_noise) -> (next_obs, reward, discount)``.
      horizon: steps of the roll-out, ``H >= 1``, static.
      gamma: discount factor.
      value_fn: value after the last step with bound parameters, ``obs -> []``; None counts nothing after it.
      step_noise: what ``step_fn`` receives instead of fresh keys, leading axis ``[H]``.

    Returns:
      ``(grads, aux)``, the direction of ascent and aux ``value``, the return of the roll-out.

    Raises:
      AssertionError: ``obs`` is not a float vector or ``horizon`` is below 1.

    Source: Heess et al. 2015, Learning continuous control policies by stochastic value gradients, section 4.
    """
    chex.assert_scalar_positive(horizon)
    action_keys, step_keys = noise_keys(key, horizon)

    def value(params: PyTree) -> tuple[Array, dict[str, Array]]:
        path = unroll(
            obs,
            (action_keys, step_keys if step_noise is None else step_noise),
            act_fn=lambda s, action_key: policy_fn(params, s).sample(action_key),
            step_fn=step_fn,
        )
        bootstrap = 0.0 if value_fn is None else value_fn(path.final_obs)
        total = discounted_sum(path.reward, path.discount, gamma=gamma, bootstrap=bootstrap)
        return total, {"value": total}

    return jax.grad(value, has_aux=True)(policy_params)
