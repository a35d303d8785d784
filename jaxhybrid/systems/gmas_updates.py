"""What one gradient update of GMAS does: seven losses on one batch, each with a step of its own or all with one.

The algorithm's outer loop is in `systems.gmas`, the networks and optimisers in `systems.gmas_parts`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.abstract_networks import AbstractNetworks
from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.guard import Guard
from jaxhybrid.losses import abstract, gradient_matching
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.critic import squared_error
from jaxhybrid.ops import trees
from jaxhybrid.planning import tree
from jaxhybrid.systems.gmas_config import Config
from jaxhybrid.systems.gmas_parts import LOSSES, Parts
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = [
    "Learner",
    "depth_errors",
    "depth_weights",
    "init_learner",
    "plan",
    "update",
]

_ERROR_ROWS = 64  # paths on which the model's error is measured, once per iteration


class Learner(NamedTuple):
    """What a gradient update changes.

    Attributes:
      params: of the networks, by the names in `AbstractNetworks`.
      target_params: slow copies of encoder and critic.
      opts: optimiser states, by loss, or one for all.
      updates: done so far, ``[]``.
      guard: counts of refused updates.
    """

    params: dict[str, PyTree]
    target_params: dict[str, PyTree]
    opts: dict[str, PyTree]
    updates: Array
    guard: Guard


def init_learner(parts: Parts, key: Key) -> Learner:
    """Draws the first parameters; the slow ones start as copies."""
    names = AbstractNetworks._fields
    keys = jax.random.split(key, len(names))
    params = {name: network.init(k) for name, network, k in zip(names, parts.nets, keys, strict=True)}
    opts = {
        name: optimiser.init({part: params[part] for part in LOSSES.get(name, names)})
        for name, optimiser in parts.optimisers.items()
    }
    target_params = {name: jax.tree.map(jnp.copy, params[name]) for name in ("encoder", "critic")}
    return Learner(params, target_params, opts, jnp.zeros((), jnp.int32), Guard.new())


def plan(
    nets: AbstractNetworks,
    params: dict[str, PyTree],
    critic_params: PyTree,
    z: Array,
    *,
    depth: int,
    branching: int | None,
    action: Array | None = None,
) -> Array:
    """Values of all depths from an abstract state, ``[D+1, A]``, or ``[D+1]`` of one action.

    Args:
      nets: those of `Parts` that act, or those that learn.
      params: of dynamics, reward and discount.
      critic_params: of the critic at the leaves: the fast one acts, the slow one gives the target of a slope.
      z: abstract state.
      depth: model steps.
      branching: actions that are expanded below the root.
      action: the one whose values are wanted; None for all.
    """
    num_actions = jax.eval_shape(nets.critic.apply, critic_params, z).shape[-1]
    options: dict[str, Any] = {
        "q_fn": partial(nets.critic.apply, critic_params),
        "dynamics_fn": partial(nets.dynamics.apply, params["dynamics"]),
        "reward_fn": partial(nets.reward.apply, params["reward"]),
        "discount_fn": partial(nets.discount.apply, params["discount"]),
        "depth": depth,
        # A preset's branching may exceed the few actions of a small task.
        "branching": None if branching is None else min(branching, num_actions),
    }
    return tree.plan_values(z, **options) if action is None else tree.action_values(z, action, **options)


def update(
    parts: Parts, learner: Learner, rows: Transition, weights: Array, learning_rate: Array, key: Key
) -> tuple[Learner, dict[str, Array]]:
    """One update on a batch of steps as they are stored; refused as a whole if anything in it is not finite.

    Args:
      parts: of the system.
      learner: to change.
      rows: steps, ``[B, ...]``.
      weights: of the planner's depths, ``[D+1]``.
      learning_rate: step size, ``[]``.
      key: unused by the losses of this system, which draw nothing.

    Returns:
      ``(learner, metrics)``.
    """
    config = parts.config
    batch = _seen(config, rows)
    view = parts.view(batch.obs, batch.next_obs)
    due = learner.updates % config.target_interval == 0
    metrics: dict[str, Array] = {}
    params, opts = dict(learner.params), dict(learner.opts)
    target_params = learner.target_params
    finite, squares = jnp.ones((), bool), jnp.zeros(())
    for name, optimiser in parts.optimisers.items():
        names = [name] if name in LOSSES else list(LOSSES)
        if "critic" in names:
            latest = {part: params[part] for part in target_params}
            target_params = trees.where(due, latest, target_params)
        loss = partial(_total, parts, params, target_params, names, batch, view, weights, key)
        touched = {part: params[part] for part in LOSSES.get(name, params)}
        (_, logged), grads = jax.value_and_grad(loss, has_aux=True)(touched)
        updates, opts[name] = optimiser.update(grads, opts[name])
        rate = learning_rate * (config.beta if name == "consecutive_pairs" else 1.0)
        touched = jax.tree.map(lambda p, u, rate=rate: p - rate * u, touched, updates)
        finite &= trees.all_finite((grads, touched))
        params |= touched
        squares += jnp.square(trees.norm(grads))
        metrics |= logged
    if config.diagnose_parts:
        metrics["critic/snr"] = _signal(parts, learner, rows, weights, key)
    # Where each loss takes a step of its own, the length of all their gradients together.
    metrics |= {"update/grad_norm": jnp.sqrt(squares), "update/ratio": trees.relative_change(learner.params, params)}
    refused = (~finite).astype(jnp.int32)
    guard = Guard(learner.guard.refused + refused, (learner.guard.streak + 1) * refused)
    changed = Learner(params, target_params, opts, learner.updates, guard)
    # A slow copy that is due is taken even if the update is refused, of what there was before it.
    before = {part: learner.params[part] for part in target_params}
    unchanged = learner._replace(target_params=trees.where(due, before, learner.target_params), guard=guard)
    kept = trees.where(finite, changed, unchanged)
    return kept._replace(updates=learner.updates + 1), metrics


def _signal(parts: Parts, learner: Learner, rows: Transition, weights: Array, key: Key) -> Array:
    """Signal-to-noise ratio of the gradient of the critic's loss, ``[]``; see `gradient_snr`."""

    def gradient(touched: dict[str, PyTree], part: Transition, part_key: Key) -> PyTree:
        batch = _seen(parts.config, part)
        view = parts.view(batch.obs, batch.next_obs)
        fixed = (parts, learner.params, learner.target_params, ["critic"], batch, view, weights, part_key)
        return jax.grad(partial(_total, *fixed), has_aux=True)(touched)[0]

    touched = {part: learner.params[part] for part in LOSSES["critic"]}
    _, aux = gradient_snr(gradient, touched, rows, key, num_parts=parts.config.diagnose_parts)
    return aux["snr"]


