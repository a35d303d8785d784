"""How much of a gradient is signal, measured on the batch that it is taken from."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jaxhybrid.errors import InputError
from jaxhybrid.ops import moments
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["check_parts", "gradient_snr"]


def gradient_snr(
    loss_grad_fn: Callable[[PyTree, PyTree, Key], PyTree], params: PyTree, batch: PyTree, key: Key, *, num_parts: int
) -> tuple[PyTree, dict[str, Array]]:
    """The gradient of a batch and its signal-to-noise ratio, from the gradients ``g_i`` of ``k`` parts of the batch.

    ``snr = k |mean_i g_i|^2 / sum_j var_j - 1`` over components j. Since ``E |mean|^2 = |E g|^2 + sum_j var_j / k``,
    the last term removes what noise alone would give.

    Estimates: ``|E g|^2 / tr Cov g`` of the gradient ``g`` of the whole batch.
    Unbiased when: in the limit of many parts or parameters; for Gaussian gradients of ``d`` components the expectation
      is ``(snr + 1) n / (n - 2) - 1`` with ``n = d (k - 1)``. Negative values are noise.

    Args:
      loss_grad_fn: ``loss_grad_fn(params, batch [B / k, ...], key) -> grads``, the gradient of a mean over rows.
      params: what is differentiated.
      batch: rows ``[B, ...]``.
      key: split over the parts, so that a part is also a draw.
      num_parts: ``k``, static; at least 2 and a divisor of ``B``.

    Returns:
      ``(grads, aux)``: the mean of the parts' gradients, which is a gradient of the batch, and aux ``snr``, ``[]``.

    Raises:
      InputError: ``num_parts`` is below 2 or does not divide the batch.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]
    if num_parts < 2 or rows % num_parts:
        raise InputError(f"num_parts={num_parts} must be at least 2 and divide the batch of {rows} rows.")
    parts = jax.tree.map(lambda x: x.reshape((num_parts, -1) + x.shape[1:]), batch)
    grads = jax.vmap(loss_grad_fn, in_axes=(None, 0, 0))(params, parts, jax.random.split(key, num_parts))
    of_parts = moments.of_batch(grads)
    return of_parts.mean, {"snr": num_parts * moments.signal_to_noise(of_parts) - 1.0}


def check_parts(num_parts: int, rows: int, name: str) -> None:
    """Refuses a diagnosis that a batch cannot be divided for.

    Args:
      num_parts: ``diagnose_parts`` of a config; 0 asks for none.
      rows: of the batch.
      name: of the field that says so.

    Raises:
      InputError: names both.
    """
    if num_parts < 0 or num_parts == 1:
        raise InputError(f"diagnose_parts={num_parts} must be at least 2, or 0 for no diagnosis.")
    if num_parts and rows % num_parts:
        raise InputError(f"{name}={rows} must be a multiple of diagnose_parts={num_parts}.")
