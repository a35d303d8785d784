"""Losses that shape an abstract state space: what a model must predict in it, and what keeps it from collapsing.

``params`` holds every network that a loss changes, the encoder included; ``encode_fn`` and its companions take from it
what they need. Nothing is held constant: the encoder is changed by both ends of a predicted step.
"""

from __future__ import annotations

from typing import Any, Literal

import chex
import jax.numpy as jnp

from jaxhybrid.errors import unknown
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["disambiguation_loss", "discount_loss", "reward_loss", "rolled_pairs", "transition_loss", "volume_loss"]

Error = Literal["squared", "absolute"]
Volume = Literal["position", "whole", "printed"]

_ERRORS = {"squared": jnp.square, "absolute": jnp.abs}


def transition_loss(
    params: PyTree, example: Transition, key: Key, *, encode_fn: Any, dynamics_fn: Any, error: Error = "squared"
) -> tuple[Array, dict[str, Array]]:
    """Error of the abstract dynamics over one real step, ``mean [d (tau(e(s), a) - e(s'))]^2``.

    Gradient flows through: the dynamics and both encodings, the predicted one included.

    Args:
      params: of encoder and dynamics.
      example: a step; a terminal one counts zero and stays in the mean of a batch.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z`` of any shape.
      dynamics_fn: ``dynamics_fn(params, z, action) -> z``, the next state itself and not its difference.
      error: "squared" as CRAR was released, or "absolute" as the GMAS paper prints it.

    Returns:
      ``(loss [], aux)``, aux empty.

    Raises:
      AssertionError: a batch axis on the reward, or a prediction of another shape than the encoding.
      InputError: an unknown ``error``.

    Source: Francois-Lavet et al. 2019 (CRAR), equation 5; Chadha 2020 (GMAS), equation 1.
    """
    del key
    chex.assert_rank([example.reward, example.discount], 0)
    z, next_z = encode_fn(params, example.obs), encode_fn(params, example.next_obs)
    predicted = dynamics_fn(params, z, example.action)
    chex.assert_equal_shape([predicted, next_z])
    return jnp.mean(_error(example.discount * (predicted - next_z), error)), {}


def reward_loss(
    params: PyTree, example: Transition, key: Key, *, encode_fn: Any, reward_fn: Any, error: Error = "squared"
) -> tuple[Array, dict[str, Array]]:
    """Error of the reward model, ``(r - rho(e(s), a))^2``.

    Gradient flows through: the reward model and the encoding.

    Args:
      params: of encoder and reward model.
      example: a step.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z``.
      reward_fn: ``reward_fn(params, z, action) -> []``.
      error: see `transition_loss`.

    Returns:
      ``(loss [], aux)``, aux empty.

    Raises:
      AssertionError: a batch axis on the reward.
      InputError: an unknown ``error``.

    Source: Francois-Lavet et al. 2019 (CRAR), equation 3.
    """
    del key
    chex.assert_rank(example.reward, 0)
    predicted = reward_fn(params, encode_fn(params, example.obs), example.action)
    return _error(example.reward - predicted, error), {}


def discount_loss(
    params: PyTree,
    example: Transition,
    key: Key,
    *,
    encode_fn: Any,
    discount_fn: Any,
    gamma: Array | float,
    error: Error = "squared",
) -> tuple[Array, dict[str, Array]]:
    """Error of the discount model, ``(gamma d - g(e(s), a))^2``: it learns where episodes end.

    Gradient flows through: the discount model and the encoding.

    Args:
      params: of encoder and discount model.
      example: a step.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z``.
      discount_fn: ``discount_fn(params, z, action) -> []``, gamma included.
      gamma: discount factor of the problem.
      error: see `transition_loss`.

    Returns:
      ``(loss [], aux)``, aux empty.

    Raises:
      AssertionError: a batch axis on the discount.
      InputError: an unknown ``error``.

    Source: Francois-Lavet et al. 2019 (CRAR), equation 4.
    """
    del key
    chex.assert_rank(example.discount, 0)
    predicted = discount_fn(params, encode_fn(params, example.obs), example.action)
    return _error(gamma * example.discount - predicted, error), {}


