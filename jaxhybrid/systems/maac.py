"""Model-augmented actor-critic (MAAC): an actor differentiated through H model steps and a terminal critic.

SAC, MBPO and STEVE are the same step with ingredients removed; `presets` names them all. The numbers live in
`systems.maac_config`, the model's own machinery in `dynamics`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import dynamics, networks
from jaxhybrid.dynamics import Bootstrap, Ensemble, EnsembleState, StepNoise
from jaxhybrid.envs import episodes, mbbl
from jaxhybrid.envs.wrappers import rescale_actions
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.losses import critic as critic_losses
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.ops import trees
from jaxhybrid.replay import Replay, make_replay
from jaxhybrid.systems.maac_config import Config, checked, presets
from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, Metrics, PyTree, StepFn, System, Transition

__all__ = ["Config", "State", "make", "presets"]


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


class State(NamedTuple):
    """Everything that persists between iterations.

    Attributes:
      learner: networks, optimisers, temperature, counts of refused updates.
      ensemble: fitted dynamics models; None where no ingredient needs a model.
      real: replay of real steps, each with the members' split into training and validation.
      imagined: replay of model steps; None where none are used.
      workers: environments that collect, leading axis ``num_envs``; None for host environments.
      key: key of the next iteration.
      env_steps: real steps taken, ``[]``.
      updates: gradient updates done, ``[]``.
    """

    learner: Learner
    ensemble: EnsembleState | None
    real: Any
    imagined: Any
    workers: episodes.Worker | None
    key: Key
    env_steps: Array
    updates: Array


class _Parts(NamedTuple):
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


def make(config: Config, env: Env | HostEnv) -> System:
    """Builds MAAC for an environment.

    Args:
      config: the numbers; see `presets`.
      env: a pure environment, collected from inside ``step``, or a host environment, whose transitions ``[T, N, ...]``
        the caller passes to ``step``. Actions are rescaled to [-1, 1] where the environment bounds them.

    Returns:
      ``System(init, step, act)``. Until ``initial_steps`` real steps are collected ``act`` explores at random and
      ``step`` learns nothing.

    Raises:
      InputError: a field of ``config`` that makes no sense, alone or with this environment; the message names it.

    Source: paper 004 (MAAC), algorithm 1.
    """
    env = rescale_actions(env)
    parts = _parts(checked(config, env.spec), env.spec)
    collects = isinstance(env, Env)

    def init(key: Key) -> State:
        learner_key, ensemble_key, worker_key, run_key = jax.random.split(key, 4)
        reset = episodes.auto_reset(env)[0] if collects else None
        return State(
            learner=_init_learner(parts, learner_key),
            ensemble=parts.ensemble.init(ensemble_key) if config.needs_model else None,
            real=parts.real_replay.init((_blank(env.spec), jnp.zeros(config.ensemble_size, bool))),
            imagined=parts.model_replay.init(_blank(env.spec)) if config.uses_model_data else None,
            workers=jax.vmap(reset)(jax.random.split(worker_key, config.num_envs)) if reset else None,
            key=run_key,
            env_steps=jnp.zeros((), jnp.int32),
            updates=jnp.zeros((), jnp.int32),
        )

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        distribution = parts.policy.apply(state.learner.policy_params, obs)
        if deterministic:
            return distribution.sample(key) if config.stochastic_evaluation else distribution.mode()
        explores = state.env_steps < config.initial_steps
        return jnp.where(explores, _random_action(env.spec, key), distribution.sample(key))

    def step(state: State, batch: Transition | None) -> tuple[State, Metrics]:
        next_key, collect_key, split_key, learn_key = jax.random.split(state.key, 4)
        metrics: dict[str, Array] = {}
        if collects:  # line 3: sample trajectories from the real environment
            workers, batch, stats = episodes.collect(
                env,
                state.workers,
                partial(act, state, deterministic=False),
                collect_key,
                num_steps=config.steps_per_iteration // config.num_envs,
            )
            metrics |= {f"collect/{name}": value for name, value in stats.items()}
            state = state._replace(workers=workers)
        earlier_real = state.real if config.delayed_replay else None
        state = _insert(parts, state._replace(key=next_key), batch, split_key)

        learn = partial(_learn, parts, earlier_real)
        nothing = jax.tree.map(
            lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(learn, state, learn_key)[1]
        )
        ready = state.env_steps >= config.initial_steps
        state, learnt = jax.lax.cond(ready, learn, lambda s, _: (s, nothing), state, learn_key)
        metrics |= learnt
        metrics |= {
            "env/steps": state.env_steps,
            "train/updates": state.updates,
            "guard/nonfinite": state.learner.guard.refused,
            "guard/nonfinite_streak": state.learner.guard.streak,
        }
        return state, metrics

    return System(init, step, act)


def _parts(config: Config, spec: EnvSpec) -> _Parts:
    return _Parts(
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
            predict_reward=_model_reward(config, spec) is None,
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


def _model_reward(config: Config, spec: EnvSpec) -> Any:
    """The reward inside the model: the environment's own, or the one that the released code's actor optimised."""
    if config.model_reward_on == "env":
        return spec.reward_fn
    task = spec.name.removeprefix("mbbl/").split("/")[0]
    return mbbl.reward_fn(task, reward_on="released")


def _init_learner(parts: _Parts, key: Key) -> Learner:
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


def _blank(spec: EnvSpec) -> Transition:
    obs, scalar = jnp.zeros((spec.obs_dim,)), jnp.zeros(())
    return Transition(obs, jnp.zeros((spec.action_dim,)), scalar, scalar, obs)


def _random_action(spec: EnvSpec, key: Key) -> Array:
    if spec.bounded:
        return jax.random.uniform(key, (spec.action_dim,), minval=-1.0, maxval=1.0)
    return jax.random.normal(key, (spec.action_dim,))


def _insert(parts: _Parts, state: State, batch: Transition, key: Key) -> State:
    """Adds real steps ``[T, N, ...]`` and decides which members train on them and which validate."""
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).reshape((-1,) + x.shape[2:]), batch)
    count = rows.reward.shape[0]
    config = parts.config
    held_out = jax.random.bernoulli(key, config.validation_fraction, (count, config.ensemble_size))
    real = parts.real_replay.add(state.real, (rows, held_out))
    return state._replace(real=real, env_steps=state.env_steps + count)


def _learn(parts: _Parts, replay: Any, state: State, key: Key) -> tuple[State, dict[str, Array]]:
    """Lines 4 to 12 of the algorithm: fit the model, then alternate imagined data and gradient updates.

    ``replay`` is what the updates draw real steps from; None means all of them (the released code leaves out the steps
    of the current iteration).
    """
    config = parts.config
    fit_key, blocks_key = jax.random.split(key)
    metrics: dict[str, Array] = {}
    if config.needs_model:  # lines 4-6
        (transitions, held_out), size = parts.real_replay.contents(state.real)
        ensemble, fitted = parts.ensemble.fit(state.ensemble, Bootstrap(transitions, held_out, size), fit_key)
        metrics |= {f"model/{name}": value for name, value in fitted.items()}
        state = state._replace(ensemble=ensemble)
    replay = state.real if replay is None else replay
    learning_iteration = state.updates // config.updates_per_iteration

    def block(carry: tuple[Learner, Any], block_key: Key) -> tuple[tuple[Learner, Any], dict[str, Array]]:
        learner, imagined = carry
        imagine_key, updates_key = jax.random.split(block_key)
        step_fn = _step_fn(parts, state.ensemble) if config.needs_model else None
        if config.uses_model_data:  # line 7
            imagined = _imagine(parts, step_fn, learner, replay, imagined, learning_iteration, imagine_key)

        def update(current: Learner, update_key: Key) -> tuple[Learner, dict[str, Array]]:
            sample_key, learn_key = jax.random.split(update_key)
            batch = _sample(parts, replay, imagined, sample_key)  # line 8
            return _update(parts, step_fn, current, batch, learn_key)  # lines 10-11

        update_keys = jax.random.split(updates_key, config.updates_per_iteration // config.model_refreshes)
        learner, logged = jax.lax.scan(update, learner, update_keys)
        return (learner, imagined), jax.tree.map(jnp.mean, logged)

    carry, logged = jax.lax.scan(
        block, (state.learner, state.imagined), jax.random.split(blocks_key, config.model_refreshes)
    )
    state = state._replace(learner=carry[0], imagined=carry[1], updates=state.updates + config.updates_per_iteration)
    metrics |= jax.tree.map(jnp.mean, logged)
    return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}


def _step_fn(parts: _Parts, ensemble: EnsembleState) -> StepFn:
    return dynamics.model_step(
        parts.ensemble,
        ensemble,
        reward_fn=_model_reward(parts.config, parts.spec),
        terminated_fn=parts.spec.terminated_fn,
        obs_limit=parts.config.obs_limit,
    )


def _grouped(rows: PyTree, num_members: int) -> PyTree:
    """Deals rows ``[B, ...]`` to members ``[M, B / M, ...]`` in turn, so that every member sees every kind of row."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape((-1, num_members) + x.shape[1:]), 0, 1), rows)


