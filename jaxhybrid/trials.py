"""Trials of two episodes, one to explore and one to execute, and a ring that keeps the newest of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Key

__all__ = ["Episode", "Store", "Trial", "add", "empty", "one_step", "sample_steps", "sample_trials", "step_ends"]


class Episode(NamedTuple):
    """One episode with integer observations and actions, padded to a fixed length.

    Attributes:
      obs: before every step and after the last one, integer ``[T+1, C]``; past the end the last one again.
      action: integer ``[T]``.
      reward: zero past the end, ``[T]``.
      discount: 0 iff the step ended the task, ``[T]``.
      mask: 1 for the steps of the episode, 0 past its end, float ``[T]``.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    mask: Array

    @property
    def lengths(self) -> Array:
        """Steps of the episode, integer ``[]``, or of many, ``[B]``."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)


class Trial(NamedTuple):
    """One task, met twice.

    Attributes:
      task_id: number of the task, integer ``[]``.
      goal: the instruction, integer ``[G]``.
      exploration: the episode that shows the task.
      execution: the episode that counts.
    """

    task_id: Array
    goal: Array
    exploration: Episode
    execution: Episode


class Store(NamedTuple):
    """A ring of trials.

    Attributes:
      trials: in as few bytes as they need, ``[capacity, ...]``.
      added: trials ever put in, ``[]``.
    """

    trials: Trial
    added: Array


def empty(trial: Trial, capacity: int) -> Store:
    """Returns a ring for trials shaped like ``trial``, without a batch axis.

    Raises:
      InputError: a capacity below 1.
    """
    if capacity < 1:
        raise InputError(f"capacity={capacity} must be at least 1.")
    packed = _packed(trial)
    return Store(jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), packed), jnp.zeros((), jnp.int32))


def add(store: Store, trials: Trial) -> Store:
    """Puts trials ``[B, ...]`` in the place of the oldest ones; of more than fit, the first are lost.

    Args:
      store: from `empty`.
      trials: in the order in which they happened.
    """
    capacity, count = store.trials.task_id.shape[0], trials.task_id.shape[0]
    kept = min(count, capacity)
    slots = (store.added + (count - kept) + jnp.arange(kept)) % capacity
    newest = jax.tree.map(lambda x: x[count - kept :], _packed(trials))
    ring = jax.tree.map(lambda old, new: old.at[slots].set(new), store.trials, newest)
    return Store(ring, store.added + count)


def sample_trials(store: Store, key: Key, count: int, *, window: int) -> Trial:
    """Draws ``count`` of the newest ``window`` trials, uniformly and with replacement, ``[count, ...]``."""
    capacity = store.trials.task_id.shape[0]
    size = jnp.minimum(store.added, min(window, capacity))
    return _rows(store, jax.random.randint(key, (count,), 0, jnp.maximum(size, 1)))


def step_ends(store: Store) -> Array:
    """Number of execution steps in the newest trial, the newest two, and so on, integer ``[capacity]``."""
    capacity = store.trials.task_id.shape[0]
    ages = jnp.arange(capacity)
    lengths = jnp.sum(store.trials.execution.mask, axis=1, dtype=jnp.int32)[(store.added - 1 - ages) % capacity]
    return jnp.cumsum(jnp.where(ages < store.added, lengths, 0))


def sample_steps(store: Store, ends: Array, key: Key, count: int, *, window: int) -> tuple[Trial, Array]:
    """Draws ``count`` of the newest ``window`` execution steps, uniformly and with replacement.

    Args:
      store: the ring.
      ends: of `step_ends`, which many draws share.
      key: one draw.
      count: how many, static.
      window: how far back in steps.

    Returns:
      The trials of the steps ``[count, ...]`` and their places in the execution episode ``[count]``.
    """
    place = jax.random.randint(key, (count,), 0, jnp.clip(ends[-1], 1, window))
    # The first trial whose end is past the place: trials without steps, which have the end of the one before, are not.
    age = jnp.searchsorted(ends, place, side="right")
    return _rows(store, age), ends[age] - 1 - place


def one_step(episode: Episode, t: Array) -> Episode:
    """Returns step ``t`` of an episode as an episode of that one step."""
    pair = jax.lax.dynamic_slice_in_dim(episode.obs, t, 2)
    rest = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1), tuple(episode[1:]))
    return Episode(pair, *rest)


def _rows(store: Store, age: Array) -> Trial:
    capacity = store.trials.task_id.shape[0]
    return _unpacked(jax.tree.map(lambda x: x[(store.added - 1 - age) % capacity], store.trials))


def _packed(trial: Trial) -> Trial:
    # Places, statuses, actions and masks fit a byte each.
    def episode(e: Episode) -> Episode:
        return Episode(*(x.astype(jnp.int8) if name != "reward" else x for name, x in zip(Episode._fields, e)))

    goal = trial.goal.astype(jnp.int8)
    return Trial(trial.task_id.astype(jnp.int32), goal, episode(trial.exploration), episode(trial.execution))


def _unpacked(trial: Trial) -> Trial:
    def episode(e: Episode) -> Episode:
        integers = {name: getattr(e, name).astype(jnp.int32) for name in ("obs", "action")}
        return e._replace(**integers, discount=e.discount.astype(e.reward.dtype), mask=e.mask.astype(e.reward.dtype))

    return Trial(trial.task_id, trial.goal.astype(jnp.int32), episode(trial.exploration), episode(trial.execution))
