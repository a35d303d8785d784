"""What one gradient update of MAAC does: imagined data, the actor's loss, the critics' targets, the step itself.

The algorithm's outer loop is in `systems.maac`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import dynamics, networks
from jaxhybrid.dynamics import Ensemble, EnsembleState, StepNoise
from jaxhybrid.envs import mbbl
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.losses import critic as critic_losses
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.ops import trees
from jaxhybrid.replay import Replay, make_replay
from jaxhybrid.rollout import unroll
from jaxhybrid.sharding import spread
from jaxhybrid.systems.maac_config import Config
from jaxhybrid.types import Array, EnvSpec, Key, PyTree, StepFn, Transition

__all__ = [
    "FIT_METRICS",
    "UPDATE_METRICS",
    "Learner",
    "Parts",
    "actor_loss",
    "blank_transition",
    "critic_targets",
    "grouped",
    "imagine",
    "init_learner",
    "make_parts",
    "make_step_fn",
    "model_reward",
    "no_model",
    "sample",
    "update",
]

FIT_METRICS = ("model/epochs", "model/train_loss", "model/validation_loss")
UPDATE_METRICS = (
    "actor/entropy",
    "actor/grad_norm",
    "actor/update_ratio",
    "actor/value",
    "critic/effective_horizon",
    "critic/grad_norm",
    "critic/loss",
    "critic/model_weight",
    "critic/q",
    "critic/update_ratio",
    "temperature",
)


class Learner(NamedTuple):
    """What a gradient update changes."""

    policy_params: PyTree
    critic_params: PyTree
    target_params: PyTree
    log_temperature: Array
    policy_opt: PyTree
    critic_opt: PyTree
    temperature_opt: PyTree
    guard: Guard


class Parts(NamedTuple):
    """The pure functions that an iteration is composed of; nothing here changes during a run."""

    config: Config
    spec: EnvSpec
    policy: networks.Network
    critic: networks.Network
    ensemble: Ensemble
    optimiser: optax.GradientTransformation
    target_entropy: float
    real_replay: Replay
    model_replay: Replay


def make_parts(config: Config, spec: EnvSpec) -> Parts:
    """Builds networks, ensemble, optimiser and replay for an environment."""
    return Parts(
        config=config,
        spec=spec,
        policy=networks.gaussian_policy(
            spec.obs_dim,
            spec.action_dim,
            config.policy_hidden,
            activation=config.policy_activation,
            squash=spec.bounded,
        ),
        critic=networks.critics(
            spec.obs_dim, spec.action_dim, config.critic_hidden, activation=config.critic_activation
        ),
        ensemble=dynamics.make_ensemble(
            spec.obs_dim,
            spec.action_dim,
            num_members=config.ensemble_size,
            hidden=config.model_hidden,
            activation=config.model_activation,
            predict_reward=model_reward(config, spec) is None,
            learning_rate=config.model_learning_rate,
            batch_size=config.model_batch_size,
            max_epochs=config.model_max_epochs,
            early_stopping=config.early_stopping,
            persistency=config.persistency,
            patience=config.patience,
            restore_best=config.restore_best,
            noise_exp_log_variance=config.noise_exp_log_variance,
        ),
        optimiser=optax.adam(config.learning_rate),
        target_entropy=-float(spec.action_dim) if config.target_entropy is None else config.target_entropy,
        real_replay=make_replay(config.real_capacity),
        model_replay=make_replay(config.model_capacity),
    )


def model_reward(config: Config, spec: EnvSpec) -> Any:
    """The reward inside the model: the environment's own, or the one that the released code's actor optimised."""
    if config.model_reward_on == "env":
        return spec.reward_fn
    task = spec.name.removeprefix("mbbl/").split("/")[0]
    return mbbl.reward_fn(task, reward_on="released")


def init_learner(parts: Parts, key: Key) -> Learner:
    """Draws the first parameters; the slow critics start as copies of the fast ones."""
    policy_key, critic_key = jax.random.split(key)
    policy_params, critic_params = parts.policy.init(policy_key), parts.critic.init(critic_key)
    log_temperature = jnp.log(jnp.asarray(parts.config.initial_temperature, jnp.float32))
    return Learner(
        policy_params=policy_params,
        critic_params=critic_params,
        target_params=jax.tree.map(jnp.copy, critic_params),
        log_temperature=log_temperature,
        policy_opt=parts.optimiser.init(policy_params),
        critic_opt=parts.optimiser.init(critic_params),
        temperature_opt=parts.optimiser.init(log_temperature),
        guard=Guard.new(),
    )


def blank_transition(spec: EnvSpec) -> Transition:
    """A step of zeros, which gives replay its shapes."""
    obs, scalar = jnp.zeros((spec.obs_dim,)), jnp.zeros(())
    return Transition(obs, jnp.zeros((spec.action_dim,)), scalar, scalar, obs)


def no_model(obs: Array, action: Array, noise: Any) -> tuple[Array, Array, Array]:
    """Stands where no ingredient takes a model step; taking one is a mistake of ours."""
    raise AssertionError("a model step was taken by a configuration that needs no model")


def make_step_fn(parts: Parts, ensemble: EnsembleState) -> StepFn:
    """Binds the fitted ensemble and the known reward and termination to a model step."""
    return dynamics.model_step(
        parts.ensemble,
        ensemble,
        reward_fn=model_reward(parts.config, parts.spec),
        terminated_fn=parts.spec.terminated_fn,
        obs_limit=parts.config.obs_limit,
    )


def grouped(rows: PyTree, num_members: int) -> PyTree:
    """Deals rows ``[B, ...]`` to members ``[M, B / M, ...]`` in turn, so that every member sees every kind of row."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape((-1, num_members) + x.shape[1:]), 0, 1), rows)


