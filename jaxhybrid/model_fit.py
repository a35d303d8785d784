"""Fitting of bootstrap ensembles: every member has rows, statistics and an early stop of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid.losses.dynamics import gaussian_nll
from jaxhybrid.ops import trees
from jaxhybrid.sharding import divides, spread
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["Bootstrap", "EnsembleState", "HeadFn", "Normaliser", "fit"]

HeadFn = Callable[[PyTree, tuple[Array, Array], Array], tuple[Array, Array]]
"""``head_fn(member_params, bounds, x [D + A]) -> (mean [O], log_variance [O])``, all of it normalised."""

# Rows per member on which the validation loss is measured; more only costs time.
_VALIDATION_ROWS = 1024
_MIN_STD = 1e-8
# Weight of the gap between the bounds of the log-variance: without it they would never close in on the data.
_BOUND_PENALTY = 0.01


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
      weight: what every row counts in the likelihood, not negative and of mean one, ``[N]``; None: one each. See
        `rollout_values.score_weights`.
    """

    transitions: Transition
    held_out: Array
    size: Array
    weight: Array | None = None


class _Rows(NamedTuple):
    """Rows of each member: inputs ``[M, b, D + A]``, targets ``[M, b, O]``; whether they count and what, ``[M, b]``."""

    x: Array
    y: Array
    use: Array
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
    reference_loss: Array  # of the last improvement by 1 %, so that small ones add up
    since_reference: Array

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
            reference_loss=loss,
            since_reference=jnp.zeros(members, jnp.int32),
        )


