"""Recorded trajectories: the record, how it is collected and checked, and the data set that is saved and loaded."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, HostEnv, Key

__all__ = ["Dataset", "Trajectory", "check_support", "checked", "collect", "host_collect", "stack"]

_FORMAT = 2


class Trajectory(NamedTuple):
    """One episode, padded to a fixed length; a data set is the same record with a leading axis ``N`` on every leaf.

    Attributes:
      obs: observations the actions were taken in, ``[T, D]``.
      action: actions, ``[T, A]``, or integers ``[T]`` of a discrete policy.
      reward: rewards, zero past the end, ``[T]``.
      discount: 0 iff the step terminated the episode, ``[T]``.
      next_obs: observations after the steps, ``[T, D]``.
      behaviour_log_prob: log-probability of each action under the policy that took it, zero past the end, ``[T]``.
      mask: 1 for the steps of the episode, 0 past its end, float ``[T]``.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    next_obs: Array
    behaviour_log_prob: Array
    mask: Array


def collect(env: Env, key: Key, *, act_fn: Callable[[Array, Key], tuple[Array, Array]], length: int) -> Trajectory:
    """Runs one episode.

    Args:
      env: a pure environment.
      key: one draw.
      act_fn: ``act_fn(obs, key) -> (action, log_prob)``. The environment is handed ``jnp.atleast_1d(action)``.
      length: steps after which the recording ends, static; shorter episodes are padded.
    """
    reset_key, run_key = jax.random.split(key)
    env_state, obs = env.reset(reset_key)

    def advance(carry: tuple, step_key: Key) -> tuple[tuple, Trajectory]:
        env_state, obs, mask = carry
        action_key, env_key = jax.random.split(step_key)
        action, log_prob = act_fn(obs, action_key)
        env_state, after = env.step(env_state, jnp.atleast_1d(action).astype(obs.dtype), env_key)
        discount = 1.0 - after.terminated.astype(obs.dtype)
        # A select, not a product: past the end of an episode an environment may return anything.
        reward, log_prob = (jnp.where(mask > 0, x, jnp.zeros_like(mask)) for x in (after.reward, log_prob))
        step = Trajectory(obs, action, reward, discount, after.obs, log_prob, mask)
        ended = after.terminated | after.truncated
        return (env_state, after.obs, jnp.where(ended, 0.0, mask)), step

    start = (env_state, obs, jnp.ones((), obs.dtype))
    return jax.lax.scan(advance, start, jax.random.split(run_key, length))[1]


def host_collect(
    env: HostEnv, key: Key, *, act_fn: Callable[[Array, Key], tuple[Array, Array]], length: int, count: int
) -> Trajectory:
    """Runs ``count`` episodes of a host environment, in rounds of ``N``, one per instance; ``[count, T, ...]``.

    Args:
      env: the environment; states held elsewhere stay valid, since its state is explicit.
      key: one draw of everything.
      act_fn: ``act_fn(obs [N, D], keys [N]) -> (action [N, A], log_prob [N])``, jitted by the caller.
      length: steps ``T`` after which a recording ends; shorter episodes are padded.
      count: episodes, at least 1.

    Raises:
      InputError: a length or a count below 1.
    """
    for name, value in (("length", length), ("count", count)):
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
    rounds = [
        _host_round(env, round_key, act_fn, length) for round_key in jax.random.split(key, -(-count // env.num_envs))
    ]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:count], leaves[0].dtype), *rounds)


