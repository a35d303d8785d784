"""Losses of a context: what a trajectory says about its task, and the reward for making it say more.

A task has a code ``f(mu)``, and every prefix of a trajectory one of its own, ``g(tau_{:t})``, that is to come near it.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax.numpy as jnp

from jaxhybrid.types import Array, Key, PyTree

__all__ = ["bottleneck_loss", "decoder_loss", "exploration_rewards", "prefix_errors"]


def prefix_errors(codes: Array, code: Array, mask: Array) -> Array:
    """Squared distances of the prefixes' codes from that of the task, ``||g(tau_{:t}) - f(mu)||^2``, ``[T+1]``.

    Args:
      codes: ``g``, for the empty prefix and after every step, ``[T+1, Z]``.
      code: ``f(mu)``, ``[Z]``.
      mask: 1 for the steps of the trajectory, ``[T]``; the error of a prefix past the end is zero.

    Raises:
      AssertionError: lengths that do not fit.
    """
    chex.assert_rank([codes, code, mask], [2, 1, 1])
    chex.assert_axis_dimension(codes, 0, mask.shape[0] + 1)
    # A select, not a product, and before the square, whose slope at infinity is none: past the end anything may stand.
    gap = jnp.where(_prefixes(mask)[:, None] > 0, codes - code[None], 0.0)
    return jnp.sum(jnp.square(gap), axis=-1)


def decoder_loss(
    decoder_params: PyTree,
    example: tuple[PyTree, Array, Array],
    key: Key,
    *,
    decode_fn: Callable[[PyTree, PyTree], Array],
    num_prefixes: Array | float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Brings the code of every prefix near that of the task.

    ``1 / n sum_{t=0}^{T} ||g(tau_{:t}) - f(mu)||^2``, the empty prefix included.

    Gradient flows through: the decoder; the code of the task is an example, and so a constant.

    Args:
      decoder_params: parameters of ``g``.
      example: the trajectory, in whatever form ``decode_fn`` takes; its mask ``[T]``; and ``f(mu)``, ``[Z]``.
      key: unused; the signature is that of every loss.
      decode_fn: ``decode_fn(decoder_params, trajectory) -> [T+1, Z]``.
      num_prefixes: ``n``, by default that of this trajectory. The mean number in a batch makes the batch's mean a mean
        over all its prefixes, as released; 1 is the sum that the paper prints.

    Returns:
      ``(loss [], aux)`` with aux ``first_error`` and ``last_error``, of the empty and the whole trajectory.

    Raises:
      AssertionError: lengths that do not fit.

    Source: Liu et al. 2021 (DREAM), equation 5.
    """
    del key
    trajectory, mask, code = example
    errors = prefix_errors(decode_fn(decoder_params, trajectory), code, mask)
    count = jnp.sum(_prefixes(mask)) if num_prefixes is None else num_prefixes
    last = errors[jnp.sum(mask).astype(jnp.int32)]
    return jnp.sum(errors) / count, {"first_error": errors[0], "last_error": last}


def bottleneck_loss(
    encoder_params: PyTree,
    problem: Array,
    key: Key,
    *,
    encode_fn: Callable[[PyTree, Array], Array],
    bound: Array | float = 10.0,
) -> tuple[Array, dict[str, Array]]:
    """Keeps the code of a task short, so that it holds only what the task needs.

    ``max(||f(mu)||^2, K)``: with noise of a fixed size added to the code, its length bounds what it can tell.

    Args:
      encoder_params: parameters of ``f``.
      problem: what stands for the task, such as its number, ``[]``.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(encoder_params, problem) -> [Z]``.
      bound: ``K``, the squared length below which nothing pulls. The paper prints a minimum, which would pull only
        there.

    Returns:
      ``(loss [], aux)`` with aux ``square``, the squared length.

    Source: Liu et al. 2021 (DREAM), equation 3 and appendix C, as released.
    """
    del key
    square = jnp.sum(jnp.square(encode_fn(encoder_params, problem)))
    return jnp.maximum(square, bound), {"square": square}


def exploration_rewards(codes: Array, code: Array, mask: Array, *, penalty: Array | float) -> Array:
    """What every exploration step adds to what is known about the task, less its cost, ``[T]``.

    ``r_t = ||g(tau_{:t}) - f(mu)||^2 - ||g(tau_{:t+1}) - f(mu)||^2 - c``, which telescopes: all of them together are
    what the whole trajectory tells, less ``c`` per step.

    Args:
      codes: ``g``, ``[T+1, Z]``.
      code: ``f(mu)``, ``[Z]``.
      mask: 1 for the steps of the trajectory, ``[T]``; past the end rewards are zero.
      penalty: ``c``, 0.1 as released and 0.01 in the paper.

    Raises:
      AssertionError: lengths that do not fit.

    Source: Liu et al. 2021 (DREAM), equation 6.
    """
    errors = prefix_errors(codes, code, mask)
    return jnp.where(mask > 0, errors[:-1] - errors[1:] - penalty, 0.0)


def _prefixes(mask: Array) -> Array:
    """Mask of the prefixes, ``[T+1]``: one more than there are steps."""
    return jnp.concatenate([jnp.ones((1,), mask.dtype), mask])