def _total(
    parts: Parts,
    params: dict[str, PyTree],
    target_params: dict[str, PyTree],
    names: list[str],
    batch: Transition,
    view: PyTree,
    weights: Array,
    key: Key,
    touched: dict[str, PyTree],
) -> tuple[Array, dict[str, Array]]:
    """Sum of some losses as a function of the parameters that they change; the others are constants."""
    # Encoded here, once for all losses, which find an encoder that returns what it is given.
    z, next_z = parts.encode(touched["encoder"], view)
    encoded = batch._replace(obs=z, next_obs=next_z)
    targets = _td_targets(parts, params, target_params, encoded, view) if "critic" in names else None
    total, metrics = jnp.zeros(()), dict[str, Array]()
    for name in names:
        examples: PyTree = {
            "volume": encoded.obs,
            "random_pairs": abstract.rolled_pairs(encoded.obs),
            "consecutive_pairs": (encoded.obs, encoded.next_obs),
            "critic": (encoded.obs, batch.action, targets),
        }.get(name, encoded)
        value, aux = batched(_loss(parts, params, target_params, name, weights))(touched, examples, key)
        weight = parts.config.beta if name == "consecutive_pairs" and len(names) > 1 else 1.0
        total += weight * value
        metrics |= {f"loss/{name}": value} | {f"{name}/{item}": x for item, x in aux.items()}
    return total, metrics


def _loss(parts: Parts, params: dict[str, PyTree], target_params: dict[str, PyTree], name: str, weights: Array) -> Any:
    """One loss of one example whose observations are encoded already, with everything but its parameters bound."""
    config, nets = parts.config, parts.nets

    def model_fn(part: str) -> Callable[..., Array]:
        return lambda p, z, action: getattr(nets, part).apply(p[part], z, action)

    predict: dict[str, Any] = {"encode_fn": _given, "error": config.error}
    repel = partial(
        abstract.disambiguation_loss, encode_fn=_given, sharpness=config.sharpness, max_square=config.max_square
    )
    losses: dict[str, Any] = {
        "transition": partial(abstract.transition_loss, dynamics_fn=model_fn("dynamics"), **predict),
        "reward": partial(abstract.reward_loss, reward_fn=model_fn("reward"), **predict),
        "discount": partial(abstract.discount_loss, discount_fn=model_fn("discount"), gamma=config.gamma, **predict),
        "volume": partial(abstract.volume_loss, encode_fn=_given, bound=config.volume_bound),
        "random_pairs": repel,
        "consecutive_pairs": repel,
        "critic": partial(_critic_loss, parts, params, target_params, weights),
    }
    return losses[name]


def _given(_: PyTree, z: Array) -> Array:
    return z


def _td_targets(
    parts: Parts, params: dict[str, PyTree], target_params: dict[str, PyTree], encoded: Transition, view: PyTree
) -> Array:
    """Double-Q targets ``r + gamma d Q_slow(e_slow(s'), argmax_a Q(e(s'), a))``, ``[B]``."""

    def values(p: dict[str, PyTree], z: Array) -> Array:
        return jax.vmap(partial(parts.nets.critic.apply, p["critic"]))(z)

    best = jnp.argmax(values(params, encoded.next_obs), axis=-1)
    slow = values(target_params, parts.encode(target_params["encoder"], view)[1])
    bootstrap = jnp.take_along_axis(slow, best[:, None], axis=-1)[:, 0]
    return encoded.reward + parts.config.gamma * encoded.discount * bootstrap