def imagine(
    parts: Parts, step_fn: StepFn, learner: Learner, replay: Any, imagined: Any, iteration: Array, key: Key
) -> Any:
    """Branches model roll-outs off real states and stores every step of them."""
    config, members = parts.config, parts.ensemble.num_members
    policy_fn = partial(parts.policy.apply, learner.policy_params)
    start_key, loop_key = jax.random.split(key)

    def starts(k: Key) -> Array:
        return grouped(parts.real_replay.sample(replay, k, config.model_rollouts)[0].obs, members)

    def one(obs: Array, member: Array, k: Key) -> Transition:
        action_key, model_key = jax.random.split(k)
        action = policy_fn(obs).sample(action_key)
        next_obs, reward, discount = step_fn(obs, action, StepNoise(member, model_key))
        return Transition(obs, action, reward, discount, next_obs)

    def body(h: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        obs, buffer = carry
        deal_key, rows_key, fresh_key = jax.random.split(jax.random.fold_in(loop_key, h), 3)
        member = dynamics.member_schedule(deal_key, members, 1, config.trajectory_sampling)[:, 0]
        keys = jax.random.split(rows_key, obs.shape[:2])
        rows = jax.vmap(jax.vmap(one, in_axes=(0, None, 0)))(obs, member, keys)
        buffer = parts.model_replay.add(buffer, jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), rows))
        # A path that ended makes room for a new one; the released code starts every step from a real state.
        ended = jnp.full_like(rows.discount, True, bool) if config.one_step_rollouts else rows.discount == 0
        return jnp.where(ended[..., None], starts(fresh_key), rows.next_obs), buffer

    length = config.rollout_schedule.length(iteration)
    return jax.lax.fori_loop(0, length, body, (starts(start_key), imagined))[1]


def sample(parts: Parts, replay: Any, imagined: Any, key: Key) -> Transition:
    """Draws a batch of ``batch_size`` rows, a fixed share of them real."""
    real_key, model_key = jax.random.split(key)
    real, model = parts.config.real_batch_size, parts.config.batch_size - parts.config.real_batch_size
    drawn = []
    if real:
        drawn.append(parts.real_replay.sample(replay, real_key, real)[0])
    if model:
        drawn.append(parts.model_replay.sample(imagined, model_key, model))
    return spread(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn))