def _host_round(env: HostEnv, key: Key, act_fn: Callable, length: int) -> Trajectory:
    """One episode in each instance, ``[N, T, ...]``."""
    seed_key, run_key = jax.random.split(key)
    env_state, obs = env.reset(int(jax.random.randint(seed_key, (), 0, np.iinfo(np.int32).max)))
    mask, steps = np.ones(env.num_envs, np.float32), []
    for keys in jax.random.split(run_key, (length, env.num_envs)):
        action, log_prob = map(np.asarray, act_fn(jnp.asarray(obs), keys))
        env_state, after = env.step(env_state, action)
        # Copied, because a simulator may hand out the same buffer in every step.
        next_obs: Any = np.array(after.obs)
        discount = 1.0 - np.asarray(after.terminated, np.float32)
        # A select, not a product: past the end of an episode an environment may return anything.
        reward, log_prob = (np.where(mask > 0, np.asarray(x, np.float32), 0.0) for x in (after.reward, log_prob))
        row: Any = (np.array(obs), action, reward, discount, next_obs, log_prob, mask)
        steps.append(Trajectory(*row))
        ended: Any = np.asarray(after.terminated) | np.asarray(after.truncated)
        mask, obs = np.where(ended, 0.0, mask).astype(np.float32), next_obs
        if ended.any():
            # What follows is masked, but must stay within what the simulator can integrate.
            env_state, obs = env.reset_where(env_state, next_obs.copy(), ended)
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *steps)


def stack(trajectories: Sequence[Trajectory], *, pad: bool = False) -> Trajectory:
    """Stacks single trajectories into a data set.

    Args:
      trajectories: at least one.
      pad: whether shorter ones are filled up with masked copies of their last step.

    Raises:
      InputError: no trajectory, or unequal lengths without ``pad``.
    """
    if not trajectories:
        raise InputError("trajectories is empty: a data set needs at least one.")
    lengths = [np.shape(trajectory.reward)[0] for trajectory in trajectories]
    longest = max(lengths)
    if not pad and min(lengths) < longest:
        raise InputError(
            f"trajectories have unequal lengths ({min(lengths)} to {longest}) and no mask: pass pad=True, which fills "
            "the short ones up with masked steps."
        )
    filled = [_filled(t, longest - length) for t, length in zip(trajectories, lengths)]
    return checked(jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled))


def _filled(trajectory: Trajectory, count: int) -> Trajectory:
    """Adds masked copies of the last step."""

    def padded(x: Array) -> np.ndarray:
        return np.concatenate([np.asarray(x), np.repeat(np.asarray(x)[-1:], count, axis=0)])

    whole = jax.tree.map(padded, trajectory)
    inside = np.arange(len(whole.mask)) < len(whole.mask) - count
    return whole._replace(
        reward=whole.reward * inside,
        behaviour_log_prob=whole.behaviour_log_prob * inside,
        mask=whole.mask * inside,
    )


def checked(dataset: Trajectory) -> Trajectory:
    """Returns a data set ``[N, T, ...]`` if every field makes sense.

    Raises:
      InputError: a missing field, unequal leading axes, an action that its policy never takes, a value that is not
        finite, or a mask that is not ones followed by zeros; the message names the field and the place.
    """
    if dataset.behaviour_log_prob is None:
        raise InputError(
            "behaviour_log_prob is missing: without it nothing can be reweighted. Add it with dataset._replace("
            "behaviour_log_prob=mask * log_prob), log_prob being jax.vmap(jax.vmap(lambda s, a: policy_fn(params, s)."
            "log_prob(a)))(dataset.obs, dataset.action) with the parameters that collected the data."
        )
    if dataset.mask is None:
        raise InputError("mask is missing: use ones where every trajectory has the full length, or trajectories.stack.")
    shape = np.shape(dataset.reward)
    if len(shape) != 2 or 0 in shape:
        raise InputError(f"reward has the shape {shape}: a data set is [N, T, ...], with at least one step.")
    for name, value in dataset._asdict().items():
        if np.shape(value)[:2] != shape:
            raise InputError(
                f"{name} has the shape {np.shape(value)} and reward {shape}: trajectories of unequal length are "
                "padded to one length and masked (trajectories.stack)."
            )
    check_support(dataset, np.zeros(shape))
    for name, value in dataset._asdict().items():
        bad = np.argwhere(~np.isfinite(np.asarray(value, np.float64)))
        if len(bad):
            raise InputError(f"{name} is not finite at trajectory {bad[0][0]}, step {bad[0][1]}: leave it out.")
    mask = np.asarray(dataset.mask)
    bad = np.argwhere(((mask != 0) & (mask != 1)) | (np.diff(mask, axis=1, prepend=1.0) > 0) | (mask[:, :1] == 0))
    if len(bad):
        raise InputError(f"mask of trajectory {bad[0][0]} is not ones followed by zeros, see step {bad[0][1]}.")
    return dataset