def _imagine(
    parts: _Parts, step_fn: StepFn, learner: Learner, replay: Any, imagined: Any, iteration: Array, key: Key
) -> Any:
    """Branches model roll-outs off real states and stores every step of them."""
    config, members = parts.config, parts.ensemble.num_members
    policy_fn = partial(parts.policy.apply, learner.policy_params)
    start_key, loop_key = jax.random.split(key)

    def starts(k: Key) -> Array:
        return _grouped(parts.real_replay.sample(replay, k, config.model_rollouts)[0].obs, members)

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


def _sample(parts: _Parts, replay: Any, imagined: Any, key: Key) -> Transition:
    """Draws a batch of ``batch_size`` rows, a fixed share of them real."""
    real_key, model_key = jax.random.split(key)
    real, model = parts.config.real_batch_size, parts.config.batch_size - parts.config.real_batch_size
    drawn = []
    if real:
        drawn.append(parts.real_replay.sample(replay, real_key, real)[0])
    if model:
        drawn.append(parts.model_replay.sample(imagined, model_key, model))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *drawn)


def _update(
    parts: _Parts, step_fn: StepFn | None, learner: Learner, batch: Transition, key: Key
) -> tuple[Learner, dict[str, Array]]:
    """One simultaneous update of actor, critics and temperature, all from the same parameters."""
    config = parts.config
    policy_key, target_key, critic_key, temperature_key = jax.random.split(key, 4)
    temperature = jnp.exp(learner.log_temperature)

    (_, policy_aux), policy_grads = jax.value_and_grad(_actor_loss, has_aux=True)(
        learner.policy_params, batch.obs, policy_key, parts=parts, step_fn=step_fn, learner=learner
    )
    targets, model_weight = _targets(parts, step_fn, learner, batch, target_key)
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
        "critic/loss": critic_value,
        "critic/q": critic_aux["q"],
        "critic/grad_norm": trees.norm(critic_grads),
        "critic/model_weight": model_weight,
        "temperature": temperature,
    }
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


