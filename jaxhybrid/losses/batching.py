"""From one example and one draw to a batch: the only place where losses meet a batch axis."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxhybrid.types import Array, Key, Loss, PyTree

__all__ = ["batched"]


def batched(loss: Loss) -> Callable[[PyTree, PyTree, Key], tuple[Array, dict[str, Array]]]:
    """Turns a loss of one example into the mean loss of a batch, one independent draw per example.

    ``batched(loss)(params, examples, key) = mean_b loss(params, examples[b], keys[b])``.

    Args:
      loss: ``loss(params, example, key) -> (loss [], aux)``, other arguments bound by ``functools.partial``.

    Returns:
      A loss of the same form whose example carries a leading axis ``B`` on every leaf; ``aux`` is averaged as well.
    """

    def mean_loss(params: PyTree, examples: PyTree, key: Key) -> tuple[Array, dict[str, Array]]:
        size = jax.tree.leaves(examples)[0].shape[0]
        values, aux = jax.vmap(loss, in_axes=(None, 0, 0))(params, examples, jax.random.split(key, size))
        return jnp.mean(values), jax.tree.map(jnp.mean, aux)

    return mean_loss
