"""The unrolled prediction error of a deterministic model over a few recorded steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import chex
import jax.numpy as jnp

from jaxhybrid.ops import trees
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["Window", "multi_step_loss"]


class Window(NamedTuple):
    """Recorded steps in a row.

    Attributes:
      steps: transitions, ``[k, ...]``.
      mask: 1 up to the end of the episode, 0 past it, float ``[k]``.
      weight: what every step counts, not negative, ``[k]``; None: one each.
    """

    steps: Transition
    mask: Array
    weight: Array | None = None


def multi_step_loss(
    model_params: PyTree,
    window: Window | tuple[Transition, Array],
    key: Key,
    *,
    predict_fn: Any,
    change_scale: Array | float = 1.0,
    reward_scale: Array | float = 1.0,
    reward_weight: Array | float = 10.0,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of a model that is unrolled from the first recorded observation with the recorded actions.

    ``sum_{t<k} m_t w_t [ |(s'_{t+1} - s_{t+1}) / scale|^2 + alpha ((r_t - r(s_t, a_t, s'_{t+1})) / reward_scale)^2 ]``
    with ``s'_0 = s_0``, ``s'_{t+1} = f(s'_t, a_t)``.

    A weight belongs to the prediction that its step's action leads to, with what the ones before it got wrong in it.

    Gradient flows through: every prediction into the ones after it, and through the predicted state into its reward.

    Args:
      model_params: parameters of the model.
      window: ``(transitions, mask)`` of ``k`` recorded steps in a row, ``[k, ...]`` and float ``[k]``, and the weights
        ``w [k]`` if there are any; of a step with mask 0, past the end of the episode, nothing counts.
      key: unused; the signature is that of every loss.
      predict_fn: ``predict_fn(model_params, obs, action) -> (next_obs, reward)``.
      change_scale: size of a change of the observation, ``[D]`` or ``[]``.
      reward_scale: size of the deviation of a reward.
      reward_weight: ``alpha``, 10 in the paper.

    Returns:
      ``(loss [], aux)`` with aux ``obs_error`` and ``reward_error``, the two weighted sums without ``alpha``.

    Raises:
      AssertionError: transitions without the axis of steps, or weights or predicted rewards of another shape.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), section 5.
    """
    del key
    steps, mask, weight = Window(*window)
    chex.assert_rank([steps.obs, steps.reward, mask], [2, 1, 1])
    chex.assert_equal_shape([mask] if weight is None else [mask, weight])
    # What was recorded past the end may be anything: no function sees it, and selects, not products, leave it out.
    action = trees.fill(mask > 0, steps.action)
    path = unroll(
        steps.obs[0],
        (action, mask),
        act_fn=lambda obs, action: action,
        step_fn=lambda obs, action, inside: (*predict_fn(model_params, obs, action), inside),
    )
    chex.assert_equal_shape([path.reward, steps.reward])
    predicted = jnp.concatenate([path.obs[1:], path.final_obs[None]])
    scale = jnp.broadcast_to(change_scale, steps.obs.shape[1:])
    obs_gap = jnp.where(mask[:, None] > 0, (predicted - steps.next_obs) / scale[None], 0.0)
    reward_gap = jnp.where(mask > 0, (path.reward - steps.reward) / reward_scale, 0.0)
    if weight is not None:  # into the gaps, of which the squares are summed
        root = jnp.sqrt(jnp.where(mask > 0, weight, 0.0))
        obs_gap, reward_gap = root[:, None] * obs_gap, root * reward_gap
    obs_error, reward_error = jnp.sum(jnp.square(obs_gap)), jnp.sum(jnp.square(reward_gap))
    return obs_error + reward_weight * reward_error, {"obs_error": obs_error, "reward_error": reward_error}
