"""A model of observations that are tuples of small integers: a distribution over the values of every component."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["IntegerDynamics", "OutcomeModel", "last_layers", "outcome_model", "with_last_layers"]

_EMBEDDED, _WIDTH = 32, 128
_LAST = ("hidden_1", "heads")

Logits = tuple[Array, ...]


class OutcomeModel(NamedTuple):
    """A model of the next observation.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, obs [C], action []) ->`` logits, one vector for each component.
      shifted: ``shifted(params, coordinates, obs, action)``, the same with the kernels (and biases) of the last two
        layers moved along random directions, ``W + L M R`` with ``coordinates = {layer: M}``. The gradient in ``M`` is
        ``L^T (grad W) R^T``, a random projection of the layer's gradient that never forms the gradient itself.
      origin: coordinates of the model as it is, zeros ``[rank, rank]`` for each layer.
      directions: ``L [in + 1, rank]`` and ``R [rank, out]`` for each layer; the last input is that of the bias.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Logits]
    shifted: Callable[..., Logits]
    origin: dict[str, Array]
    directions: dict[str, tuple[Array, Array]]


class IntegerDynamics(nn.Module):
    """Embeds every component and the action, two hidden layers, and a linear head for each component.

    Attributes:
      sizes: number of values of every component.
      num_actions: ``A``.
      width: of the hidden layers.
    """

    sizes: Sequence[int]
    num_actions: int
    width: int = _WIDTH

    @nn.compact
    def __call__(self, obs: Array, action: Array, moves: dict[str, Callable[[Array], Array]] | None = None) -> Logits:
        """Returns the logits of every component; ``moves`` are added to the outputs of the layers that they name."""
        moves = moves or {}
        values = [*((obs[i], size) for i, size in enumerate(self.sizes)), (action, self.num_actions)]
        rows = []
        for i, (value, size) in enumerate(values):
            table = self.param(f"table_{i}", nn.initializers.normal(1.0), (size, _EMBEDDED))
            # A product, since gradients of gradients of a look-up are slow.
            rows.append(jax.nn.one_hot(value, size, dtype=table.dtype) @ table)
        x = jnp.concatenate(rows)
        for name, width in (("hidden_0", self.width), ("hidden_1", self.width), ("heads", sum(self.sizes))):
            y = nn.Dense(width, name=name)(x)
            if name in moves:
                y = y + moves[name](x)
            x = y if name == "heads" else nn.relu(y)
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return tuple(jnp.split(x, ends))


def outcome_model(
    obs_sizes: Sequence[int], num_actions: int, *, width: int = _WIDTH, rank: int = 16, seed: int = 0
) -> OutcomeModel:
    """Returns a model of integer observations.

    Args:
      obs_sizes: number of values of every component.
      num_actions: ``A``.
      width: of the hidden layers.
      rank: random directions on either side of a layer; two layers have ``2 rank^2`` coordinates.
      seed: of the directions, which are no parameters and the same in every run.

    Raises:
      InputError: a rank or width below 1.
    """
    if min(rank, width) < 1:
        raise InputError(f"rank={rank} and width={width} must be at least 1.")
    sizes = tuple(obs_sizes)
    module = IntegerDynamics(sizes, num_actions, width)
    sides = _directions(width, sum(sizes), rank, seed)
    origin = {name: jnp.zeros((rank, rank)) for name in _LAST}

    def init(key: Key) -> PyTree:
        return module.init(key, jnp.zeros(len(sizes), jnp.int32), jnp.zeros((), jnp.int32))

    def apply(params: PyTree, obs: Array, action: Array) -> Logits:
        found: Any = module.apply(params, obs, action)
        return found

    def shifted(params: PyTree, coordinates: dict[str, Array], obs: Array, action: Array) -> Logits:
        def move(name: str) -> Callable[[Array], Array]:
            left, right = sides[name]
            # Multiplied from the left, so that no matrix of the layer's size appears.
            return lambda x: ((jnp.append(x, 1.0) @ left) @ coordinates[name]) @ right

        found: Any = module.apply(params, obs, action, {name: move(name) for name in _LAST})
        return found

    return OutcomeModel(init, apply, shifted, origin, sides)


def last_layers(params: PyTree) -> PyTree:
    """The parameters of the second hidden layer and the heads: what is left out of a model to read its gradients."""
    return {name: params["params"][name] for name in _LAST}


def with_last_layers(params: PyTree, layers: PyTree) -> PyTree:
    """Returns the model with these last layers instead of its own."""
    return {"params": {**params["params"], **layers}}


def _directions(width: int, num_logits: int, rank: int, seed: int) -> dict[str, tuple[Array, Array]]:
    """Random directions for each layer, such that the length of a gradient is kept in the mean."""
    directions = {}
    for key, name, out in zip(jax.random.split(jax.random.key(seed)), _LAST, (width, num_logits)):
        left_key, right_key = jax.random.split(key)
        # E |L^T G R^T|^2 = |G|^2 with entries of variance 1 / rank.
        scale = rank**-0.5
        left = scale * jax.random.normal(left_key, (width + 1, rank))
        directions[name] = left, scale * jax.random.normal(right_key, (rank, out))
    return directions
