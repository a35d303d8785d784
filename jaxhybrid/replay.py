"""Experience replay: flashbax buffers behind four functions over items of any structure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flashbax as fbx
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["Replay", "make_replay"]


class Replay(NamedTuple):
    """A ring buffer as pure functions; its state is a pytree of arrays.

    Attributes:
      init: ``init(item) -> state``, empty, for items shaped like ``item``.
      add: ``add(state, items [B, ...]) -> state``; the oldest items make room.
      sample: ``sample(state, key, count) -> items [count, ...]``, uniform with replacement; ``count`` is static. From
        an empty buffer it draws zeros.
      contents: ``contents(state) -> (items [capacity, ...], size [])``; the first ``size`` rows hold data.
    """

    init: Callable[[PyTree], Any]
    add: Callable[[Any, PyTree], Any]
    sample: Callable[[Any, Key, int], PyTree]
    contents: Callable[[Any], tuple[PyTree, Array]]


def make_replay(capacity: int) -> Replay:
    """Returns a buffer that keeps the last ``capacity`` items.

    Raises:
      InputError: a capacity below 1.
    """
    if capacity < 1:
        raise InputError(f"capacity={capacity} must be at least 1.")

    def buffer(count: int) -> Any:
        return fbx.make_item_buffer(capacity, min_length=1, sample_batch_size=count, add_batches=True)

    # flashbax promotes ranks inside; it is allowed to, also where the caller forbids it.
    def init(item: PyTree) -> Any:
        return buffer(1).init(item)

    def add(state: Any, items: PyTree) -> Any:
        # flashbax refuses more items than fit: of those only the newest would stay.
        newest = jax.tree.map(lambda x: x[-capacity:], items)
        with jax.numpy_rank_promotion("allow"):
            return buffer(1).add(state, newest)

    def sample(state: Any, key: Key, count: int) -> PyTree:
        # flashbax refuses to draw more items than fit, though it draws with replacement: then in rounds.
        rounds = math.ceil(count / capacity)
        with jax.numpy_rank_promotion("allow"):
            if rounds <= 1:
                return buffer(count).sample(state, key).experience
            drawn = jax.vmap(lambda k: buffer(capacity).sample(state, k).experience)(jax.random.split(key, rounds))
        return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:])[:count], drawn)

    def contents(state: Any) -> tuple[PyTree, Array]:
        items = jax.tree.map(lambda x: x[0], state.experience)
        return items, jnp.where(state.is_full, capacity, state.current_index)

    return Replay(init, add, sample, contents)