def disambiguation_loss(
    params: PyTree,
    example: tuple[Array, Array],
    key: Key,
    *,
    encode_fn: Any,
    sharpness: Array | float = 5.0,
    max_square: float = 10.0,
) -> tuple[Array, dict[str, Array]]:
    """Drives the encodings of two observations apart, ``exp(-C ||e(s_1) - e(s_2)||)``.

    The squared distance is clipped to ``[1e-6, max_square]``: pairs that are far apart are left alone, and equal ones
    have no slope.

    Gradient flows through: both encodings.

    Args:
      params: of the encoder.
      example: two observations: of unrelated steps (`rolled_pairs`), or one and its successor.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z`` of any shape.
      sharpness: ``C``, 5 in CRAR.
      max_square: squared distance beyond which a pair counts as far enough apart; infinity in the paper, 10 released.

    Returns:
      ``(loss [], aux)`` with aux ``distance``, before the clip.

    Source: Francois-Lavet et al. 2019 (CRAR), equations 6 and 7.
    """
    del key
    first, second = (encode_fn(params, obs) for obs in example)
    square = jnp.sum(jnp.square(first - second))
    # The lower end keeps the root's slope finite.
    loss = jnp.exp(-sharpness * jnp.sqrt(jnp.clip(square, 1e-6, max_square)))
    return loss, {"distance": jnp.sqrt(square)}


def rolled_pairs(obs: Array) -> tuple[Array, Array]:
    """Pairs every observation of a batch with the one before it, the first with the last, ``[N, ...]`` each.

    Rows of a batch are independent draws, so the partners are unrelated, unless the batch has one row.
    """
    return obs, jnp.roll(obs, 1, axis=0)


def volume_loss(
    params: PyTree, obs: Array, key: Key, *, encode_fn: Any, bound: Volume = "position", max_excess: float = 100.0
) -> tuple[Array, dict[str, Array]]:
    """Keeps encodings inside the unit ball of the largest coordinate, ``mean clip(max_c z_c^2 - 1, 0, max_excess)``.

    Gradient flows through: the largest coordinates, where they exceed one.

    Args:
      params: of the encoder.
      obs: an observation.
      key: unused; the signature is that of every loss.
      encode_fn: ``encode_fn(params, obs) -> z [..., C]``.
      bound: "position" bounds every vector ``[C]`` of a feature map and averages over positions, as CRAR was released;
        "whole" bounds the map by its one largest number, as CRAR's paper reads; "printed" is the GMAS paper's
        ``max(max_i |z_i - 1|, 0)``, which draws everything to one.
      max_excess: largest value that counts, and from where on nothing pulls back.

    Returns:
      ``(loss [], aux)`` with aux ``largest``, the largest coordinate in absolute value.

    Raises:
      InputError: an unknown ``bound``.

    Source: Francois-Lavet et al. 2019 (CRAR), section 3.3; Chadha 2020 (GMAS), equation 3.
    """
    del key
    z = encode_fn(params, obs)
    excess = {
        "position": lambda: jnp.max(jnp.square(z), axis=-1) - 1.0,
        "whole": lambda: jnp.max(jnp.square(z)) - 1.0,
        "printed": lambda: jnp.max(jnp.abs(z - 1.0)),
    }
    if bound not in excess:
        raise unknown("bound", bound, excess)
    return jnp.mean(jnp.clip(excess[bound](), 0.0, max_excess)), {"largest": jnp.max(jnp.abs(z))}


def _error(difference: Array, error: str) -> Array:
    if error not in _ERRORS:
        raise unknown("error", error, _ERRORS)
    return _ERRORS[error](difference)
