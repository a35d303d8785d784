"""Networks that read gradients of another network: flat, by attention within each layer, or by low-rank summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.networks import MLP
from jaxhybrid.ops.magnitudes import rms_normalised, sign_and_log
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["GradientReader", "gradient_reader"]

Kind = Literal["flat", "attention", "low_rank"]
Preprocessing = Literal["sign_log", "rms"]

_HIDDEN = 256
_HEADS, _VALUES = 4, 32
_RANK = 8
_ORDERS = 10.0


class GradientReader(NamedTuple):
    """A network that reads gradients.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, gradients) -> [out]`` of one point, without a batch axis.
      many: ``many(params, gradients [R, ...], rows=None) -> [R, out]``, or the first ``rows`` of them; past those
        anything may come out.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[..., Array]
    many: Callable[..., Array]


class _Flat(nn.Module):
    out: int
    preprocessing: Preprocessing

    @nn.compact
    def __call__(self, gradients: PyTree, rows: Array | None = None) -> Array:
        seen = [_features(leaf, self.preprocessing) for leaf in jax.tree.leaves(gradients)]
        return _perceptron(self.out, seen, rows)


class _Attention(nn.Module):
    """A layer's gradient is a set of rows, one for each input of the layer; learned queries choose among them."""

    out: int
    preprocessing: Preprocessing

    @nn.compact
    def __call__(self, gradients: PyTree, rows: Array | None = None) -> Array:
        pooled = []
        for leaf in jax.tree.leaves(gradients):
            matrices = _matrices(leaf)
            inputs = _features(matrices, self.preprocessing).reshape(*matrices.shape[:2], -1)
            attention = nn.softmax(nn.Dense(_HEADS)(inputs), axis=1)
            pooled.append(jnp.einsum("rih,riv->rhv", attention, nn.Dense(_VALUES)(inputs)))
        return _perceptron(self.out, pooled, rows)


class _LowRank(nn.Module):
    """A layer's gradient ``G`` is seen from both sides, ``U^T G V``, and by its size, which scaling has taken out."""

    out: int

    @nn.compact
    def __call__(self, gradients: PyTree, rows: Array | None = None) -> Array:
        seen = []
        for i, leaf in enumerate(jax.tree.leaves(gradients)):
            matrices = _matrices(leaf)
            # Entries of unit size are then seen as ones of unit size.
            left, right = [
                self.param(f"{side}_{i}", nn.initializers.normal(size**-0.5), (size, _RANK))
                for side, size in zip(("left", "right"), matrices.shape[1:])
            ]
            seen.append(left.T @ jax.vmap(rms_normalised)(matrices) @ right)
            length = jnp.sqrt(jnp.mean(jnp.square(matrices), axis=(1, 2)) + jnp.exp(-2.0 * _ORDERS))
            seen.append(jnp.log(length) / _ORDERS)
        return _perceptron(self.out, seen, rows)


def gradient_reader(
    gradients: PyTree, *, kind: Kind = "flat", out: int = 64, preprocessing: Preprocessing = "sign_log"
) -> GradientReader:
    """Returns a network that reads gradients of one structure.

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
    zeros = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), gradients)

    def many(params: PyTree, gradients: PyTree, rows: Array | None = None) -> Array:
        found: Any = module.apply(params, gradients, rows)
        return found

    def apply(params: PyTree, gradients: PyTree) -> Array:
        return many(params, jax.tree.map(lambda x: x[None], gradients))[0]

    return GradientReader(lambda key: module.init(key, zeros), apply, many)


def _features(x: Array, preprocessing: Preprocessing) -> Array:
    """Gradients ``[R, ...]``, fit to be read."""
    return sign_and_log(x, orders=_ORDERS) if preprocessing == "sign_log" else jax.vmap(rms_normalised)(x)


def _perceptron(out: int, seen: Sequence[Array], rows: Array | None) -> Array:
    return MLP((_HIDDEN,), out)(jnp.concatenate([x.reshape(len(x), -1) for x in seen], axis=1), rows)


def _matrices(leaf: Array) -> Array:
    """Gradients ``[R, ...]`` as matrices; that of a vector, such as a bias, has one row."""
    return leaf.reshape(len(leaf), -1, leaf.shape[-1])
