"""The model-value gradient of recorded trajectories, and its model-free counterpart.

A policy gradient needs states to visit and values to weigh them with. Three combinations are estimators here:

- both from experience, the Monte-Carlo gradient: `per_decision`;
- both from a model, the fully model-based gradient: `score_function` with the model's step;
- states from experience, values from a model: `model_value`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxhybrid.estimators.adapters import of_loss
from jaxhybrid.losses.model_value import model_value_surrogate, per_decision_surrogate
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Key, PolicyFn, PyTree

__all__ = ["model_value", "per_decision"]


def model_value(
    policy_params: PyTree,
    trajectory: Trajectory,
    key: Key,
    *,
    policy_fn: PolicyFn,
    q_fn: Callable[[Array, Array, Key], Array],
    gamma: Array | float,
) -> tuple[PyTree, dict[str, Array]]:
    """Model-value gradient (MVG): real trajectories, reweighted, with the values of a model.

    ``sum_t gamma^t rho_{0:t} grad log pi(a_t | s_t) Q^{pi,p'}(s_t, a_t)``.

    Estimates: ``1 / (1 - gamma) E_delta [grad log pi Q^{pi,p'}]`` up to step ``T``, `envs.finite.model_value_gradient`.
    Unbiased when: ``q_fn`` is unbiased and independent of the recording; for the policy gradient, the model is exact.
    Gradient flows through: ``log pi`` at the recorded actions alone.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      trajectory: one episode of length ``T`` of the behaviour policy, in the real environment.
      key: one draw of what ``q_fn`` needs.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      q_fn: value of a pair under the model, ``(obs [D], action, key) -> []``.
      gamma: discount factor.

    Returns:
      ``(grads, aux)``, the direction of ascent and the aux of `losses.model_value.model_value_surrogate`.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 5.
    """
    surrogate = partial(model_value_surrogate, policy_fn=policy_fn, q_fn=q_fn, gamma=gamma)
    return of_loss(surrogate)(policy_params, trajectory, key)


def per_decision(
    policy_params: PyTree,
    trajectory: Trajectory,
    key: Key,
    *,
    policy_fn: PolicyFn,
    gamma: Array | float,
    past_rewards: bool = False,
) -> tuple[PyTree, dict[str, Array]]:
    """Monte-Carlo policy gradient (MFG) of a recorded trajectory, importance ratios per decision.

    ``sum_t grad log pi(a_t | s_t) sum_{k>=t} gamma^k rho_{0:k} r_k``; REINFORCE adds the rewards before ``t``.

    Estimates: the gradient of ``E sum_{t<T} gamma^t r_t``.
    Unbiased when: always, if the behaviour policy takes every action of the target.
    Gradient flows through: ``log pi`` at the recorded actions alone.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      trajectory: one episode of length ``T`` of the behaviour policy.
      key: unused, the recording is the draw.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)``.
      gamma: discount factor.
      past_rewards: False is PGT, True REINFORCE.

    Returns:
      ``(grads, aux)``, the direction of ascent and the aux of `losses.model_value.per_decision_surrogate`.

    Source: Sutton et al. 2000, theorem 1; Williams 1992; ratios as in Precup, Sutton and Singh 2000.
    """
    surrogate = partial(per_decision_surrogate, policy_fn=policy_fn, gamma=gamma, past_rewards=past_rewards)
    return of_loss(surrogate)(policy_params, trajectory, key)
