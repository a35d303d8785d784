"""Networks of a model of one task among many, on the embedded states of a policy and the code of the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.abstract_networks import Conv, max_pool
from jaxhybrid.networks import MLP, Network
from jaxhybrid.types import Array, PyTree

__all__ = ["LatentModel", "PlaneEncoder", "latent_model"]

_HIDDEN = (128, 128)


class LatentModel(NamedTuple):
    """A model of what an action does to an embedded state ``x [X]``.

    Attributes:
      dynamics: ``apply(params, x, action [], code [Z]) -> [X]``, the state itself: the input plus what is added.
      reward: ``apply(params, x, action [], goal [G], code [Z]) -> []``.
      discount: likewise, in (0, gamma): gamma times how likely the episode goes on.
    """

    dynamics: Network
    reward: Network
    discount: Network


def latent_model(
    size: int, code_size: int, goal_sizes: Sequence[int], num_actions: int, *, gamma: float = 0.99
) -> LatentModel:
    """Returns three perceptrons of two hidden layers.

    Args:
      size: ``X``.
      code_size: ``Z``.
      goal_sizes: number of values of every component of an instruction.
      num_actions: ``A``.
      gamma: discount factor of the problem.
    """
    known = size + num_actions + code_size
    told = known + sum(goal_sizes)

    def joined(x: Array, action: Array, *others: Array) -> Array:
        return jnp.concatenate([x, jax.nn.one_hot(action, num_actions, dtype=x.dtype), *others])

    def instructed(x: Array, action: Array, goal: Array, code: Array) -> Array:
        hot = [jax.nn.one_hot(goal[i], count, dtype=x.dtype) for i, count in enumerate(goal_sizes)]
        return joined(x, action, code, *hot)

    change, head = MLP(_HIDDEN, size), MLP(_HIDDEN, 1)

    def dynamics(params: PyTree, x: Array, action: Array, code: Array) -> Array:
        added: Any = change.apply(params, joined(x, action, code))
        return x + added

    def reward(params: PyTree, x: Array, action: Array, goal: Array, code: Array) -> Array:
        found: Any = head.apply(params, instructed(x, action, goal, code))
        return found[0]

    return LatentModel(
        dynamics=Network(lambda key: change.init(key, jnp.zeros(known)), dynamics),
        reward=Network(lambda key: head.init(key, jnp.zeros(told)), reward),
        discount=Network(
            lambda key: head.init(key, jnp.zeros(told)), lambda *inputs: gamma * jax.nn.sigmoid(reward(*inputs))
        ),
    )


class PlaneEncoder(nn.Module):
    """Embeds a small picture ``[9, 9, P] -> [out]``: two convolutions, a pool by three, a linear layer.

    Attributes:
      out: width of the output.
      compiled: see `abstract_networks.Conv`.
    """

    out: int = 64
    compiled: bool = False

    @nn.compact
    def __call__(self, planes: Array) -> Array:
        """Embeds the picture."""
        x = nn.relu(Conv(16, 3, self.compiled)(planes))
        x = nn.relu(max_pool(Conv(32, 3, self.compiled)(x), 3))
        return nn.Dense(self.out)(x.ravel())
