"""From a loss to an estimator."""

from __future__ import annotations

from typing import Any

import jax

from jaxhybrid.types import Array, Estimator, Key, Loss, PyTree

__all__ = ["of_loss"]


def of_loss(loss: Loss) -> Estimator:
    """Turns a loss into the estimator that ascends where the loss descends.

    ``of_loss(loss)(params, example, key) = -grad_params loss(params, example, key)``

    Estimates: what minus the gradient of the loss estimates; of ``maac_loss``, the gradient of the return.
    Unbiased when: the loss is an unbiased surrogate.
    Gradient flows through: what it flows through in the loss.

    Args:
      loss: ``loss(params, example, key, **bound) -> (loss [], aux)``, or a batched one.

    Returns:
      ``estimator(params, example, key, **bound) -> (grads, aux)``, with the loss's ``aux`` and its value as ``loss``.
    """

    def estimator(params: PyTree, example: PyTree, key: Key, **bound: Any) -> tuple[PyTree, dict[str, Array]]:
        def objective(p: PyTree) -> tuple[Array, dict[str, Array]]:
            value, aux = loss(p, example, key, **bound)
            return -value, aux | {"loss": value}

        return jax.grad(objective, has_aux=True)(params)

    return estimator
