"""The likelihood of a model along one trajectory, each step with a weight of its own."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.ops import trees
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["weighted_nll"]


def weighted_nll(
    model_params: PyTree,
    trajectory: Trajectory,
    key: Key,
    *,
    log_prob_fn: Callable[[PyTree, Array, Array, Array], Array],
    step_weights: Array,
) -> tuple[Array, dict[str, Array]]:
    """Weighted negative log-likelihood of a transition model.

    ``-sum_t omega_t log p(s_{t+1} | s_t, a_t)``; the mean over trajectories is what gradient-aware search minimises.

    Estimates: with gradient-aware weights, up to constants, the expected divergence that bounds the error of the
      model-value gradient (`envs.finite.gradient_error_bound`); with weights of one, the negative log-likelihood.
    Unbiased when: the weights are not self-normalised or truncated.
    Gradient flows through: the log-likelihood alone; the weights are constants.

    Args:
      model_params: parameters of the model, what is differentiated.
      trajectory: one episode of length ``T``; masked steps do not count.
      key: unused, the loss has no draw.
      log_prob_fn: ``log_prob_fn(model_params, obs [D], action, next_obs [D]) -> []``.
      step_weights: ``omega``, ``[T]``; see `ops.importance.gradient_aware_weights`.

    Returns:
      ``(loss [], aux)`` with aux ``total_weight``.

    Raises:
      AssertionError: weights or log-probabilities of another shape than the mask of the trajectory.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, equation 3.
    """
    del key
    chex.assert_equal_shape([step_weights, trajectory.mask])
    weights = jnp.where(trajectory.mask > 0, step_weights, 0.0)
    counts = weights != 0
    # Padding may hold transitions that the model forbids: zero times minus infinity is NaN, in the gradient too.
    steps = trees.fill(counts, (trajectory.obs, trajectory.action, trajectory.next_obs))
    log_prob = jax.vmap(log_prob_fn, in_axes=(None, 0, 0, 0))(model_params, *steps)
    chex.assert_equal_shape([log_prob, weights])
    return -jnp.sum(weights * jnp.where(counts, log_prob, 0.0)), {"total_weight": jnp.sum(weights)}
