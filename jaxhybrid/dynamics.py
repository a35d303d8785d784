"""Bootstrap ensembles of probabilistic dynamics models: prediction, trajectory sampling, and the step function.

Each member maps normalised ``(obs, action)`` to a Gaussian over the normalised change of the observation (and, where
the reward is not known as a function, the reward). Members live on a leading axis ``M``; rows are grouped by member
before the call, so that a row costs one member's arithmetic. `model_fit` fits them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import model_fit, networks
from jaxhybrid.errors import unknown
from jaxhybrid.losses.dynamics import soft_clip
from jaxhybrid.model_fit import Bootstrap, EnsembleState, HeadFn, Normaliser
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Array, Key, PyTree, RewardFn, StepFn, TerminatedFn

__all__ = [
    "Bootstrap",
    "Ensemble",
    "EnsembleState",
    "Normaliser",
    "StepNoise",
    "make_ensemble",
    "member_schedule",
    "model_step",
]

# Soft bounds of the normalised log-variance before any fit: from noise that does not matter to noise that is all.
_FIRST_BOUNDS = (-10.0, 0.5)


class StepNoise(NamedTuple):
    """Noise of one model step: which member predicts, and the draw of its Gaussian."""

    member: Array
    key: Key


class Ensemble(NamedTuple):
    """A bootstrap ensemble as functions.

    Attributes:
      init: ``init(key) -> EnsembleState``.
      predict: ``predict(state, member [], obs [D], action [A]) -> Gaussian`` over the change of the observation and, if
        it is modelled, the reward, in the units of the environment, ``[O]``.
      fit: ``fit(state, data: Bootstrap, key) -> (state, metrics)``.
      num_members: ``M``.
    """

    init: Callable[[Key], EnsembleState]
    predict: Callable[[EnsembleState, Array, Array, Array], Gaussian]
    fit: Callable[[EnsembleState, Bootstrap, Key], tuple[EnsembleState, dict[str, Array]]]
    num_members: int


def make_ensemble(
    obs_dim: int,
    action_dim: int,
    *,
    num_members: int,
    hidden: Sequence[int] = (200, 200, 200, 200),
    activation: str = "swish",
    predict_reward: bool = False,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    max_epochs: int = 200,
    early_stopping: Literal["rolling", "patience"] = "rolling",
    persistency: float = 0.9,
    patience: int = 5,
    restore_best: bool = True,
    noise_exp_log_variance: bool = False,
) -> Ensemble:
    """Builds a bootstrap ensemble of Gaussian networks.

    Args:
      obs_dim: ``D``.
      action_dim: ``A``.
      num_members: ``M``.
      hidden: widths of each member's hidden layers.
      activation: name in `networks.ACTIVATIONS`.
      predict_reward: whether members predict the reward as one more output.
      learning_rate: of Adam, for members and bounds.
      batch_size: rows of one gradient step, per member.
      max_epochs: epochs after which a fit ends even if the validation loss still falls.
      early_stopping: "rolling" stops a member when the rolling mean of its validation loss rises (MAAC); "patience"
        when it did not improve by 1 % for ``patience`` epochs (as MBPO, but member by member).
      persistency: weight of the past in the rolling mean.
      patience: epochs without improvement.
      restore_best: whether a member ends with the parameters of its best validation loss (the released MAAC keeps the
        last ones).
      noise_exp_log_variance: samples with ``exp(log_variance)`` in the place of the standard deviation, a slip of the
        released MAAC.

    Returns:
      The `Ensemble`.

    Raises:
      InputError: an unknown ``activation`` or ``early_stopping``.

    Source: MAAC, section 4.3; Chua et al. 2018, section 4.
    """
    if early_stopping not in ("rolling", "patience"):
        raise unknown("early_stopping", early_stopping, ("rolling", "patience"))
    input_dim, output_dim = obs_dim + action_dim, obs_dim + int(predict_reward)
    network = networks.mlp(input_dim, hidden, 2 * output_dim, activation=activation)
    optimiser = optax.adam(learning_rate)

    def head(member: PyTree, bounds: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
        mean, log_variance = jnp.split(network.apply(member, x), 2)
        return mean, soft_clip(log_variance, *bounds)

    fit = partial(
        model_fit.fit,
        head_fn=head,
        optimiser=optimiser,
        predict_reward=predict_reward,
        batch_size=batch_size,
        max_epochs=max_epochs,
        rolling=early_stopping == "rolling",
        persistency=persistency,
        patience=patience,
        restore_best=restore_best,
    )
    return Ensemble(
        init=partial(
            _init, several=networks.ensemble(network, num_members), optimiser=optimiser, dims=(input_dim, output_dim)
        ),
        predict=partial(_predict, head_fn=head, noise_exp_log_variance=noise_exp_log_variance),
        fit=fit,
        num_members=num_members,
    )


def _init(
    key: Key, *, several: networks.Network, optimiser: optax.GradientTransformation, dims: tuple[int, int]
) -> EnsembleState:
    params = several.init(key)
    num_members = jax.tree.leaves(params)[0].shape[0]
    low, high = (jnp.full((dims[1],), bound) for bound in _FIRST_BOUNDS)
    return EnsembleState(
        params=params,
        bounds=(low, high),
        normaliser=Normaliser(*(jnp.full((num_members, dim), value) for dim in dims for value in (0.0, 1.0))),
        optimiser=(jax.vmap(optimiser.init)(params), optimiser.init((low, high))),
        nonfinite=jnp.zeros((), jnp.int32),
    )


def _predict(
    state: EnsembleState,
    member: Array,
    obs: Array,
    action: Array,
    *,
    head_fn: HeadFn,
    noise_exp_log_variance: bool,
) -> Gaussian:
    params, stats = jax.tree.map(lambda x: x[member], (state.params, state.normaliser))
    x = (jnp.concatenate([obs, action]) - stats.input_mean) / stats.input_std
    mean, log_variance = head_fn(params, state.bounds, x)
    log_std = log_variance if noise_exp_log_variance else 0.5 * log_variance
    return Gaussian(mean * stats.target_std + stats.target_mean, log_std + jnp.log(stats.target_std))


def member_schedule(key: Key, num_members: int, horizon: int, scheme: Literal["ts1", "tsinf"]) -> Array:
    """Which member predicts each step of each group of rows, ``[M, H]``; at every step each member serves one group.

    "tsinf" keeps a group with its member along the path, "ts1" deals the members anew at every step, so that a row's
    members are independent and uniform from step to step.

    Args:
      key: draw of the deals.
      num_members: ``M``, also the number of groups.
      horizon: ``H``.
      scheme: "ts1" or "tsinf".

    Raises:
      InputError: an unknown ``scheme``.

    Source: Chua et al. 2018, section 5.1.
    """
    if scheme == "tsinf":
        return jnp.broadcast_to(jnp.arange(num_members)[:, None], (num_members, horizon))
    if scheme == "ts1":
        deal = jax.vmap(lambda k: jax.random.permutation(k, num_members))
        return deal(jax.random.split(key, horizon)).T
    raise unknown("trajectory_sampling", scheme, ("ts1", "tsinf"))


def model_step(
    ensemble: Ensemble,
    state: EnsembleState,
    *,
    reward_fn: RewardFn | None = None,
    terminated_fn: TerminatedFn | None = None,
    obs_limit: float = jnp.inf,
) -> StepFn:
    """Binds a fitted ensemble to a step function, ``step_fn(obs, action, StepNoise) -> (next_obs, reward, discount)``.

    Differentiable in ``obs`` and ``action``. Under ``vmap`` batch ``StepNoise.member`` on an outer axis and the rows of
    a group on an inner one: a member per row would gather a copy of the weights per row.

    Args:
      ensemble: the ensemble.
      state: its fitted state.
      reward_fn: known reward; None takes the predicted one (the ensemble must predict it).
      terminated_fn: known termination; None means that episodes do not terminate.
      obs_limit: predicted observations are clipped to ``[-obs_limit, obs_limit]``.
    """

    def step(obs: Array, action: Array, noise: Any) -> tuple[Array, Array, Array]:
        outcome = ensemble.predict(state, noise.member, obs, action).sample(noise.key)
        obs_dim = obs.shape[0]
        next_obs = jnp.clip(obs + outcome[:obs_dim], -obs_limit, obs_limit)
        reward = outcome[obs_dim] if reward_fn is None else reward_fn(obs, action, next_obs)
        ended = jnp.asarray(False) if terminated_fn is None else terminated_fn(obs, action, next_obs)
        return next_obs, reward, 1.0 - ended.astype(reward.dtype)

    return step
