"""State values of a policy learnt from the steps of earlier ones."""

from __future__ import annotations

from typing import Any

import chex
import jax.numpy as jnp

from jaxhybrid.types import Array, Key, PyTree, Transition, ValueFn

__all__ = ["weighted_td_loss"]


def weighted_td_loss(
    value_params: PyTree,
    example: tuple[Transition, Array],
    key: Key,
    *,
    value_fn: Any,
    target_fn: ValueFn,
    gamma: Array | float,
) -> tuple[Array, dict[str, Array]]:
    """Squared one-step error of a value, weighted by how much likelier the action is today: ``W (V(s) - y)^2``.

    ``y = r + gamma d V'(s')``, ``W = pi(a | s) / b(a | s)``.

    Estimates: the squared distance of ``V(s)`` from ``E_pi[y | s]`` over the recorded states, up to a constant.
    Unbiased when: ``W`` is the ratio itself; a clipped one biases the value.
    Gradient flows through: ``V(s)`` only.

    Args:
      value_params: parameters of the value.
      example: ``(transition, W [])``.
      key: unused; the signature is that of every loss.
      value_fn: ``value_fn(value_params, obs) -> []``.
      target_fn: ``V'``, a slow copy with bound parameters.
      gamma: discount factor.

    Returns:
      ``(loss [], aux)`` with aux ``value`` and ``target``.

    Raises:
      AssertionError: a batch axis on the example.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), algorithm 2,
      whose text leaves the ``gamma`` of ``y`` out.
    """
    del key
    step, weight = example
    chex.assert_rank([step.obs, step.reward, weight], [1, 0, 0])
    target = step.reward + gamma * step.discount * target_fn(step.next_obs)
    value = value_fn(value_params, step.obs)
    return weight * jnp.square(value - target), {"value": value, "target": target}
