"""What GMAS is composed of: networks, optimisers, and how a batch of observations is encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhybrid.abstract_networks import AbstractNetworks, map_networks, vector_networks
from jaxhybrid.cell_encoder import Patches, drawn, find_patches, patch_encoder
from jaxhybrid.networks import Network
from jaxhybrid.ops import trees
from jaxhybrid.systems.gmas_config import Config
from jaxhybrid.types import Array, EnvSpec, PyTree

__all__ = ["LOSSES", "Parts", "make_parts"]

# Each loss and what it changes, in the order in which the released code takes their steps.
LOSSES: dict[str, tuple[str, ...]] = {
    "transition": ("encoder", "dynamics"),
    "reward": ("encoder", "reward"),
    "discount": ("encoder", "discount"),
    "volume": ("encoder",),
    "random_pairs": ("encoder",),
    "consecutive_pairs": ("encoder",),
    "critic": ("encoder", "critic"),
}


class Parts(NamedTuple):
    """The pure functions that an iteration is composed of; nothing here changes during a run.

    Attributes:
      config: the numbers.
      num_actions: ``A``.
      nets: the networks, of one example each, as they learn.
      acting: the same, as they are evaluated only: on a CPU the compiler's convolutions are slow in the backward pass
        of a loop alone, and compile in a third of the time.
      optimisers: by loss, or one for all.
      view: turns the observations and next observations of a batch into what ``encode`` takes, once per update.
      encode: ``encode(encoder_params, view) -> (z, next_z)``.
    """

    config: Config
    num_actions: int
    nets: AbstractNetworks
    acting: AbstractNetworks
    optimisers: dict[str, optax.GradientTransformation]
    view: Callable[[Array, Array], PyTree]
    encode: Callable[[PyTree, PyTree], tuple[Array, Array]]


def make_parts(config: Config, spec: EnvSpec, sprites: np.ndarray | None = None) -> Parts:
    """Builds networks and optimisers for an environment whose actions are discrete."""
    num_actions = spec.num_actions or 0
    shape = spec.obs_shape or (spec.obs_dim,)
    picture_shape = shape if sprites is None else tuple(cells * sprites.shape[1] for cells in shape)
    build: Any = {
        "map": lambda **options: map_networks(picture_shape, channels=config.abstract_size, **options),
        "vector": lambda **options: vector_networks(picture_shape, size=config.abstract_size, **options),
    }[config.abstract]
    nets, acting = (build(num_actions=num_actions, compiled=flag) for flag in (config.compiled_convolution, True))
    if sprites is not None:
        nets, acting = (each._replace(encoder=drawn(each.encoder, sprites)) for each in (nets, acting))
    view, encode = _picture_by_picture(nets.encoder)
    if sprites is not None and config.share_patches and config.abstract == "map":
        view, encode = _patch_by_patch(sprites)
    return Parts(
        config=config,
        num_actions=num_actions,
        nets=nets,
        acting=acting,
        optimisers={name: _optimiser(config) for name in (LOSSES if config.loss_mode == "sequential" else ["joint"])},
        view=view,
        encode=encode,
    )


def _picture_by_picture(encoder: Network) -> tuple[Any, Any]:
    def encode(params: PyTree, view: tuple[Array, Array]) -> tuple[Array, Array]:
        z, next_z = (jax.vmap(partial(encoder.apply, params))(obs) for obs in view)
        return z, next_z

    return lambda obs, next_obs: (obs, next_obs), encode


def _patch_by_patch(sprites: np.ndarray) -> tuple[Any, Any]:
    """A step changes few cells, so that both ends of it share most of their patches."""
    encode_both = patch_encoder(sprites)

    def encode(params: PyTree, view: Patches) -> tuple[Array, Array]:
        z, next_z = jnp.split(encode_both(params, view), 2)
        return z, next_z

    return lambda obs, next_obs: find_patches(jnp.concatenate([obs, next_obs]), len(sprites)), encode


def _optimiser(config: Config) -> optax.GradientTransformation:
    """RMSprop for a unit step size, after the clip; the step size itself changes from iteration to iteration."""
    clip: Any = {
        "global": lambda: optax.clip_by_global_norm(config.clip_norm),
        "per_tensor": lambda: optax.stateless(lambda grads, _: jax.tree.map(partial(_clipped, config), grads)),
    }[config.clip]
    scale = optax.scale_by_rms(decay=config.rms_decay, eps=config.rms_epsilon, initial_scale=0.0, eps_in_sqrt=False)
    return optax.chain(clip(), scale)


def _clipped(config: Config, grad: Array) -> Array:
    # The minimum of the ratio and one, without a division by zero.
    return grad * config.clip_norm / jnp.maximum(trees.norm(grad), config.clip_norm)
