"""From recorded trajectories to segments: every step with its return and the noise of the steps that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.ops.returns import discounted_returns
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Segment, ValueFn

__all__ = ["check", "of_trajectory"]


def of_trajectory(
    trajectory: Trajectory,
    *,
    horizon: int,
    gamma: Array | float,
    noise: Array | None = None,
    policy_fn: Callable[[Array], Any] | None = None,
    value_fn: ValueFn | None = None,
) -> Segment:
    """Every step of an episode as a `Segment`, the last ones and the padding included.

    ``R_t = sum_{i>=t} gamma^{i-t} r_i`` to the end of the episode, ``noise_t = (eps_t, .., eps_{t+k-1})``.

    Args:
      trajectory: one episode of length ``T``; run `check` on the data set first, whose errors no traced code can raise.
      horizon: ``k``, rows of noise of a segment, static, at most ``T``.
      gamma: discount factor.
      noise: noise that the actions were drawn with, ``[T, A]``; None infers it from them.
      policy_fn: the policy that acted with its parameters, ``policy_fn(obs)`` -> record with ``infer_noise(action)``.
      value_fn: value of the observation after the last step, where the episode did not terminate; None: the end of the
        recording is the end of the problem.

    Returns:
      Segments, ``[T, ...]``. ``mask[:, 0]`` says which are steps of the episode.

    Raises:
      AssertionError: a batch axis on ``trajectory``.
      InputError: neither noise nor policy, or a horizon below 1 or longer than the episode's recording.
    """
    chex.assert_rank([trajectory.reward, trajectory.action], [1, 2])
    length = trajectory.reward.shape[0]
    _check_horizon(horizon, length)
    if noise is None:
        if policy_fn is None:
            raise InputError("noise is missing: record it with the actions, or pass the policy_fn that acted.")
        noise = jax.vmap(lambda s, a: policy_fn(s).infer_noise(a))(trajectory.obs, trajectory.action)
    chex.assert_equal_shape([noise, trajectory.action])
    mask = trajectory.mask
    reward = trajectory.reward * mask
    discount = jnp.where(mask > 0, trajectory.discount, 1.0)
    # Past the end nothing is earned and nothing discounted, so the value of the end is carried back to it.
    factor = jnp.where(mask > 0, gamma, 1.0)
    last = jnp.sum(mask > 0) - 1
    end = 0.0 if value_fn is None else value_fn(trajectory.next_obs[last])
    returns = discounted_returns(reward, factor * discount, gamma=1.0, bootstrap=end)
    rows = jnp.arange(length)[:, None] + jnp.arange(horizon)[None]
    clipped = jnp.minimum(rows, length - 1)
    inside = (rows < length) & (mask[clipped] > 0)
    following = jnp.where(inside[..., None], noise[clipped], 0.0)
    return Segment(trajectory.obs, trajectory.action, following, returns * mask, inside.astype(mask.dtype))


def check(
    dataset: Trajectory,
    *,
    horizon: int,
    noise: Array | np.ndarray | None = None,
    policy_fn: Callable[[Array], Any] | None = None,
    value_fn: ValueFn | None = None,
    time_limit: int | None = None,
) -> None:
    """Refuses a data set that cannot be turned into segments by the same arguments.

    Args:
      dataset: episodes ``[N, T, ...]``.
      horizon: as for `of_trajectory`.
      noise: recorded noise, ``[N, T, A]``.
      policy_fn: as for `of_trajectory`.
      value_fn: as for `of_trajectory`; None asks for full returns.
      time_limit: steps after which the problem ends an episode without terminating it; None: it has no limit.

    Raises:
      InputError: a horizon below 1 or longer than the episodes, actions without recorded noise from a policy that
        cannot infer it, actions whose noise is infinite, or full returns of episodes that are not finished; the
        message names the field and the place.
    """
    mask = np.asarray(dataset.mask) > 0
    _check_horizon(horizon, mask.shape[1])
    if noise is None:
        _check_inference(dataset, mask, policy_fn)
    elif np.shape(noise) != np.shape(dataset.action):
        raise InputError(f"noise has the shape {np.shape(noise)} and action {np.shape(dataset.action)}: record both.")
    ended = (np.asarray(dataset.discount) == 0) & mask
    padded = ~mask[:, -1]
    finished = ended.any(axis=1) | padded | (time_limit is not None and mask.sum(axis=1) >= time_limit)
    unfinished = np.flatnonzero(~finished)
    if value_fn is None and len(unfinished):
        raise InputError(
            f"trajectory {unfinished[0]} is not finished ({len(unfinished)} of {len(finished)} are not), so it has no "
            "full return: collect whole episodes, pass the time_limit that ended them, or a value_fn to bootstrap with."
        )


def _check_horizon(horizon: int, length: int) -> None:
    if not 1 <= horizon <= length:
        raise InputError(
            f"horizon={horizon} must be at least 1 and no longer than the recording of {length} steps: shorten it, or "
            "record more."
        )


def _check_inference(dataset: Trajectory, mask: np.ndarray, policy_fn: Callable[[Array], Any] | None) -> None:
    if policy_fn is None:
        raise InputError("noise is missing: record it with the actions, or pass the policy_fn that acted.")
    distribution = policy_fn(jnp.asarray(dataset.obs[0, 0]))
    if not hasattr(distribution, "infer_noise"):
        raise InputError(
            f"noise is missing and {type(distribution).__name__} has no infer_noise: record the noise with the actions."
        )
    squashed = hasattr(distribution, "base")
    bad = np.argwhere(mask & squashed & (np.abs(np.asarray(dataset.action)) >= 1.0).any(axis=-1))
    if len(bad):
        raise InputError(
            f"action at trajectory {bad[0][0]}, step {bad[0][1]} is saturated (|action| = 1): tanh has no inverse "
            "there. Record the noise with the actions."
        )
