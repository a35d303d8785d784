"""Networks of an abstract state space: an encoder of pictures, and dynamics, reward, discount and critic on its states.

Convolutions are products of patches with matrices: inside a scan on a CPU that is an order of magnitude faster than the
compiler's own convolution. The parameters are those of a convolution, so both read the same checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError
from jaxhybrid.networks import MLP, Network
from jaxhybrid.types import Array

__all__ = ["AbstractNetworks", "Conv", "convolve", "map_networks", "max_pool", "vector_networks"]

_GLOROT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_SHRINK = 6  # an encoder pools by 2 and by 3


class AbstractNetworks(NamedTuple):
    """Five networks around one kind of abstract state ``z``.

    Attributes:
      encoder: ``apply(params, picture [P, P]) -> z``.
      dynamics: ``apply(params, z, action []) -> z``, the next state: the input plus what the network adds.
      reward: ``apply(params, z, action []) -> []``.
      discount: ``apply(params, z, action []) -> []``, linear and so unbounded, gamma included.
      critic: ``apply(params, z) -> [A]``.
    """

    encoder: Network
    dynamics: Network
    reward: Network
    discount: Network
    critic: Network


class Conv(nn.Module):
    """Convolution of one picture ``[H, W, I] -> [H, W, features]``, padded with zeros, at the end first.

    Attributes:
      features: output channels.
      size: width of the square kernel; an even one looks further down and to the right, as TensorFlow's does.
      compiled: whether to use the compiler's convolution; faster on an accelerator.
    """

    features: int
    size: int
    compiled: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Applies kernel and bias."""
        kernel = self.param("kernel", _GLOROT, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return convolve({"kernel": kernel, "bias": bias}, x, compiled=self.compiled)


def convolve(params: Mapping[str, Array], x: Array, *, compiled: bool = False) -> Array:
    """What `Conv` computes, as a function of its ``kernel [k, k, I, O]`` and ``bias [O]``."""
    kernel, bias = params["kernel"], params["bias"]
    size = kernel.shape[0]
    low = (size - 1) // 2
    padding = ((low, size - 1 - low),) * 2
    if compiled:
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), padding, dimension_numbers=layout)[0]
    else:
        y = _patches(x, size, padding) @ kernel.reshape(-1, kernel.shape[-1])
    return y + bias[None, None]