def _actor_loss(
    policy_params: PyTree, obs: Array, key: Key, *, parts: _Parts, step_fn: StepFn | None, learner: Learner
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
    groups = _grouped(obs, members)
    member = dynamics.member_schedule(deal_key, members, config.horizon, config.trajectory_sampling)
    model_keys = jax.random.split(model_key, (*groups.shape[:2], config.horizon))
    path_keys = jax.random.split(path_key, groups.shape[:2])

    def row(o: Array, m: Array, noise_keys: Key, k: Key) -> tuple[Array, dict[str, Array]]:
        # maac_loss has an axis of paths, here of length one.
        return loss(policy_params, o, k, step_noise=StepNoise(m[None], noise_keys[None]))

    values, aux = jax.vmap(jax.vmap(row, in_axes=(0, None, 0, 0)))(groups, member, model_keys, path_keys)
    return jnp.mean(values), jax.tree.map(jnp.mean, aux)


def _targets(
    parts: _Parts, step_fn: StepFn | None, learner: Learner, batch: Transition, key: Key
) -> tuple[Array, Array]:
    """Critic targets ``[B]`` and the mean weight of the model in them ``[]``."""
    config = parts.config
    expand = partial(
        critic_losses.expansion_values,
        policy_fn=partial(parts.policy.apply, learner.policy_params),
        step_fn=step_fn,
        q_fn=partial(parts.critic.apply, learner.target_params),
        horizon=config.steve_horizon,
        gamma=config.gamma,
        temperature=jnp.exp(learner.log_temperature),
        cumulative_discount=not config.released_steve,
    )
    size = batch.reward.shape[0]
    if config.steve_horizon == 0:
        values = jax.vmap(expand)(batch, jax.random.split(key, size))  # [B, 1, C]
        return jnp.min(values[:, 0], axis=-1), jnp.zeros(())

    def chain(member: Array, t: Transition, k: Key) -> Array:
        value_key, noise_key = jax.random.split(k)
        keys = jax.random.split(noise_key, config.steve_horizon)
        return expand(t, value_key, step_noise=StepNoise(jnp.full(config.steve_horizon, member), keys))

    members = jnp.arange(parts.ensemble.num_members)
    keys = jax.random.split(key, (members.shape[0], size))
    values = jax.vmap(jax.vmap(chain, in_axes=(None, 0, 0)), in_axes=(0, None, 0), out_axes=1)(members, batch, keys)
    if config.released_steve:
        # One smallest value of depth 0, shared by all models: its variance is zero, so it gets all the weight.
        values = values.at[:, :, 0].set(jnp.min(values[:, :1, 0], axis=-1, keepdims=True))
        floor = jnp.asarray(1e-8)
    else:
        floor = config.steve_floor * jnp.var(jnp.mean(values[:, :, 0], axis=(1, 2)))
    targets, weights = jax.vmap(lambda v: critic_losses.steve_target(v, epsilon=floor))(values)
    return targets, jnp.mean(1.0 - weights[:, 0])