def _critic_loss(
    parts: Parts,
    params: dict[str, PyTree],
    target_params: dict[str, PyTree],
    weights: Array,
    touched: dict[str, PyTree],
    example: tuple[Array, Array, Array],
    key: Key,
) -> tuple[Array, dict[str, Array]]:
    """``(Q(e(s), a) - Y)^2 + alpha dist(slope of the planner, slope of the critic)``, equation 7 of GMAS."""
    config, nets = parts.config, parts.nets

    def q_fn(p: dict[str, PyTree], z: Array) -> Array:
        return nets.critic.apply(p["critic"], z)

    td_loss, metrics = squared_error(touched, example, key, q_fn=lambda p, z, action: q_fn(p, z)[action])
    loss = td_loss / parts.num_actions if config.mean_td else td_loss
    metrics["td"] = td_loss
    # A weight that is swept is traced, and then the slopes are there even where it is zero.
    if isinstance(config.alpha, float) and config.alpha == 0.0:
        return loss, metrics

    def plan_fn(z: Array, action: Array) -> Array:
        values = plan(
            nets,
            params,
            target_params["critic"],
            z,
            depth=config.match_depth,
            branching=config.match_branching,
            action=action,
        )
        return tree.plan_q(values, weights)

    distance, aux = gradient_matching.gradient_matching_loss(
        touched,
        example[:2],
        key,
        encode_fn=_given,
        q_fn=q_fn,
        plan_fn=plan_fn,
        distance=config.distance,
        match_actions=config.match_actions,
    )
    return loss + config.alpha * distance, metrics | {"slope_distance": distance} | aux


def depth_weights(parts: Parts, params: dict[str, PyTree], data: Transition, key: Key) -> Array:
    """Weights of the planner's depths ``[D+1]``: the paper's mean, or one of its proposals against model error."""
    config = parts.config
    if config.depth_weighting == "uniform" or config.match_depth == 0:  # one depth has nothing to be weighed against
        return jnp.ones(config.match_depth + 1)
    if config.depth_weighting == "discounted":
        return gradient_matching.discounted_depths(config.match_depth, config.depth_decay)
    errors = depth_errors(parts, params, data, key)
    if config.depth_weighting == "inverse_error":
        return gradient_matching.inverse_error_depths(errors, config.error_scale)
    return gradient_matching.accurate_depths(errors, config.error_threshold)


def depth_errors(parts: Parts, params: dict[str, PyTree], data: Transition, key: Key) -> Array:
    """How far the model's abstract state is from the real one after ``d`` recorded steps, ``[D+1]``.

    ``sqrt(E ||tau^d(e(s)) - e(s_d)||^2 / E ||e(s_d) - E e(s_d)||^2)``, over paths that no end of an episode crosses: 0
    is a perfect model, 1 one that knows no more than the mean.
    """
    depth, nets = parts.config.match_depth, parts.acting
    starts = jax.random.randint(key, (_ERROR_ROWS,), 0, data.reward.shape[0] - depth)

    def path(start: Array) -> tuple[Array, Array, Array]:
        window = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, depth), data)
        steps = _seen(parts.config, window)
        encode = partial(nets.encoder.apply, params["encoder"])

        def advance(z: Array, action: Array) -> tuple[Array, Array]:
            z = nets.dynamics.apply(params["dynamics"], z, action)
            return z, z

        _, predicted = jax.lax.scan(advance, encode(steps.obs[0]), steps.action)
        # A time limit leaves the discount at 1: what tells it is that the next step starts elsewhere.
        follows = jnp.all(window.obs[1:] == window.next_obs[:-1], axis=tuple(range(1, window.obs.ndim)))
        alive = jnp.cumprod(steps.discount * jnp.append(True, follows))
        return predicted, jax.vmap(encode)(steps.next_obs), alive

    predicted, real, alive = jax.vmap(path)(starts)  # [N, D, ...], [N, D, ...], [N, D]
    count = jnp.maximum(jnp.sum(alive, axis=0), 1.0)

    def mean(x: Array) -> Array:
        return jnp.sum(alive * jnp.sum(jnp.square(x), axis=tuple(range(2, x.ndim))), axis=0) / count

    mask = alive.reshape((*alive.shape, *[1] * (real.ndim - 2)))
    centre = jnp.sum(mask * real, axis=0) / count.reshape((-1, *[1] * (real.ndim - 2)))
    errors = jnp.sqrt(mean(predicted - real) / jnp.maximum(mean(real - centre[None]), 1e-12))
    return jnp.concatenate([jnp.zeros(1), errors])


def _seen(config: Config, rows: Transition) -> Transition:
    """Steps as the networks see them; nothing is there in blank pictures and in blank cells."""
    obs, next_obs = rows.obs.astype(jnp.float32), rows.next_obs.astype(jnp.float32)
    if config.blank_terminal:
        next_obs = next_obs * rows.discount[:, None, None]
    return rows._replace(obs=obs, next_obs=next_obs)