def update(
    parts: Parts, step_fn: StepFn, learner: Learner, batch: Transition, key: Key
) -> tuple[Learner, dict[str, Array]]:
    """One simultaneous update of actor, critics and temperature, all from the same parameters."""
    config = parts.config
    policy_key, target_key, critic_key, temperature_key = jax.random.split(key, 4)
    temperature = jnp.exp(learner.log_temperature)

    (_, policy_aux), policy_grads = jax.value_and_grad(actor_loss, has_aux=True)(
        learner.policy_params, batch.obs, policy_key, parts=parts, step_fn=step_fn, learner=learner
    )
    targets, targets_aux = critic_targets(parts, step_fn, learner, batch, target_key)
    critic_loss = batched(partial(critic_losses.squared_error, q_fn=parts.critic.apply))
    (critic_value, critic_aux), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(
        learner.critic_params, (batch.obs, batch.action, targets), critic_key
    )
    temperature_loss = partial(critic_losses.entropy_temperature_loss, target_entropy=parts.target_entropy)
    temperature_grad, _ = jax.grad(temperature_loss, has_aux=True)(
        learner.log_temperature, policy_aux["log_prob"], temperature_key
    )

    grads = (policy_grads, critic_grads, temperature_grad)
    params = (learner.policy_params, learner.critic_params, learner.log_temperature)
    opts = (learner.policy_opt, learner.critic_opt, learner.temperature_opt)
    (policy_params, critic_params, log_temperature), opts, guard = apply_if_finite(
        _jointly(parts.optimiser), grads, opts, params, learner.guard
    )
    due = (optax.tree.get(opts[1], "count") % config.target_update_interval) == 0
    target_params = trees.lerp(learner.target_params, critic_params, jnp.where(due, config.target_rate, 0.0))
    metrics = {
        "actor/value": policy_aux["value"],
        "actor/entropy": -policy_aux["log_prob"],
        "actor/grad_norm": trees.norm(policy_grads),
        "actor/update_ratio": trees.relative_change(learner.policy_params, policy_params),
        "critic/loss": critic_value,
        "critic/q": critic_aux["q"],
        "critic/grad_norm": trees.norm(critic_grads),
        "critic/update_ratio": trees.relative_change(learner.critic_params, critic_params),
        "temperature": temperature,
    } | {f"critic/{name}": value for name, value in targets_aux.items()}
    return Learner(
        policy_params=policy_params,
        critic_params=critic_params,
        target_params=target_params,
        log_temperature=log_temperature,
        policy_opt=opts[0],
        critic_opt=opts[1],
        temperature_opt=opts[2],
        guard=guard,
    ), metrics


