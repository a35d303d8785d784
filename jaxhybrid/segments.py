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
from jaxhybrid.types import Array, Segment, Transition, ValueFn

__all__ = ["check", "ends", "of_recording", "of_trajectory"]


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
    reward = jnp.where(mask > 0, trajectory.reward, jnp.zeros_like(mask))
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


def ends(discount: Array, steps_before: Array, *, time_limit: int) -> tuple[Array, Array]:
    """Where the episodes of a recording end that goes on across their ends.

    Args:
      discount: 0 iff the step terminated its episode, ``[T]``.
      steps_before: steps of the first episode before the recording, integer ``[]``.
      time_limit: steps after which an episode ends without terminating.

    Returns:
      ``(ended [T], steps [])``: whether a step was the last of its episode, boolean, and the steps of the episode that
      is under way at the end.

    Raises:
      AssertionError: other ranks.
    """
    chex.assert_rank([discount, steps_before], [1, 0])

    def advance(steps: Array, discount_t: Array) -> tuple[Array, Array]:
        ended = (discount_t == 0) | (steps + 1 >= time_limit)
        return jnp.where(ended, 0, steps + 1), ended

    steps, ended = jax.lax.scan(advance, steps_before, discount)
    return ended, steps


def of_recording(
    recording: Transition,
    ended: Array,
    noise: Array,
    *,
    horizon: int,
    gamma: Array | float,
    value_fn: ValueFn,
    lambda_: Array | float = 1.0,
) -> Segment:
    """Every step of a recording that goes on across the ends of episodes as a `Segment`.

    ``R_t = r_t + gamma d_t [(1 - lambda_t) V(s_{t+1}) + lambda_t R_{t+1}]``, with ``lambda_t = 0`` at the end of an
    episode and of the recording: what the recording does not tell is bootstrapped.

    Unbiased when: ``lambda_`` is 1, and every episode terminates inside the recording; otherwise as far as ``value_fn``
    is exact.

    Args:
      recording: steps in the order in which one environment took them, ``[T, ...]``.
      ended: whether a step was the last of its episode, boolean ``[T]``; see `ends`.
      noise: noise that the actions were drawn with, ``[T, A]``.
      horizon: ``k``, rows of noise of a segment, static, at most ``T``.
      gamma: discount factor.
      value_fn: value of an observation.
      lambda_: 1 for the return itself; less trusts ``value_fn`` more.

    Returns:
      Segments, ``[T, ...]``. ``mask[t, j]`` is 0 from the end of the episode or of the recording on.

    Raises:
      AssertionError: a further axis, or unequal lengths.
      InputError: a horizon below 1 or longer than the recording.

    Source: Sutton and Barto, Reinforcement Learning, 2nd ed., equation 12.2.
    """
    chex.assert_rank([recording.reward, ended, noise], [1, 1, 2])
    chex.assert_equal_shape_prefix([recording.reward, ended, noise, recording.obs], 1)
    length = recording.reward.shape[0]
    _check_horizon(horizon, length)
    following_weight = jnp.where(ended | (jnp.arange(length) == length - 1), 0.0, lambda_)
    bootstrap = gamma * recording.discount * (1.0 - following_weight) * jax.vmap(value_fn)(recording.next_obs)
    returns = discounted_returns(recording.reward + bootstrap, recording.discount * following_weight, gamma=gamma)
    rows = jnp.arange(length)[:, None] + jnp.arange(horizon)[None]
    clipped = jnp.minimum(rows, length - 1)
    # The step itself is inside; each later one if no step from the first on was the last of its episode.
    ends_before = jnp.cumsum(ended[clipped], axis=1) - ended[clipped]
    inside = (rows < length) & (ends_before == 0)
    following = jnp.where(inside[..., None], noise[clipped], 0.0)
    return Segment(recording.obs, recording.action, following, returns, inside.astype(recording.reward.dtype))


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
