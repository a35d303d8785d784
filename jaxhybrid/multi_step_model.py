"""Deterministic dynamics with a learnt reward, fitted on a few unrolled steps at a time.

``s' = s + f(s, a)`` and ``r(s, a, s')``, both networks of standardised inputs. `dynamics` has the probabilistic
ensembles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import networks
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.multi_step import Window, multi_step_loss
from jaxhybrid.types import Array, Key, PyTree, RewardFn, StepFn, TerminatedFn, Transition

__all__ = ["ModelState", "MultiStepModel", "Scales", "make", "scales_of"]

# A coordinate that hardly moves next to its spread is not worth this many digits of it.
_LEAST_CHANGE = 1e-3
_LEAST_STD = 1e-6

WindowsFn = Callable[[Key], Window | tuple[Transition, Array]]
"""``windows_fn(key) -> (transitions [B, k, ...], mask [B, k])``, recorded windows, with weights or without."""


class Scales(NamedTuple):
    """Mean and standard deviation of inputs ``[D + A]``, changes ``[D]`` and rewards ``[]``."""

    input_mean: Array
    input_std: Array
    change_mean: Array
    change_std: Array
    reward_mean: Array
    reward_std: Array


class ModelState(NamedTuple):
    """Everything about a model that persists between fits.

    Attributes:
      params: of the two networks.
      scales: statistics of the recorded steps.
      optimiser: state of the optimiser.
    """

    params: PyTree
    scales: Scales
    optimiser: PyTree


class MultiStepModel(NamedTuple):
    """A model as functions.

    Attributes:
      init: ``init(key) -> ModelState``.
      predict: ``predict(params, scales, obs [D], action [A]) -> (next_obs [D], reward [])``.
      fit: ``fit(state, windows_fn, guard, key, *, num_updates) -> (state, guard, metrics)``; set the scales first.
    """

    init: Callable[[Key], ModelState]
    predict: Callable[[PyTree, Scales, Array, Array], tuple[Array, Array]]
    fit: Callable[..., tuple[ModelState, Guard, dict[str, Array]]]

    def step_fn(
        self,
        state: ModelState,
        *,
        reward_fn: RewardFn | None = None,
        terminated_fn: TerminatedFn | None = None,
        limit: float = 10.0,
    ) -> StepFn:
        """Binds a fitted model, ``step_fn(obs, action, noise) -> (next_obs, reward, discount)``; the noise is not used.

        Args:
          state: the fitted state.
          reward_fn: known reward; None takes the learnt one.
          terminated_fn: known termination; None means that episodes do not terminate.
          limit: standard deviations of what was recorded that a prediction stays within, so that no path explodes.
        """

        def step(obs: Array, action: Array, noise: PyTree) -> tuple[Array, Array, Array]:
            del noise
            next_obs, reward = self.predict(state.params, state.scales, obs, action)
            mean, std = state.scales.input_mean[: obs.shape[0]], state.scales.input_std[: obs.shape[0]]
            next_obs = jnp.clip(next_obs, mean - limit * std, mean + limit * std)
            reward = reward if reward_fn is None else reward_fn(obs, action, next_obs)
            ended = jnp.asarray(False) if terminated_fn is None else terminated_fn(obs, action, next_obs)
            return next_obs, reward, 1.0 - ended.astype(reward.dtype)

        return step


def make(
    obs_dim: int,
    action_dim: int,
    *,
    hidden: Sequence[int] = (500,),
    activation: str = "relu",
    learning_rate: float = 1e-3,
    reward_weight: float = 10.0,
) -> MultiStepModel:
    """Builds a model.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      hidden: widths of the hidden layers of both networks.
      activation: name in `networks.ACTIVATIONS`.
      learning_rate: of Adam.
      reward_weight: weight of the reward's error, ``alpha``.

    Raises:
      InputError: an unknown ``activation``.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), section 5;
      the networks: Nagabandi et al. 2018, Neural network dynamics for model-based deep RL, section 4.
    """
    change = networks.mlp(obs_dim + action_dim, hidden, obs_dim, activation=activation)
    reward = networks.mlp(2 * obs_dim + action_dim, hidden, 1, activation=activation)
    optimiser = optax.adam(learning_rate)

    def init(key: Key) -> ModelState:
        change_key, reward_key = jax.random.split(key)
        params = {"change": change.init(change_key), "reward": reward.init(reward_key)}
        pairs = [(jnp.zeros(shape), jnp.ones(shape)) for shape in ((obs_dim + action_dim,), (obs_dim,), ())]
        return ModelState(params, Scales(*(x for pair in pairs for x in pair)), optimiser.init(params))

    def predict(params: PyTree, scales: Scales, obs: Array, action: Array) -> tuple[Array, Array]:
        x = (jnp.concatenate([obs, action]) - scales.input_mean) / scales.input_std
        moved = change.apply(params["change"], x)
        # The change stands for the next observation, of which it is the part that the reward can see.
        r = reward.apply(params["reward"], jnp.concatenate([x, moved]))[0]
        return obs + scales.change_mean + scales.change_std * moved, scales.reward_mean + scales.reward_std * r

    fit = partial(_fit, predict=predict, optimiser=optimiser, reward_weight=reward_weight)
    return MultiStepModel(init, predict, fit)


def scales_of(steps: Transition, weight: Array) -> Scales:
    """Statistics of recorded steps.

    Args:
      steps: ``[R, ...]``.
      weight: 1 for the rows that count, 0 for the others, ``[R]``.
    """

    def moments(x: Array, least: Array | float) -> tuple[Array, Array]:
        w = weight.reshape(weight.shape + (1,) * (x.ndim - 1)) / jnp.maximum(jnp.sum(weight), 1.0)
        mean = jnp.sum(w * x, axis=0)
        std = jnp.sqrt(jnp.sum(w * jnp.square(x - mean[None]), axis=0))
        return mean, jnp.maximum(std, least)

    input_mean, input_std = moments(jnp.concatenate([steps.obs, steps.action], axis=-1), _LEAST_STD)
    least = _LEAST_CHANGE * input_std[: steps.obs.shape[-1]]
    change_mean, change_std = moments(steps.next_obs - steps.obs, least)
    reward_mean, reward_std = moments(steps.reward, _LEAST_STD)
    return Scales(input_mean, input_std, change_mean, change_std, reward_mean, reward_std)


def _fit(
    state: ModelState,
    windows_fn: WindowsFn,
    guard: Guard,
    key: Key,
    *,
    num_updates: int,
    predict: Callable[[PyTree, Scales, Array, Array], tuple[Array, Array]],
    optimiser: optax.GradientTransformation,
    reward_weight: float,
) -> tuple[ModelState, Guard, dict[str, Array]]:
    """Takes gradient steps on batches of windows; the metrics are means over the last tenth of them."""
    scales = state.scales
    loss = batched(
        partial(
            multi_step_loss,
            predict_fn=lambda params, obs, action: predict(params, scales, obs, action),
            change_scale=scales.change_std,
            reward_scale=scales.reward_std,
            reward_weight=reward_weight,
        )
    )

    def update(carry: tuple[PyTree, PyTree, Guard], step_key: Key) -> tuple[tuple[PyTree, PyTree, Guard], dict]:
        params, opt, counted = carry
        windows_key, loss_key = jax.random.split(step_key)
        grads, aux = jax.grad(loss, has_aux=True)(params, windows_fn(windows_key), loss_key)
        return apply_if_finite(optimiser, grads, opt, params, counted), aux

    start = (state.params, state.optimiser, guard)
    (params, opt, guard), errors = jax.lax.scan(update, start, jax.random.split(key, num_updates))
    late = max(1, num_updates // 10)
    metrics = jax.tree.map(lambda x: jnp.mean(x[-late:]), errors)
    return ModelState(params, scales, opt), guard, metrics
