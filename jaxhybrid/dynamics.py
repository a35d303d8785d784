"""Bootstrap ensembles of probabilistic dynamics models: normalisation, prediction, trajectory sampling, fitting.

Each member maps normalised ``(obs, action)`` to a Gaussian over the normalised change of the observation (and, where
the reward is not known as a function, the reward). Members live on a leading axis ``M``; rows are grouped by member
before the call, so that a row costs one member's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import networks
from jaxhybrid.errors import unknown
from jaxhybrid.losses.dynamics import gaussian_nll, soft_clip
from jaxhybrid.ops import trees
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Array, Key, PyTree, RewardFn, StepFn, TerminatedFn, Transition

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

# Rows per member on which the validation loss is measured; more only costs time.
_VALIDATION_ROWS = 1024
_MIN_STD = 1e-8


class Normaliser(NamedTuple):
    """Mean and standard deviation of inputs ``[D + A]`` and targets ``[O]``."""

    input_mean: Array
    input_std: Array
    target_mean: Array
    target_std: Array


class EnsembleState(NamedTuple):
    """Everything about the ensemble that persists between fits.

    Attributes:
      params: network parameters, leading axis ``M``.
      bounds: soft bounds ``(low [O], high [O])`` of the log-variance, trained, shared by the members.
      normaliser: statistics of each member's own training rows, leading axis ``M``.
      optimiser: optimiser states of the members (leading axis ``M``) and of the bounds.
      nonfinite: updates that were refused so far because a gradient was not finite, ``[]``.
    """

    params: PyTree
    bounds: tuple[Array, Array]
    normaliser: Normaliser
    optimiser: tuple[PyTree, PyTree]
    nonfinite: Array


class Bootstrap(NamedTuple):
    """A buffer of real steps with each member's own split into training and validation rows.

    Attributes:
      transitions: steps, leading axis ``N`` (the capacity).
      held_out: whether a member validates on the row instead of training on it, boolean ``[N, M]``.
      size: rows that hold data, the first ones, ``[]``.
    """

    transitions: Transition
    held_out: Array
    size: Array


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
      early_stopping: "rolling" stops a member when the rolling mean of its validation loss rises (MAAC); "patience" when
        it did not improve by 1 % for ``patience`` epochs (as MBPO, but member by member).
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

    def init(key: Key) -> EnsembleState:
        params = networks.ensemble(network, num_members).init(key)
        bounds = (jnp.full((output_dim,), -10.0), jnp.full((output_dim,), 0.5))
        normaliser = Normaliser(*(jnp.full((num_members, d), v) for d in (input_dim, output_dim) for v in (0.0, 1.0)))
        return EnsembleState(
            params,
            bounds,
            normaliser,
            (jax.vmap(optimiser.init)(params), optimiser.init(bounds)),
            jnp.zeros((), jnp.int32),
        )

    def normalised(
        member: PyTree, bounds: tuple[Array, Array], normaliser: Normaliser, x: Array
    ) -> tuple[Array, Array]:
        mean, log_variance = jnp.split(network.apply(member, (x - normaliser.input_mean) / normaliser.input_std), 2)
        return mean, soft_clip(log_variance, *bounds)

    def predict(state: EnsembleState, member: Array, obs: Array, action: Array) -> Gaussian:
        params, normaliser = jax.tree.map(lambda x: x[member], (state.params, state.normaliser))
        mean, log_variance = normalised(params, state.bounds, normaliser, jnp.concatenate([obs, action]))
        log_std = log_variance if noise_exp_log_variance else 0.5 * log_variance
        scale = normaliser.target_std
        return Gaussian(mean * scale + normaliser.target_mean, log_std + jnp.log(scale))

    def row_loss(member: PyTree, bounds: tuple[Array, Array], normaliser: Normaliser, x: Array, y: Array) -> Array:
        mean, log_variance = normalised(member, bounds, normaliser, x)
        return gaussian_nll(mean, log_variance, (y - normaliser.target_mean) / normaliser.target_std)

    def member_losses(params: PyTree, bounds: tuple[Array, Array], normaliser: Normaliser, rows: _Rows) -> Array:
        """Weighted mean loss of each member on its own rows, ``[M]``."""
        over_rows = jax.vmap(row_loss, in_axes=(None, None, None, 0, 0))
        losses = jax.vmap(over_rows, in_axes=(0, None, 0, 0, 0))(params, bounds, normaliser, rows.x, rows.y)
        return jnp.sum(losses * rows.weight, axis=1) / jnp.maximum(jnp.sum(rows.weight, axis=1), 1.0)

    def gradient_step(state: EnsembleState, rows: _Rows, active: Array) -> tuple[EnsembleState, Array]:
        def loss(trained: tuple[PyTree, tuple[Array, Array]]) -> tuple[Array, Array]:
            params, (low, high) = trained
            losses = member_losses(params, (low, high), state.normaliser, rows)
            width_penalty = 0.01 * (jnp.mean(high) - jnp.mean(low))
            return jnp.sum(jnp.where(active, losses + width_penalty, 0.0)), losses

        (_, losses), (grads, bound_grads) = jax.value_and_grad(loss, has_aux=True)((state.params, state.bounds))
        finite = jax.vmap(trees.all_finite)(grads)
        updates, opt = jax.vmap(optimiser.update)(grads, state.optimiser[0], state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt = jax.vmap(trees.where)(active & finite, (params, opt), (state.params, state.optimiser[0]))
        bound_updates, bound_opt = optimiser.update(bound_grads, state.optimiser[1], state.bounds)
        bounds, bound_opt = trees.where(
            trees.all_finite(bound_grads),
            (optax.apply_updates(state.bounds, bound_updates), bound_opt),
            (state.bounds, state.optimiser[1]),
        )
        refused = jnp.sum(active & ~finite).astype(jnp.int32)
        return state._replace(
            params=params, bounds=bounds, optimiser=(opt, bound_opt), nonfinite=state.nonfinite + refused
        ), losses

    def fit(state: EnsembleState, data: Bootstrap, key: Key) -> tuple[EnsembleState, dict[str, Array]]:
        validation_key, epochs_key = jax.random.split(key)
        state = state._replace(normaliser=_statistics(data, predict_reward))
        validation = _validation_rows(data, predict_reward, validation_key)
        steps = jnp.maximum(1, (data.size * 4) // (5 * batch_size))

        def validate(s: EnsembleState) -> Array:
            return member_losses(s.params, s.bounds, s.normaliser, validation)

        def epoch(progress: _Progress) -> _Progress:
            def minibatch(i: Array, carry: tuple[EnsembleState, Array]) -> tuple[EnsembleState, Array]:
                row_key = jax.random.fold_in(jax.random.fold_in(epochs_key, progress.epoch), i)
                rows = _training_rows(data, predict_reward, batch_size, row_key)
                return gradient_step(carry[0], rows, progress.active)

            fitted, losses = jax.lax.fori_loop(0, steps, minibatch, (progress.state, progress.train_loss))
            return _judge(
                progress,
                fitted,
                losses,
                validate(fitted),
                rolling=early_stopping == "rolling",
                persistency=persistency,
                patience=patience,
            )

        first = _Progress.first(state, validate(state))
        last = jax.lax.while_loop(lambda p: jnp.any(p.active) & (p.epoch < max_epochs), epoch, first)
        if restore_best:
            state = last.state._replace(params=last.best_params)
        else:
            state = last.state
        metrics = {
            "train_loss": jnp.mean(last.train_loss),
            "validation_loss": jnp.mean(validate(state)),
            "epochs": last.epoch,
        }
        return state, metrics

    return Ensemble(init, predict, fit, num_members)


class _Rows(NamedTuple):
    """Rows of each member: inputs ``[M, b, D + A]``, targets ``[M, b, O]``, weights ``[M, b]``."""

    x: Array
    y: Array
    weight: Array


class _Progress(NamedTuple):
    """The state of a fit between epochs; ``[M]`` unless said otherwise."""

    state: EnsembleState
    epoch: Array  # []
    active: Array
    train_loss: Array
    rolling_loss: Array
    best_loss: Array
    best_params: PyTree
    since_best: Array

    @classmethod
    def first(cls, state: EnsembleState, loss: Array) -> _Progress:
        members = loss.shape
        return cls(
            state=state,
            epoch=jnp.zeros((), jnp.int32),
            active=jnp.ones(members, bool),
            train_loss=jnp.zeros(members),
            rolling_loss=jnp.full(members, jnp.nan),
            best_loss=loss,
            best_params=state.params,
            since_best=jnp.zeros(members, jnp.int32),
        )


def _judge(
    progress: _Progress,
    state: EnsembleState,
    train_loss: Array,
    loss: Array,
    *,
    rolling: bool,
    persistency: float,
    patience: int,
) -> _Progress:
    """Decides after an epoch, member by member, whether training goes on."""
    better = loss < progress.best_loss
    best_params = jax.vmap(trees.where)(better & progress.active, state.params, progress.best_params)

    # Before the first epoch the rolling mean stands above any plausible loss, so that one epoch never stops a member.
    def above(factor: float) -> Array:
        return jnp.where(loss < 0, loss / factor, loss * factor)

    is_first = jnp.isnan(progress.rolling_loss)
    before = jnp.where(is_first, above(2.0), progress.rolling_loss)
    rolling_loss = persistency * jnp.where(is_first, above(1.5), progress.rolling_loss) + (1.0 - persistency) * loss
    improved = progress.best_loss - loss > 0.01 * jnp.abs(progress.best_loss)
    since_best = jnp.where(improved, 0, progress.since_best + 1)
    goes_on = (rolling_loss <= before) if rolling else (since_best < patience)
    return _Progress(
        state=state,
        epoch=progress.epoch + 1,
        active=progress.active & goes_on,
        train_loss=jnp.where(progress.active, train_loss, progress.train_loss),
        rolling_loss=rolling_loss,
        best_loss=jnp.where(better & progress.active, loss, progress.best_loss),
        best_params=best_params,
        since_best=since_best,
    )


def _features(t: Transition, predict_reward: bool) -> tuple[Array, Array]:
    """Inputs and targets of the regression, over the last axis."""
    change = t.next_obs - t.obs
    target = jnp.concatenate([change, t.reward[..., None]], axis=-1) if predict_reward else change
    return jnp.concatenate([t.obs, t.action], axis=-1), target


def _statistics(data: Bootstrap, predict_reward: bool) -> Normaliser:
    """Mean and standard deviation of each member's training rows."""
    x, y = _features(data.transitions, predict_reward)
    filled = jnp.arange(x.shape[0])[:, None] < data.size
    weight = (filled & ~data.held_out).astype(x.dtype)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=0, keepdims=True), 1.0)

    def moments(values: Array) -> tuple[Array, Array]:
        # Centred on the mean of all rows first: the one-pass variance then loses no digits.
        centre = jnp.sum(jnp.where(filled, values, 0.0), axis=0, keepdims=True) / jnp.maximum(data.size, 1)
        values = jnp.where(filled, values - centre, 0.0)
        mean = weight.T @ values
        variance = jnp.maximum(weight.T @ jnp.square(values) - jnp.square(mean), 0.0)
        return mean + centre, jnp.sqrt(variance) + _MIN_STD

    return Normaliser(*moments(x), *moments(y))