def _jointly(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser on each of several parameter groups, with a state of its own each."""

    def update(grads: tuple, states: tuple, params: tuple) -> tuple[tuple, tuple]:
        pairs = [optimiser.update(g, s, p) for g, s, p in zip(grads, states, params, strict=True)]
        return tuple(u for u, _ in pairs), tuple(s for _, s in pairs)

    return optax.GradientTransformation(lambda params: tuple(map(optimiser.init, params)), update)


def actor_loss(
    policy_params: PyTree, obs: Array, key: Key, *, parts: Parts, step_fn: StepFn, learner: Learner
) -> tuple[Array, dict[str, Array]]:
    """Mean of `maac_loss` over the batch, ``num_paths`` paths from each state, rows grouped by model member."""
    config, members = parts.config, parts.ensemble.num_members
    loss = partial(
        maac_loss,
        policy_fn=parts.policy.apply,
        step_fn=step_fn,
        q_fn=partial(parts.critic.apply, learner.critic_params),
        horizon=config.horizon,
        gamma=config.gamma,
        temperature=jnp.exp(learner.log_temperature),
        num_terminal_actions=config.num_terminal_actions,
    )
    # Paths of one state are dealt to different members: path p is shifted by p rows, and rows go round the members.
    obs = jnp.concatenate([jnp.roll(obs, path, axis=0) for path in range(config.num_paths)])
    if config.horizon == 0:
        return batched(loss)(policy_params, obs, key)
    deal_key, model_key, path_key = jax.random.split(key, 3)
    groups = grouped(obs, members)
    member = dynamics.member_schedule(deal_key, members, config.horizon, config.trajectory_sampling)
    model_keys = jax.random.split(model_key, (*groups.shape[:2], config.horizon))
    path_keys = jax.random.split(path_key, groups.shape[:2])

    def row(o: Array, m: Array, noise_keys: Key, k: Key) -> tuple[Array, dict[str, Array]]:
        # maac_loss has an axis of paths, here of length one.
        return loss(policy_params, o, k, step_noise=StepNoise(m[None], noise_keys[None]))

    values, aux = jax.vmap(jax.vmap(row, in_axes=(0, None, 0, 0)))(groups, member, model_keys, path_keys)
    return jnp.mean(values), jax.tree.map(jnp.mean, aux)


def critic_targets(
    parts: Parts, step_fn: StepFn, learner: Learner, batch: Transition, key: Key
) -> tuple[Array, dict[str, Array]]:
    """Critic targets ``[B]``, and means of the model's weight in them and of their depth, ``sum_h h w_h``."""
    config = parts.config
    size = batch.reward.shape[0]
    policy_fn = partial(parts.policy.apply, learner.policy_params)

    def bind(loss: Callable[..., Array]) -> Callable[..., Array]:
        q_fn = partial(parts.critic.apply, learner.target_params)
        temperature = jnp.exp(learner.log_temperature)
        return partial(loss, policy_fn=policy_fn, q_fn=q_fn, gamma=config.gamma, temperature=temperature)

    expand = partial(bind(critic_losses.expansion_values), step_fn=step_fn, horizon=config.steve_horizon)
    if config.steve_horizon == 0:
        values = jax.vmap(expand)(batch, jax.random.split(key, size))  # [B, 1, C]
        return jnp.min(values[:, 0], axis=-1), {"model_weight": jnp.zeros(()), "effective_horizon": jnp.zeros(())}
    if config.released_steve:
        values = _shared_path_values(parts, step_fn, batch, key, policy_fn, bind(critic_losses.path_targets))
        # One smallest value of depth 0, shared by all models: its variance is zero, so it gets all the weight.
        values = values.at[:, :, 0].set(jnp.min(values[:, :1, 0], axis=-1, keepdims=True))
        floor = jnp.asarray(1e-8)
    else:
        values = _member_path_values(parts, batch, key, expand)
        floor = config.steve_floor * jnp.var(jnp.mean(values[:, :, 0], axis=(1, 2))) + 1e-8
    targets, weights = jax.vmap(lambda v: critic_losses.steve_target(v, epsilon=floor))(values)
    weight = jnp.mean(weights, axis=0)
    depth = jnp.arange(config.steve_horizon + 1, dtype=weight.dtype)
    return targets, {"model_weight": 1.0 - weight[0], "effective_horizon": depth @ weight}


def _member_path_values(parts: Parts, batch: Transition, key: Key, expand: Callable[..., Array]) -> Array:
    """Candidate targets ``[B, M, H+1, C]``, each member along a path of its own."""
    horizon = parts.config.steve_horizon

    def path(member: Array, t: Transition, k: Key) -> Array:
        value_key, noise_key = jax.random.split(k)
        noise = StepNoise(jnp.full(horizon, member), jax.random.split(noise_key, horizon))
        return expand(t, value_key, step_noise=noise)

    members = jnp.arange(parts.ensemble.num_members)
    keys = jax.random.split(key, (members.shape[0], batch.reward.shape[0]))
    return jax.vmap(jax.vmap(path, in_axes=(None, 0, 0)), in_axes=(0, None, 0), out_axes=1)(members, batch, keys)


def _shared_path_values(
    parts: Parts,
    step_fn: StepFn,
    batch: Transition,
    key: Key,
    policy_fn: Callable[[Array], Any],
    path_targets: Callable[..., Array],
) -> Array:
    """Candidate targets ``[B, M, H+1, C]`` as released: one path for all members, each adds only the last step."""
    horizon, members = parts.config.steve_horizon, parts.ensemble.num_members
    deal_key, rows_key = jax.random.split(key)

    def row(dealt: Array, t: Transition, k: Key) -> Array:
        action_key, path_key, step_key, value_key = jax.random.split(k, 4)
        path = unroll(
            t.next_obs,
            (jax.random.split(action_key, horizon), StepNoise(dealt, jax.random.split(path_key, horizon))),
            act_fn=lambda s, noise: policy_fn(s).sample(noise),
            step_fn=step_fn,
        )

        def last_step(member: Array, member_key: Key) -> Array:
            noise = StepNoise(jnp.full(horizon, member), jax.random.split(member_key, horizon))
            next_obs, reward, discount = jax.vmap(step_fn)(path.obs, path.action, noise)
            real = jax.tree.map(lambda x: x[None], (t.reward, t.discount, t.next_obs))
            steps = jax.tree.map(lambda r, m: jnp.concatenate([r, m]), real, (reward, discount, next_obs))
            return path_targets(*steps, value_key, cumulative_discount=False)

        return jax.vmap(last_step)(jnp.arange(members), jax.random.split(step_key, members))

    dealt = dynamics.member_schedule(deal_key, members, horizon, "ts1")
    groups = grouped(batch, members)
    keys = jax.random.split(rows_key, groups.reward.shape)
    values = jax.vmap(jax.vmap(row, in_axes=(None, 0, 0)))(dealt, groups, keys)
    return jnp.swapaxes(values, 0, 1).reshape((-1,) + values.shape[2:])  # undoes the deal
