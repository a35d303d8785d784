"""What a past batch says about a control variate: its best coefficient and how far its roll-outs can be trusted."""

from __future__ import annotations

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.errors import unknown
from jaxhybrid.types import Array

__all__ = ["choose_horizon", "optimal_coefficient"]


def optimal_coefficient(target: Array, control: Array) -> Array:
    """The coefficient of least variance, ``argmin_c tr Cov(x - c h) = sum_i Cov(x_i, h_i) / sum_i Var(h_i)``.

    One number for a whole batch comes from the advantages ``A`` and ``A_hat``, which leaves out how the score weighs
    them. One per parameter tensor comes from the gradients without and with the control variate, leaf by leaf:
    ``jax.tree.map(optimal_coefficient, without, without - with_it)``.

    Unbiased when: applied to other samples than these. On the same batch the estimate it enters has a bias of order
    ``1 / N``.

    Args:
      target: ``x``, what is estimated, one row per sample, ``[N, ...]``.
      control: ``h``, what is subtracted ``c`` times, of known mean, ``[N, ...]``.

    Returns:
      ``c``, ``[]``; 0 for a control variate without variance.

    Raises:
      AssertionError: unequal shapes or fewer than one row.

    Source: Owen 2013, Monte Carlo theory, methods and examples, section 8.9.
    """
    chex.assert_equal_shape([target, control])
    chex.assert_scalar_positive(target.shape[0])
    deviation = control - jnp.mean(control, axis=0, keepdims=True)
    variance = jnp.sum(jnp.square(deviation))
    return jnp.where(variance > 0, jnp.sum(target * deviation) / jnp.where(variance > 0, variance, 1.0), 0.0)


def choose_horizon(
    advantage: Array, embedded_advantage: Array, *, rule: Literal["cov", "corr"] = "cov"
) -> tuple[Array, Array]:
    """The horizon of the control variate that a batch recommends.

    ``cov``: the largest ``k`` with ``Cov(A, A_hat_k) > 0``. ``corr``: the ``k`` of the largest ``Corr(A, A_hat_k)^2``;
    with the optimal coefficient ``1 - Corr^2`` is what remains of the variance of the advantage.

    Unbiased when: applied to other samples than these; a past batch, as for `optimal_coefficient`.

    Args:
      advantage: ``A``, ``[N]``.
      embedded_advantage: ``A_hat_k`` of roll-outs of ``k = 1 .. K`` steps, ``[K, N]``.
      rule: "cov", as in the paper, or "corr".

    Returns:
      ``(k [], correlations [K])``; ``k`` is an integer from 0, no control variate at all, to ``K``. A horizon sets
      shapes: make it a Python number, or an index for ``jax.lax.switch``.

    Raises:
      AssertionError: other shapes.
      InputError: an unknown ``rule``.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), section on
      the dynamic roll-out, whose printed ``A_hat = A - V`` reads ``A_hat = Q_hat - V``.
    """
    chex.assert_rank([advantage, embedded_advantage], [1, 2])
    chex.assert_shape(embedded_advantage, (None, advantage.shape[0]))
    if rule not in ("cov", "corr"):
        raise unknown("rule", rule, ("cov", "corr"))
    correlations = jax.vmap(lambda embedded: _correlation(advantage, embedded))(embedded_advantage)
    horizons = jnp.arange(1, correlations.shape[0] + 1)
    if rule == "cov":
        return jnp.max(jnp.where(correlations > 0, horizons, 0)), correlations
    best = jnp.argmax(jnp.square(correlations))
    return jnp.where(correlations[best] != 0, best + 1, 0), correlations


def _correlation(x: Array, y: Array) -> Array:
    """Correlation of ``[N]`` and ``[N]``; 0 where one is constant."""
    dx, dy = x - jnp.mean(x), y - jnp.mean(y)
    scale = jnp.sqrt(jnp.sum(jnp.square(dx)) * jnp.sum(jnp.square(dy)))
    return jnp.where(scale > 0, jnp.sum(dx * dy) / jnp.where(scale > 0, scale, 1.0), 0.0)
