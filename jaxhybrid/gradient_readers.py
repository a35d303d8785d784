"""Networks that read gradients of another network: flat, by attention within each layer, or by low-rank summaries."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.networks import MLP, Network
from jaxhybrid.ops.magnitudes import rms_normalised, sign_and_log
from jaxhybrid.types import Array, PyTree

__all__ = ["gradient_reader"]

Kind = Literal["flat", "attention", "low_rank"]
Preprocessing = Literal["sign_log", "rms"]

_HIDDEN = 256
_HEADS, _VALUES = 4, 32
_RANK = 8
_ORDERS = 10.0


class _Flat(nn.Module):
    out: int
    preprocessing: Preprocessing

    @nn.compact
    def __call__(self, gradients: PyTree) -> Array:
        numbers = [_features(leaf, self.preprocessing).ravel() for leaf in jax.tree.leaves(gradients)]
        return MLP((_HIDDEN,), self.out)(jnp.concatenate(numbers))


class _Attention(nn.Module):
    """A layer's gradient is a set of rows, one for each input of the layer; learned queries choose among them."""

    out: int
    preprocessing: Preprocessing

    @nn.compact
    def __call__(self, gradients: PyTree) -> Array:
        pooled = []
        for leaf in jax.tree.leaves(gradients):
            matrix = _matrix(leaf)
            rows = _features(matrix, self.preprocessing).reshape(matrix.shape[0], -1)
            attention = nn.softmax(nn.Dense(_HEADS)(rows), axis=0)
            pooled.append((attention.T @ nn.Dense(_VALUES)(rows)).ravel())
        return MLP((_HIDDEN,), self.out)(jnp.concatenate(pooled))


class _LowRank(nn.Module):
    """A layer's gradient ``G`` is seen from both sides, ``U^T G V``, and by its size, which scaling has taken out."""

    out: int

    @nn.compact
    def __call__(self, gradients: PyTree) -> Array:
        seen = []
        for i, leaf in enumerate(jax.tree.leaves(gradients)):
            matrix = _matrix(leaf)
            # Entries of unit size are then seen as ones of unit size.
            sides = [
                self.param(f"{side}_{i}", nn.initializers.normal(size**-0.5), (size, _RANK))
                for side, size in zip(("left", "right"), matrix.shape)
            ]
            seen.append((sides[0].T @ rms_normalised(matrix) @ sides[1]).ravel())
            length = jnp.sqrt(jnp.mean(jnp.square(matrix)) + jnp.exp(-2.0 * _ORDERS))
            seen.append((jnp.log(length) / _ORDERS)[None])
        return MLP((_HIDDEN,), self.out)(jnp.concatenate(seen))


def gradient_reader(
    gradients: PyTree, *, kind: Kind = "flat", out: int = 64, preprocessing: Preprocessing = "sign_log"
) -> Network:
    """Returns a network ``apply(params, gradients) -> [out]`` for gradients of one structure, without a batch axis.

    Nothing flows back into the model whose gradients are read unless they are differentiated themselves.

    Args:
      gradients: an example, only its shapes matter; such as `integer_dynamics.OutcomeModel.origin`.
      kind: "flat" puts all numbers into one perceptron, as the paper does. "attention" and "low_rank" keep what is row
        and column: the first pools over the inputs of a layer, whatever their order; the second is the gradient's
        bilinear form in a few learned directions.
      out: width of the output.
      preprocessing: "sign_log" splits every number into sign and order of magnitude (`ops.magnitudes.sign_and_log`),
        "rms" scales each tensor to unit size and forgets its length. "low_rank" keeps the length apart and always
        scales.

    Raises:
      InputError: an unknown name, or gradients without a number.
    """
    if preprocessing not in ("sign_log", "rms"):
        raise unknown("preprocessing", preprocessing, ("sign_log", "rms"))
    modules = {
        "flat": _Flat(out, preprocessing),
        "attention": _Attention(out, preprocessing),
        "low_rank": _LowRank(out),
    }
    if kind not in modules:
        raise unknown("kind", kind, modules)
    if not any(leaf.size for leaf in jax.tree.leaves(gradients)):
        raise InputError("gradients holds no number: choose the parameters of a layer.")
    module = modules[kind]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), gradients)
    return Network(lambda key: module.init(key, zeros), module.apply)


def _features(x: Array, preprocessing: Preprocessing) -> Array:
    return sign_and_log(x, orders=_ORDERS) if preprocessing == "sign_log" else rms_normalised(x)


def _matrix(leaf: Array) -> Array:
    """A vector, such as a bias, is a matrix of one row."""
    return leaf.reshape(-1, leaf.shape[-1])
