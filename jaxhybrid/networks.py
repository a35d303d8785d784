"""Flax Linen networks and their ``(init, apply)`` adapters.

Everything above this file sees a `Network`: two functions, so that networks of any other library fit as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.ops import products
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["ACTIVATIONS", "MLP", "Network", "check_widths", "critics", "ensemble", "gaussian_policy", "mlp"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": nn.elu,
    "relu": nn.relu,
    "swish": nn.swish,
    "tanh": nn.tanh,
}


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, *inputs) -> output`` for one example, without a batch axis.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Any]


class MLP(nn.Module):
    """Multi-layer perceptron, Glorot-uniform weights and zero biases.

    Attributes:
      hidden: widths of the hidden layers.
      out: width of the linear output layer.
      activation: name in `ACTIVATIONS`.
      out_scale: factor on the initial weights of the output layer.
    """

    hidden: Sequence[int]
    out: int
    activation: str = "relu"
    out_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:
        """Maps ``[I]`` to ``[out]``, or of ``[R, I]`` the first ``rows`` rows; past them anything may come out."""

        def dense(width: int, scale: float) -> nn.Dense:
            product = None if rows is None else lambda x, kernel, *_, **__: products.product(x, kernel, rows)
            glorot = nn.initializers.variance_scaling(scale, "fan_avg", "uniform")
            return nn.Dense(width, kernel_init=glorot, dot_general=product)

        for width in self.hidden:
            x = ACTIVATIONS[self.activation](dense(width, 1.0)(x))
        return dense(self.out, self.out_scale**2)(x)


def check_widths(record: object, *names: str) -> None:
    """Refuses a record of numbers if a field of hidden layers holds one without units.

    Args:
      record: a dataclass.
      *names: its fields that hold the units of each layer.

    Raises:
      InputError: names the field.
    """
    for name in names:
        if min(getattr(record, name), default=1) < 1:
            raise InputError(f"{name}={getattr(record, name)} has a layer without units: each needs at least 1.")


def mlp(
    in_dim: int, hidden: Sequence[int], out_dim: int, *, activation: str = "relu", out_scale: float = 1.0
) -> Network:
    """Returns a perceptron ``[in_dim] -> [out_dim]``.

    Raises:
      InputError: an unknown ``activation``.
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    module = MLP(tuple(hidden), out_dim, activation, out_scale)
    return Network(lambda key: module.init(key, jnp.zeros((in_dim,))), module.apply)


def gaussian_policy(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "relu",
    squash: bool = True,
    log_std_min: float = -20.0,
    log_std_max: float = 2.0,
) -> Network:
    """Returns a policy with state-dependent standard deviation: ``apply(params, obs [D])`` is a distribution record.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      hidden: widths of the hidden layers.
      activation: name in `ACTIVATIONS`.
      squash: whether actions are squashed into (-1, 1) by tanh.
      log_std_min: lower clip of the logarithm of the standard deviation.
      log_std_max: upper clip of the logarithm of the standard deviation.
    """
    torso = mlp(obs_dim, hidden, 2 * action_dim, activation=activation)
    record = TanhGaussian if squash else Gaussian

    def apply(params: PyTree, obs: Array) -> TanhGaussian | Gaussian:
        mean, log_std = jnp.split(torso.apply(params, obs), 2)
        return record(mean, jnp.clip(log_std, log_std_min, log_std_max))

    return Network(torso.init, apply)


def critics(
    obs_dim: int, action_dim: int, hidden: Sequence[int], *, activation: str = "relu", num_critics: int = 2
) -> Network:
    """Returns independent state-action critics: ``apply(params, obs [D], action [A]) -> [C]``."""
    single = mlp(obs_dim + action_dim, hidden, 1, activation=activation)
    several = ensemble(single, num_critics)

    def apply(params: PyTree, obs: Array, action: Array) -> Array:
        inputs = jnp.concatenate([obs, action])
        return jax.vmap(lambda member: single.apply(member, inputs)[0])(params)

    return Network(several.init, apply)


def ensemble(network: Network, num_members: int) -> Network:
    """Returns ``num_members`` independently initialised copies: params gain a leading axis ``M``, so does the output.

    Every member sees the same input. To give each member its own rows, map ``network.apply`` over the params instead
    (`jaxhybrid.dynamics` does, to spend one member's arithmetic per row).
    """

    def init(key: Key) -> PyTree:
        return jax.vmap(network.init)(jax.random.split(key, num_members))

    def apply(params: PyTree, *inputs: Array) -> Any:
        return jax.vmap(lambda member: network.apply(member, *inputs))(params)

    return Network(init, apply)