def _training_rows(data: Bootstrap, predict_reward: bool, batch_size: int, key: Key) -> _Rows:
    """Draws each member's minibatch with replacement; held-out rows are replaced once, then weighted zero."""
    num_members = data.held_out.shape[1]
    index = jax.random.randint(key, (2, num_members, batch_size), 0, data.size)
    member = jnp.arange(num_members)[:, None]
    index = jnp.where(data.held_out[index[0], member], index[1], index[0])
    return _gather(data, predict_reward, index, ~data.held_out[index, member])


def _validation_rows(data: Bootstrap, predict_reward: bool, key: Key) -> _Rows:
    """Draws each member's validation rows once per fit."""
    num_members = data.held_out.shape[1]
    candidates = jax.random.randint(key, (num_members, 5 * _VALIDATION_ROWS), 0, data.size)
    held_out = data.held_out[candidates, jnp.arange(num_members)[:, None]]
    order = jnp.argsort(~held_out, axis=1, stable=True)[:, :_VALIDATION_ROWS]
    return _gather(
        data, predict_reward, jnp.take_along_axis(candidates, order, 1), jnp.take_along_axis(held_out, order, 1)
    )


def _gather(data: Bootstrap, predict_reward: bool, index: Array, use: Array) -> _Rows:
    x, y = _features(jax.tree.map(lambda leaf: leaf[index], data.transitions), predict_reward)
    return _Rows(x, y, use.astype(x.dtype))


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
