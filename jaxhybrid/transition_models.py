"""Small classes of transition models, and their weighted fits.

- `effect_model`: which of five effects an action has, whatever the cell; fitted by expectation-maximisation.
- `linear_gaussian`, `network_gaussian`: the change of the state is Gaussian; fitted by Adam on the weighted likelihood.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxhybrid.losses.weighted_likelihood import weighted_nll
from jaxhybrid.networks import mlp
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "TransitionModel",
    "effect_expectation_maximisation",
    "effect_transition",
    "fit",
    "linear_gaussian",
    "network_gaussian",
]


class TransitionModel(NamedTuple):
    """A class of transition models.

    Attributes:
      init: ``init(key) -> params``.
      change: ``change(params, obs [D], action [A]) -> Gaussian`` of the change ``s' - s``.
    """

    init: Callable[[Key], PyTree]
    change: Callable[[PyTree, Array, Array], Gaussian]

    def log_prob(self, params: PyTree, obs: Array, action: Array, next_obs: Array) -> Array:
        """Log-density of a transition, ``[]``."""
        return self.change(params, obs, action).log_prob(next_obs - obs)

    def sample(self, params: PyTree, obs: Array, action: Array, noise: Array) -> Array:
        """Next observation for standard normal ``noise [D]``, ``[D]``."""
        return obs + self.change(params, obs, action).reparameterise(noise)


def linear_gaussian(
    features_fn: Callable[[Array, Array], Array], num_features: int, obs_dim: int, *, log_std: float = 0.0
) -> TransitionModel:
    """Returns a change with linear mean and log-linear standard deviation, ``N(W psi, exp(V psi)^2)``.

    A standard deviation that is itself linear may become negative; its logarithm may not.

    Args:
      features_fn: ``psi(obs [D], action [A]) -> [F]``; the first feature is 1.
      num_features: ``F``.
      obs_dim: ``D``.
      log_std: initial logarithm of the standard deviation.
    """

    def init(key: Key) -> PyTree:
        del key  # the likelihood is convex in the mean: any start will do
        zeros = jnp.zeros((obs_dim, num_features))
        return {"mean": zeros, "log_std": zeros.at[:, 0].set(log_std)}

    def change(params: PyTree, obs: Array, action: Array) -> Gaussian:
        psi = features_fn(obs, action)
        return Gaussian(params["mean"] @ psi, jnp.clip(params["log_std"] @ psi, -5.0, 3.0))

    return TransitionModel(init, change)


def network_gaussian(obs_dim: int, action_dim: int, hidden: Sequence[int] = (32, 32)) -> TransitionModel:
    """Returns a change whose mean and log-deviation are the outputs of a tanh network.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      hidden: widths of the hidden layers.
    """
    network = mlp(obs_dim + action_dim, hidden, 2 * obs_dim, activation="tanh", out_scale=0.1)

    def change(params: PyTree, obs: Array, action: Array) -> Gaussian:
        mean, log_std = jnp.split(network.apply(params, jnp.concatenate([obs, action])), 2)
        return Gaussian(mean, jnp.clip(log_std - 1.0, -5.0, 2.0))

    return TransitionModel(network.init, change)


def fit(
    model: TransitionModel,
    params: PyTree,
    dataset: Trajectory,
    step_weights: Array,
    *,
    steps: int,
    learning_rate: float,
) -> tuple[PyTree, Array]:
    """Minimises the weighted likelihood by full-batch Adam from given parameters.

    Weights are divided by their sum over the data set, so that the step size means the same under every weighting.

    Args:
      model: the class.
      params: where to start, for instance the optimum of the previous weights.
      dataset: ``[N, T, ...]``.
      step_weights: ``[N, T]``, not negative; all zero leaves the parameters alone.
      steps: gradient steps, static.
      learning_rate: of Adam.

    Returns:
      ``(params, loss [])``, the loss being the mean negative log-likelihood under the weights.
    """
    total = jnp.sum(step_weights * dataset.mask)
    weights = step_weights / jnp.where(total > 0, total, 1.0)
    optimiser = optax.adam(learning_rate)

    def loss(p: PyTree) -> Array:
        # The loss has no draw: every trajectory may be handed the same key.
        each = jax.vmap(
            lambda trajectory, omega: weighted_nll(
                p, trajectory, jax.random.key(0), log_prob_fn=model.log_prob, step_weights=omega
            )[0]
        )
        return jnp.sum(each(dataset, weights))

    def step(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple[PyTree, PyTree], Array]:
        p, state = carry
        value, grads = jax.value_and_grad(loss)(p)
        updates, state = optimiser.update(grads, state, p)
        return (optax.apply_updates(p, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimiser.init(params)), None, length=steps)
    return params, losses[-1]


def effect_transition(effect_probs: Array, moves: np.ndarray) -> Array:
    """Transitions of the state-independent effect model, ``p(s' | s, a) = sum_e P(e | a) [move(s, e) = s']``.

    Args:
      effect_probs: ``P(e | a)``, ``[A, E]``.
      moves: next state of each effect, walls counted in, integer ``[S, E]``.

    Returns:
      ``[S, A, S]``.
    """
    reached = jax.nn.one_hot(jnp.asarray(moves), moves.shape[0], dtype=effect_probs.dtype)
    return jnp.einsum("ae,set->sat", effect_probs, reached)


def effect_expectation_maximisation(
    effect_probs: Array, counts: Array, moves: np.ndarray, *, steps: int, prior: float = 1e-3
) -> Array:
    """Weighted maximum likelihood of the effect model by expectation-maximisation.

    Where two effects lead to the same cell (at a wall), the responsibility of each is its share under the current
    probabilities; then ``P(e | a)`` is the share of the weight.

    Args:
      effect_probs: where to start, ``[A, E]``; a probability of zero stays zero.
      counts: summed weights of every transition, ``[S, A, S]``.
      moves: next state of each effect, integer ``[S, E]``.
      steps: iterations, static.
      prior: pseudo-weight of every effect relative to the mean weight per action, which keeps an effect that was once
        never seen from being impossible for ever.

    Returns:
      ``P(e | a)``, ``[A, E]``.
    """
    states = np.arange(moves.shape[0])[:, None]
    # Weight of the transition that effect e would explain, [S, A, E].
    explained = jnp.moveaxis(counts[states, :, jnp.asarray(moves)], 1, 2)
    pseudo = prior * jnp.mean(jnp.sum(counts, axis=(0, 2)))

    def step(probs: Array, _: None) -> tuple[Array, None]:
        likelihood = jnp.einsum("ae,sef->saf", probs, _same_cell(moves, probs.dtype))
        shared = explained * probs[None] / jnp.maximum(likelihood, jnp.finfo(probs.dtype).tiny)
        weight = jnp.sum(shared, axis=0) + pseudo
        total = jnp.sum(weight, axis=1, keepdims=True)
        return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1.0), probs), None

    return jax.lax.scan(step, effect_probs, None, length=steps)[0]


def _same_cell(moves: np.ndarray, dtype: jnp.dtype) -> Array:
    """Whether two effects lead to the same cell, ``[S, E, E]``."""
    return jnp.asarray(moves[:, :, None] == moves[:, None, :], dtype)