def _patches(x: Array, size: int, padding: Sequence[tuple[int, int]]) -> Array:
    """The neighbourhood of every pixel as one vector, ``[H, W, size * size * I]``."""
    if size == 1:
        return x
    height, width, _ = x.shape
    padded = jnp.pad(x, (*padding, (0, 0)))
    shifted = [padded[i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1)


def max_pool(x: Array, size: int) -> Array:
    """Largest values of blocks ``size`` x ``size`` of ``[H, W, C]``, as maxima of strided slices.

    The backward pass of a reduction over windows is some ten times slower on a CPU. Pooling before a rising activation
    is the same as after it, and leaves fewer values to activate.
    """
    rows = functools.reduce(jnp.maximum, [x[i::size] for i in range(size)])
    return functools.reduce(jnp.maximum, [rows[:, j::size] for j in range(size)])


class _Torso(nn.Module):
    """The convolutions of the encoder, ``[P, P] -> [P/6, P/6, 32]``."""

    compiled: bool

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        x = picture[..., None]
        x = nn.tanh(Conv(8, 2, self.compiled)(x))
        x = nn.tanh(max_pool(Conv(16, 2, self.compiled)(x), 2))
        return nn.tanh(max_pool(Conv(32, 3, self.compiled)(x), 3))


class _MapEncoder(nn.Module):
    channels: int
    compiled: bool

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        return Conv(self.channels, 1, self.compiled)(_Torso(self.compiled)(picture))


class _VectorEncoder(nn.Module):
    size: int
    compiled: bool

    @nn.compact
    def __call__(self, picture: Array) -> Array:
        return MLP((200, 100, 50, 10), self.size, "tanh")(_Torso(self.compiled)(picture).ravel())


class _MapDynamics(nn.Module):
    num_actions: int
    compiled: bool

    @nn.compact
    def __call__(self, z: Array, action: Array) -> Array:
        x = _with_action(z, action, self.num_actions)
        for features, size in ((16, 1), (32, 2), (64, 3), (32, 2), (16, 1)):
            x = nn.tanh(Conv(features, size, self.compiled)(x))
        return z + Conv(z.shape[-1], 1, self.compiled)(x)


class _MapHead(nn.Module):
    """Reads numbers off a feature map."""

    out: int
    compiled: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.tanh(Conv(16, 2, self.compiled)(x))
        x = nn.tanh(max_pool(Conv(32, 3, self.compiled)(x), 2))
        x = nn.tanh(Conv(16, 2, self.compiled)(x))
        x = nn.tanh(Conv(4, 1, self.compiled)(x))
        return MLP((200, 50, 20), self.out, "tanh")(x.ravel())


class _VectorDynamics(nn.Module):
    num_actions: int

    @nn.compact
    def __call__(self, z: Array, action: Array) -> Array:
        return z + MLP((10, 30, 30, 10), z.shape[-1], "tanh")(_with_action(z, action, self.num_actions))


def map_networks(
    picture_shape: Sequence[int], num_actions: int, *, channels: int = 3, compiled: bool = False
) -> AbstractNetworks:
    """Returns CRAR's networks on feature maps ``[P/6, P/6, channels]``.

    The encoder is two 2 x 2 and one 3 x 3 convolution with pooling by 2 and 3, and a linear projection to
    ``channels``; the action enters as constant planes. All activations are tanh.

    Args:
      picture_shape: ``(P, P)``, ``P`` a multiple of 12.
      num_actions: ``A``.
      channels: of an abstract state.
      compiled: see `Conv`.

    Raises:
      InputError: pictures that cannot be pooled; at its call, a picture of another shape.

    Source: Francois-Lavet et al. 2019 (CRAR), appendix, as released.
    """
    side = _checked_side(picture_shape, 2 * _SHRINK)
    z = jnp.zeros((side // _SHRINK, side // _SHRINK, channels))
    joined = jnp.zeros((*z.shape[:2], num_actions + channels))

    def head() -> Network:
        module = _MapHead(1, compiled)
        return Network(
            lambda key: module.init(key, joined),
            lambda params, x, action: module.apply(params, _with_action(x, action, num_actions))[0],
        )

    return AbstractNetworks(
        encoder=_encoder(_MapEncoder(channels, compiled), side),
        dynamics=_network(_MapDynamics(num_actions, compiled), z, jnp.zeros((), jnp.int32)),
        reward=head(),
        discount=head(),
        critic=_network(_MapHead(num_actions, compiled), z),
    )


def vector_networks(
    picture_shape: Sequence[int], num_actions: int, *, size: int = 2, compiled: bool = False
) -> AbstractNetworks:
    """Returns CRAR's networks on short vectors ``[size]``, small enough to be looked at.

    Args:
      picture_shape: ``(P, P)``, ``P`` a multiple of 6.
      num_actions: ``A``.
      size: numbers in an abstract state.
      compiled: see `Conv`.

    Raises:
      InputError: pictures that cannot be pooled; at its call, a picture of another shape.

    Source: Francois-Lavet et al. 2019 (CRAR), appendix, as released.
    """
    side = _checked_side(picture_shape, _SHRINK)
    z = jnp.zeros((size,))

    def head() -> Network:
        module = MLP((10, 50, 20), 1, "tanh")
        return Network(
            lambda key: module.init(key, jnp.zeros(num_actions + size)),
            lambda params, x, action: module.apply(params, _with_action(x, action, num_actions))[0],
        )

    return AbstractNetworks(
        encoder=_encoder(_VectorEncoder(size, compiled), side),
        dynamics=_network(_VectorDynamics(num_actions), z, jnp.zeros((), jnp.int32)),
        reward=head(),
        discount=head(),
        critic=_network(MLP((20, 50, 20), num_actions, "tanh"), z),
    )


def _with_action(z: Array, action: Array, num_actions: int) -> Array:
    """One-hot action, constant over positions, before the channels of ``z [..., C]``: ``[..., A + C]``."""
    one_hot = jax.nn.one_hot(action, num_actions, dtype=z.dtype)
    return jnp.concatenate([jnp.broadcast_to(one_hot, (*z.shape[:-1], num_actions)), z], axis=-1)


def _checked_side(picture_shape: Sequence[int], divisor: int) -> int:
    shape = tuple(picture_shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] % divisor or not shape[0]:
        raise InputError(f"picture_shape={shape} must be square with a side that is a multiple of {divisor}.")
    return shape[0]


def _encoder(module: nn.Module, side: int) -> Network:
    network = _network(module, jnp.zeros((side, side)))

    def apply(params: object, picture: Array) -> Array:
        if picture.shape != (side, side):
            raise InputError(
                f"picture has shape {picture.shape}, expected {(side, side)}: vmap gives a batch, and cells must be "
                "drawn first."
            )
        return network.apply(params, picture)

    return network._replace(apply=apply)


def _network(module: nn.Module, *inputs: Array) -> Network:
    return Network(lambda key: module.init(key, *inputs), module.apply)
