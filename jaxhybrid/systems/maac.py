"""Model-augmented actor-critic (MAAC): an actor differentiated through H model steps and a terminal critic.

SAC, MBPO and STEVE are the same step with ingredients removed; `presets` names them all. The numbers live in
`systems.maac_config`, a single gradient update in `systems.maac_updates`, the model's own machinery in `dynamics`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid import envs
from jaxhybrid.envs import episodes
from jaxhybrid.envs.wrappers import rescale_actions
from jaxhybrid.errors import InputError
from jaxhybrid.sharding import spread
from jaxhybrid.systems import maac_updates as updates
from jaxhybrid.systems.maac_config import Config, checked, presets
from jaxhybrid.systems.maac_diagnosis import DIAGNOSIS_METRICS, diagnose
from jaxhybrid.systems.maac_replay import blank_item, bootstrap, items, random_action
from jaxhybrid.systems.maac_updates import Learner, Parts
from jaxhybrid.types import Array, Env, HostEnv, Key, Metrics, Setting, StepFn, System, Transition

__all__ = ["Config", "State", "make", "presets", "setting"]


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
    ensemble: Any
    real: Any
    imagined: Any
    workers: Any
    key: Key
    env_steps: Array
    updates: Array


def setting(config: Config, name: str) -> Setting:
    """Returns what a run in the environment of this name is made of."""
    env = envs.make_rescaled(name, config.num_envs)
    return Setting(make, env, lambda state: state.learner.policy_params)


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

    Source: Clavera, Fu and Abbeel 2020, Model-augmented actor-critic (MAAC), algorithm 1.
    """
    env = rescale_actions(env)
    parts = updates.make_parts(checked(config, env.spec), env.spec)
    pure_env = env if isinstance(env, Env) else None

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        distribution = parts.policy.apply(state.learner.policy_params, obs)
        if deterministic:
            return distribution.sample(key) if config.stochastic_evaluation else distribution.mode()
        explores = state.env_steps < config.initial_steps
        return jnp.where(explores, random_action(env.spec, key), distribution.sample(key))

    def step(state: State, batch: Transition | None) -> tuple[State, Metrics]:
        next_key, collect_key, split_key, learn_key = jax.random.split(state.key, 4)
        metrics: dict[str, Array] = {}
        if pure_env:  # line 3: sample trajectories from the real environment
            workers, batch, stats = episodes.collect(
                pure_env,
                spread(state.workers),
                partial(act, state, deterministic=False),
                collect_key,
                num_steps=config.steps_per_iteration // config.num_envs,
            )
            metrics |= {f"collect/{name}": value for name, value in stats.items()}
            state = state._replace(workers=workers)
        if batch is None:
            raise InputError(
                f"batch is None, but {env.spec.name!r} runs on the host: pass the transitions [T, N, ...]."
            )
        earlier_real = state.real if config.delayed_replay else None
        state = _insert(parts, state._replace(key=next_key), batch, split_key)

        names = updates.UPDATE_METRICS + (updates.FIT_METRICS if config.needs_model else ())
        names += DIAGNOSIS_METRICS if config.diagnose_parts else ()
        state, learnt = jax.lax.cond(
            state.env_steps >= config.initial_steps,
            partial(_learn, parts, earlier_real),
            lambda s, _: (s, dict.fromkeys(names, jnp.asarray(jnp.nan, jnp.float32))),
            state,
            learn_key,
        )
        metrics |= learnt
        if config.needs_model:
            metrics["model/nonfinite"] = state.ensemble.nonfinite
        metrics |= {
            "env/steps": state.env_steps,
            "train/updates": state.updates,
            "guard/nonfinite": state.learner.guard.refused,
            "guard/nonfinite_streak": state.learner.guard.streak,
        }
        return state, metrics

    return System(partial(_init, parts, pure_env), step, act)


def _init(parts: Parts, pure_env: Env | None, key: Key) -> State:
    config = parts.config
    learner_key, ensemble_key, worker_key, run_key = jax.random.split(key, 4)
    workers = None
    if pure_env:
        workers = jax.vmap(episodes.auto_reset(pure_env)[0])(jax.random.split(worker_key, config.num_envs))
    return State(
        learner=updates.init_learner(parts, learner_key),
        ensemble=parts.ensemble.init(ensemble_key) if config.needs_model else None,
        real=parts.real_replay.init(blank_item(parts)),
        imagined=parts.model_replay.init(updates.blank_transition(parts.spec)) if config.uses_model_data else None,
        workers=workers,
        key=run_key,
        env_steps=jnp.zeros((), jnp.int32),
        updates=jnp.zeros((), jnp.int32),
    )


def _insert(parts: Parts, state: State, batch: Transition, key: Key) -> State:
    """Adds real steps ``[T, N, ...]`` and decides which members train on them and which validate."""
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32).reshape((-1,) + x.shape[2:]), batch)
    explored = state.env_steps < parts.config.initial_steps
    real = parts.real_replay.add(state.real, items(parts, state.learner.policy_params, explored, rows, key))
    return state._replace(real=real, env_steps=state.env_steps + rows.reward.shape[0])


def _learn(parts: Parts, replay: Any, state: State, key: Key) -> tuple[State, dict[str, Array]]:
    """Lines 4 to 12 of the algorithm: fit the model, then alternate imagined data and gradient updates.

    ``replay`` is what the updates draw real steps from; None means all of them (the released code leaves out the steps
    of the current iteration).
    """
    config = parts.config
    replay = state.real if replay is None else replay
    fit_key, refreshes_key = jax.random.split(key)
    metrics: dict[str, Array] = {}
    step_fn: StepFn = updates.no_model
    if config.needs_model:  # lines 4-6
        data = bootstrap(parts, state.learner, state.real)
        ensemble, fitted = parts.ensemble.fit(state.ensemble, data, fit_key)
        metrics |= {f"model/{name}": value for name, value in fitted.items()}
        state = state._replace(ensemble=ensemble)
        step_fn = updates.make_step_fn(parts, ensemble)
    iteration = state.updates // config.updates_per_iteration

    def refresh(carry: tuple[Learner, Any], refresh_key: Key) -> tuple[tuple[Learner, Any], dict[str, Array]]:
        learner, imagined = carry
        imagine_key, updates_key = jax.random.split(refresh_key)
        if config.uses_model_data:  # line 7
            imagined = updates.imagine(parts, step_fn, learner, replay, imagined, iteration, imagine_key)

        def update(current: Learner, update_key: Key) -> tuple[Learner, dict[str, Array]]:
            sample_key, learn_key = jax.random.split(update_key)
            batch = updates.sample(parts, replay, imagined, sample_key)  # line 8
            diagnosis = diagnose(parts, step_fn, current, batch, learn_key) if config.diagnose_parts else {}
            updated, logged = updates.update(parts, step_fn, current, batch, learn_key)  # lines 10-11
            return updated, logged | diagnosis

        update_keys = jax.random.split(updates_key, config.updates_per_iteration // config.model_refreshes)
        learner, logged = jax.lax.scan(update, learner, update_keys)
        return (learner, imagined), jax.tree.map(jnp.mean, logged)

    (learner, imagined), logged = jax.lax.scan(
        refresh, (state.learner, state.imagined), jax.random.split(refreshes_key, config.model_refreshes)
    )
    metrics |= jax.tree.map(jnp.mean, logged)
    state = state._replace(learner=learner, imagined=imagined, updates=state.updates + config.updates_per_iteration)
    return state, {name: value.astype(jnp.float32) for name, value in metrics.items()}
