"""Policies of policy search: tabular softmax with a fixed part, radial basis functions, linear and network Gaussians.

Each is a `networks.Network`: ``apply(params, obs)`` is a distribution record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.networks import Network, mlp
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["filtered", "linear_gaussian", "mlp_gaussian", "radial_gaussian", "tabular_softmax"]


def tabular_softmax(fixed_action: np.ndarray, num_actions: int) -> Network:
    """Returns a table of logits that some states ignore: there one action is certain, and the score is zero.

    Args:
      fixed_action: certain action of each state, negative where the table decides, integer ``[S]``.
      num_actions: ``A``.

    Returns:
      A network whose ``apply(table [S, A], state [])`` takes the number of a state.
    """
    fixed = jnp.asarray(fixed_action)
    certain = jnp.where(jax.nn.one_hot(fixed, num_actions) > 0, 0.0, -jnp.inf)

    def init(key: Key) -> Array:
        return jax.random.normal(key, (fixed.shape[0], num_actions))

    def apply(params: Array, state: Array) -> Categorical:
        return Categorical(jnp.where(fixed[state] < 0, params[state], certain[state]))

    return Network(init, apply)


def radial_gaussian(
    centres: Array | np.ndarray, *, width: float, std: float, initial: float = 0.0, spread: float = 0.0
) -> Network:
    """Returns a Gaussian of one action: its mean is a sum of radial basis functions of a scalar observation.

    ``mean(x) = sum_k theta_k exp(-(x - c_k)^2 / (2 width^2))``.

    Args:
      centres: ``c``, ``[K]``.
      width: width of every bump, in units of the observation.
      std: fixed standard deviation.
      initial: mean of the initial weights.
      spread: their standard deviation.
    """
    c, log_std = jnp.asarray(centres, jnp.float32), float(np.log(std))

    def init(key: Key) -> Array:
        return initial + spread * jax.random.normal(key, c.shape)

    def apply(params: Array, obs: Array) -> Gaussian:
        features = jnp.exp(-0.5 * jnp.square((obs - c) / width))
        mean = jnp.sum(params * features)[None]
        return Gaussian(mean, jnp.full_like(mean, log_std))

    return Network(init, apply)


def linear_gaussian(obs_dim: int, action_dim: int, *, log_std: float, spread: float = 0.1) -> Network:
    """Returns a Gaussian whose mean is linear in the observation, ``mean = K s + b``, its deviation fixed.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      log_std: logarithm of the standard deviation.
      spread: standard deviation of the initial gains; biases start at zero.
    """

    def init(key: Key) -> PyTree:
        return {"gain": spread * jax.random.normal(key, (action_dim, obs_dim)), "bias": jnp.zeros(action_dim)}

    def apply(params: PyTree, obs: Array) -> Gaussian:
        mean = params["gain"] @ obs + params["bias"]
        return Gaussian(mean, jnp.full_like(mean, log_std))

    return Network(init, apply)


def mlp_gaussian(
    obs_dim: int,
    action_dim: int,
    hidden: Sequence[int],
    *,
    activation: str = "tanh",
    log_std: float = 0.0,
    out_scale: float = 0.1,
) -> Network:
    """Returns a Gaussian whose mean is a network of the observation, its deviation a free parameter of each action.

    The policy of trust-region methods; `networks.gaussian_policy` has a deviation that depends on the observation.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      hidden: widths of the hidden layers.
      activation: name in `networks.ACTIVATIONS`.
      log_std: initial logarithm of the standard deviation.
      out_scale: factor on the initial weights of the output layer: means that start near zero.

    Returns:
      A network with the parameters ``mean`` and ``log_std [A]``.

    Raises:
      InputError: an unknown ``activation``.
    """
    torso = mlp(obs_dim, hidden, action_dim, activation=activation, out_scale=out_scale)

    def init(key: Key) -> PyTree:
        return {"mean": torso.init(key), "log_std": jnp.full((action_dim,), log_std, jnp.float32)}

    def apply(params: PyTree, obs: Array) -> Gaussian:
        return Gaussian(torso.apply(params["mean"], obs), params["log_std"])

    return Network(init, apply)


def filtered(network: Network, obs_dim: int, *, limit: float) -> Network:
    """Returns the network behind a frozen filter of observations: it sees ``clip((obs - mean) / std, -limit, limit)``.

    What a policy with a running filter is once training has ended; see `ops.filters.standardise`.

    Args:
      network: of the filtered observation.
      obs_dim: ``D``.
      limit: bound on what it sees.

    Returns:
      A network with the parameters ``filter`` (``mean [D]`` and ``std [D]``) and ``network``.
    """

    def init(key: Key) -> PyTree:
        return {"filter": {"mean": jnp.zeros(obs_dim), "std": jnp.ones(obs_dim)}, "network": network.init(key)}

    def apply(params: PyTree, obs: Array) -> Any:
        mean, std = params["filter"]["mean"], params["filter"]["std"]
        return network.apply(params["network"], jnp.clip((obs - mean) / std, -limit, limit))

    return Network(init, apply)