def check_support(
    dataset: Trajectory, target_log_prob: Array | np.ndarray, behaviour_log_prob: Array | None = None
) -> None:
    """Refuses data that cannot be reweighted to the target policy.

    Args:
      dataset: ``[N, T, ...]``.
      target_log_prob: of the recorded actions under the target policy, ``[N, T]``.
      behaviour_log_prob: of the recorded actions under the behaviour policy; None: as recorded.

    Raises:
      InputError: an action that the behaviour policy never takes, or that has no probability, but the target policy
        does take; the message names the step.
    """
    behaviour = np.asarray(dataset.behaviour_log_prob if behaviour_log_prob is None else behaviour_log_prob)
    target, inside = np.asarray(target_log_prob), np.asarray(dataset.mask) > 0
    bad = np.argwhere(inside & ~np.isfinite(behaviour) & (target > -np.inf))
    if len(bad):
        trajectory, step = bad[0]
        raise InputError(
            f"behaviour_log_prob={behaviour[trajectory, step]} at trajectory {trajectory}, step {step}, where the "
            "target policy's is finite: no ratio exists. Collect with a policy that takes every action of the target."
        )


class Dataset(NamedTuple):
    """Recorded trajectories with the environment that they are of, to be kept in a file.

    Attributes:
      trajectories: ``[N, T, ...]``.
      env: name of the environment, as in `jaxhybrid.types.EnvSpec`.
    """

    trajectories: Trajectory
    env: str

    def of(self, env: str) -> Trajectory:
        """Returns the trajectories, if they are of that environment.

        Raises:
          InputError: they are of another one.
        """
        if env != self.env:
            raise InputError(f"env={env!r}, but the data set was recorded in {self.env!r}: name that one.")
        return self.trajectories

    def save(self, path: str | Path) -> None:
        """Writes the data set as ``.npz`` of plain arrays, with a digest of their contents.

        Raises:
          InputError: the data set makes no sense (see `checked`) or does not name its environment, or a file is there
            already; nothing was written then.
        """
        checked(self.trajectories)
        if not self.env:
            raise InputError("env is empty: name the environment that the trajectories are of.")
        path = Path(path)
        if path.exists():
            raise InputError(f"path={str(path)!r} exists: name another file, or remove it first.")
        arrays = {name: np.asarray(value) for name, value in self.trajectories._asdict().items()}
        arrays["env"] = np.asarray(self.env)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, format=np.asarray(_FORMAT), digest=np.asarray(_digest(arrays)), **arrays)  # type: ignore[arg-type]
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Reads what `save` wrote, never unpickling anything, and verifies it.

        Raises:
          InputError: the file cannot be read, is none of ours, or its contents are not what was written.
        """
        try:
            with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                contents = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as reason:
            raise InputError(f"path={str(path)!r} cannot be read as a data set: {type(reason).__name__}.") from None
        version, digest = contents.pop("format", None), contents.pop("digest", None)
        expected = {*Trajectory._fields, "env"}
        if version is None or version.shape or int(version) != _FORMAT or set(contents) != expected:
            raise InputError(f"path={str(path)!r} is not a data set of this library, format {_FORMAT}.")
        if str(digest) != _digest(contents):
            raise InputError(f"path={str(path)!r} is damaged: its contents are not those that were saved.")
        env = str(contents.pop("env"))
        return cls(checked(Trajectory(**{name: jnp.asarray(value) for name, value in contents.items()})), env)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