def fit(
    state: EnsembleState,
    data: Bootstrap,
    key: Key,
    *,
    head_fn: HeadFn,
    optimiser: optax.GradientTransformation,
    predict_reward: bool,
    batch_size: int,
    max_epochs: int,
    rolling: bool,
    persistency: float,
    patience: int,
    restore_best: bool,
) -> tuple[EnsembleState, dict[str, Array]]:
    """Fits every member to its own training rows until its validation loss stops falling.

    Args:
      state: ensemble before the fit; parameters and optimiser states continue, the normaliser is computed anew.
      data: rows; ``size`` must be at least 1, and every member needs rows of both kinds.
      key: draws the rows of every gradient step and of the validation.
      head_fn: the network of one member.
      optimiser: of members and bounds.
      predict_reward: whether the reward is one more target.
      batch_size: rows of one gradient step, per member, static.
      max_epochs: epochs after which the fit ends.
      rolling: whether a member stops when the rolling mean of its validation loss rises; False: when the loss did not
        improve by 1 % for ``patience`` epochs.
      persistency: weight of the past in the rolling mean.
      patience: epochs without improvement.
      restore_best: whether a member ends with the parameters of its best validation loss.

    Returns:
      The fitted state and the metrics ``train_loss``, ``validation_loss`` (means over members) and ``epochs``.
    """
    validation_key, epochs_key = jax.random.split(key)
    # Members have next to nothing to tell each other, rows of a batch have whole gradients.
    axis = 0 if divides(data.held_out.shape[1]) else 1
    state = state._replace(normaliser=_statistics(data, predict_reward))
    validation = spread(_validation_rows(data, predict_reward, validation_key), axis=axis)
    # As many gradient steps as a pass over the training rows of a member (four fifths of all) would take.
    steps = jnp.maximum(1, (data.size * 4) // (5 * batch_size))

    def validate(s: EnsembleState) -> Array:
        return _member_losses(s.params, s.bounds, s.normaliser, validation, head_fn)

    def epoch(progress: _Progress) -> _Progress:
        def minibatch(i: Array, carry: tuple[EnsembleState, Array]) -> tuple[EnsembleState, Array]:
            row_key = jax.random.fold_in(jax.random.fold_in(epochs_key, progress.epoch), i)
            rows = spread(_training_rows(data, predict_reward, batch_size, row_key), axis=axis)
            return _gradient_step(carry[0], rows, progress.active, head_fn=head_fn, optimiser=optimiser)

        fitted, losses = jax.lax.fori_loop(0, steps, minibatch, (progress.state, progress.train_loss))
        return judge(progress, fitted, losses, validate(fitted))

    judge = partial(_judge, rolling=rolling, persistency=persistency, patience=patience)
    first = _Progress.first(state, validate(state))
    last = jax.lax.while_loop(lambda p: jnp.any(p.active) & (p.epoch < max_epochs), epoch, first)
    state = last.state._replace(params=last.best_params) if restore_best else last.state
    metrics = {
        "train_loss": jnp.mean(last.train_loss),
        "validation_loss": jnp.mean(validate(state)),
        "epochs": last.epoch,
    }
    return state, metrics


def _member_losses(
    params: PyTree, bounds: tuple[Array, Array], normaliser: Normaliser, rows: _Rows, head_fn: HeadFn
) -> Array:
    """Mean of each member's weighted losses on its own rows, ``[M]``."""

    def row_loss(member: PyTree, stats: Normaliser, x: Array, y: Array) -> Array:
        mean, log_variance = head_fn(member, bounds, (x - stats.input_mean) / stats.input_std)
        return gaussian_nll(mean, log_variance, (y - stats.target_mean) / stats.target_std)

    losses = jax.vmap(jax.vmap(row_loss, in_axes=(None, None, 0, 0)))(params, normaliser, rows.x, rows.y)
    return jnp.sum(losses * rows.weight, axis=1) / jnp.maximum(jnp.sum(rows.use, axis=1), 1.0)


def _gradient_step(
    state: EnsembleState, rows: _Rows, active: Array, *, head_fn: HeadFn, optimiser: optax.GradientTransformation
) -> tuple[EnsembleState, Array]:
    """One step of every active member and of the shared bounds; a member whose gradient is not finite stays put."""

    def loss(trained: tuple[PyTree, tuple[Array, Array]]) -> tuple[Array, Array]:
        params, (low, high) = trained
        losses = _member_losses(params, (low, high), state.normaliser, rows, head_fn)
        width_penalty = _BOUND_PENALTY * (jnp.mean(high) - jnp.mean(low))
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
    reference = progress.reference_loss
    improved = reference - loss > 0.01 * jnp.abs(reference)
    since_reference = jnp.where(improved, 0, progress.since_reference + 1)
    goes_on = (rolling_loss <= before) if rolling else (since_reference < patience)
    return _Progress(
        state=state,
        epoch=progress.epoch + 1,
        active=progress.active & goes_on,
        train_loss=jnp.where(progress.active, train_loss, progress.train_loss),
        rolling_loss=rolling_loss,
        best_loss=jnp.where(better & progress.active, loss, progress.best_loss),
        best_params=best_params,
        reference_loss=jnp.where(improved, loss, reference),
        since_reference=since_reference,
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
    index = jnp.where(_held_out(data, index[0]), index[1], index[0])
    return _gather(data, predict_reward, index, ~_held_out(data, index))


def _validation_rows(data: Bootstrap, predict_reward: bool, key: Key) -> _Rows:
    """Draws each member's validation rows once per fit."""
    num_members = data.held_out.shape[1]
    candidates = jax.random.randint(key, (num_members, 5 * _VALIDATION_ROWS), 0, data.size)
    held_out = _held_out(data, candidates)
    order = jnp.argsort(~held_out, axis=1, stable=True)[:, :_VALIDATION_ROWS]
    return _gather(
        data, predict_reward, jnp.take_along_axis(candidates, order, 1), jnp.take_along_axis(held_out, order, 1)
    )


def _held_out(data: Bootstrap, index: Array) -> Array:
    """Whether each member validates on its rows of ``index [M, b]``."""
    return jax.vmap(lambda column, rows: column[rows], in_axes=(1, 0))(data.held_out, index)


def _gather(data: Bootstrap, predict_reward: bool, index: Array, use: Array) -> _Rows:
    x, y = _features(jax.tree.map(lambda leaf: leaf[index], data.transitions), predict_reward)
    use = use.astype(x.dtype)
    return _Rows(x, y, use, use if data.weight is None else use * data.weight[index])
