"""Trust-region policy optimisation with a multi-step control variate (MSCV): a model's slope, corrected by returns.

TRPO, Q-Prop and stochastic value gradients are the same step with another ingredient; `presets` names them. The numbers
live in `systems.mscv_config`, the parts of a step in `systems.mscv_updates`.
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
from jaxhybrid.guard import Guard
from jaxhybrid.ops import filters, moments
from jaxhybrid.sharding import spread
from jaxhybrid.systems import mscv_fits as fits
from jaxhybrid.systems import mscv_gradient as gradient
from jaxhybrid.systems import mscv_updates as updates
from jaxhybrid.systems.mscv_config import Config, checked, presets
from jaxhybrid.systems.mscv_updates import Learner, Parts, Record
from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, Metrics, PyTree, Setting, System, Transition

__all__ = ["Config", "State", "make", "policy_params", "presets", "setting"]


class State(NamedTuple):
    """Everything that persists between iterations.

    Attributes:
      learner: policy, value function, model, filter, and what the last batch said.
      memory: the last batches.
      workers: environments that collect, leading axis ``num_envs``; None for host environments.
      episode_steps: steps of each environment's episode so far, ``[N]``.
      key: key of the next iteration.
      iteration: iterations done, ``[]``.
      env_steps: real steps taken, ``[]``.
    """

    learner: Learner
    memory: Any
    workers: Any
    episode_steps: Array
    key: Key
    iteration: Array
    env_steps: Array


def setting(config: Config, name: str) -> Setting:
    """Returns what a run in the environment of this name is made of."""
    return Setting(make, envs.make_rescaled(name, config.num_envs), policy_params)


def make(config: Config, env: Env | HostEnv) -> System:
    """Builds MSCV for an environment.

    An iteration collects a batch, takes one policy step along a gradient whose model, value function, coefficient,
    horizon and scale come from earlier batches only, and then fits them to this one too: so the gradient is unbiased
    however bad they are (with ``return_lambda=1``).

    Args:
      config: the numbers; see `presets`.
      env: a pure environment, collected from inside ``step``, or a host environment, whose transitions ``[T, N, ...]``
        the caller passes to ``step``. Actions are rescaled to [-1, 1] where the environment bounds them; the policy is
        Gaussian and may exceed them.

    Returns:
      ``System(init, step, act)``.

    Raises:
      InputError: a field of ``config`` that makes no sense, alone or with this environment; the message names it.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), algorithm 1,
      which fits on the batch before it takes the gradient.
    """
    env = rescale_actions(env)
    parts = updates.make_parts(checked(config, env.spec), env.spec)
    pure_env = env if isinstance(env, Env) else None
    if isinstance(env, HostEnv) and env.num_envs != config.num_envs:
        raise InputError(f"num_envs={config.num_envs} must be that of the environment, {env.num_envs}.")

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        distribution = updates.policy_of(parts, state.learner.seen)(state.learner.policy_params, obs)
        return distribution.mode() if deterministic else distribution.sample(key)

    def step(state: State, batch: Transition | None) -> tuple[State, Metrics]:
        next_key, collect_key, learn_key = jax.random.split(state.key, 3)
        metrics: dict[str, Array] = {}
        if pure_env:  # line 2: collect a batch of trajectories
            workers, batch, stats = episodes.collect(
                pure_env,
                spread(state.workers),
                partial(act, state, deterministic=False),
                collect_key,
                num_steps=config.num_steps,
            )
            metrics |= {f"collect/{name}": value for name, value in stats.items()}
            state = state._replace(workers=workers)
        batch = _given(batch, config, env.spec)
        record, episode_steps = updates.record_of(parts, state.learner, batch, state.episode_steps)
        state, learnt = _learn(parts, state._replace(key=next_key, episode_steps=episode_steps), record, learn_key)
        state = state._replace(iteration=state.iteration + 1, env_steps=state.env_steps + config.steps_per_iteration)
        policy, fitted = state.learner.policy_guard, state.learner.guard
        metrics |= learnt | {
            "env/steps": state.env_steps,
            "guard/nonfinite": policy.refused + fitted.refused,
            "guard/nonfinite_streak": jnp.maximum(policy.streak, fitted.streak),
        }
        return state, metrics

    return System(partial(_init, parts, pure_env), step, act)


def policy_params(state: State) -> PyTree:
    """The policy that a state has come to, on its own: parameters of `policies.filtered` and `policies.mlp_gaussian`.

    Args:
      state: of one run, or of several with a leading axis ``S``.
    """
    seen = state.learner.seen
    mean, std = (jax.vmap(filters.scales) if jnp.ndim(seen.count) else filters.scales)(seen)
    return {"filter": {"mean": mean, "std": std}, "network": state.learner.policy_params}


def _init(parts: Parts, pure_env: Env | None, key: Key) -> State:
    config, spec = parts.config, parts.spec
    learner_key, worker_key, run_key = jax.random.split(key, 3)
    shape = (config.num_steps, config.num_envs)
    obs, action, scalar = (jnp.zeros((*shape, *size)) for size in ((spec.obs_dim,), (spec.action_dim,), ()))
    workers = None
    if pure_env:
        workers = jax.vmap(episodes.auto_reset(pure_env)[0])(jax.random.split(worker_key, config.num_envs))
    return State(
        learner=updates.init_learner(parts, learner_key),
        memory=parts.memory.init(Record(Transition(obs, action, scalar, scalar, obs), action, scalar, scalar)),
        workers=workers,
        episode_steps=jnp.zeros(config.num_envs, jnp.int32),
        key=run_key,
        iteration=jnp.zeros((), jnp.int32),
        env_steps=jnp.zeros((), jnp.int32),
    )


def _given(batch: Transition | None, config: Config, spec: EnvSpec) -> Transition:
    if batch is None:
        raise InputError(f"batch is None, but {spec.name!r} runs on the host: pass the transitions [T, N, ...].")
    expected = (config.num_steps, config.num_envs)
    if batch.reward.shape != expected:
        raise InputError(
            f"batch has rewards of the shape {batch.reward.shape}, expected {expected}: steps_per_iteration="
            f"{config.steps_per_iteration} over num_envs={config.num_envs}."
        )
    return batch


def _learn(parts: Parts, state: State, record: Record, key: Key) -> tuple[State, dict[str, Array]]:
    """The policy step by what is known from the past, then the fits with this batch in memory.

    The algorithm box has them the other way round (lines 6 to 10 before 11 to 17), which biases the gradient.
    """
    config, learner = parts.config, state.learner
    # The advantages are those of the gradient's own draws.
    policy_key, model_key, value_key = jax.random.split(key, 3)
    batch = updates.make_segments(parts, learner, record)
    advantage, embedded = updates.advantages(parts, learner, batch, policy_key)
    said, correlation = updates.advise(parts, learner.advice, advantage, embedded)
    if config.eta_rule == "per_tensor":
        said = said._replace(tensor_eta=gradient.tensor_coefficients(parts, learner, batch, said, policy_key))
    advice = learner.advice if config.choose_on == "past" else said._replace(scale=learner.advice.scale)
    warm = state.iteration >= config.warmup_iterations
    eta, tensor_eta = jax.tree.map(lambda x: jnp.where(warm, x, 0.0), (advice.eta, advice.tensor_eta))
    used = advice._replace(eta=eta, tensor_eta=tensor_eta)
    policy_params, finite, metrics = gradient.policy_step(parts, learner, batch, used, policy_key)  # lines 11-17

    refused = (~finite).astype(jnp.int32)
    guard = Guard(learner.policy_guard.refused + refused, (learner.policy_guard.streak + 1) * refused)
    seen = moments.merge(learner.seen, moments.of_batch(batch.obs))
    learner = learner._replace(policy_params=policy_params, advice=said, seen=seen, policy_guard=guard)
    memory = parts.memory.add(state.memory, jax.tree.map(lambda x: x[None], record))  # line 5
    learner, fitted = fits.fit_model(parts, learner, memory, model_key)  # lines 6-7
    learner, valued = fits.fit_value(parts, learner, memory, value_key)  # lines 8-9
    offset = updates.offset(parts, learner, batch)
    learner = learner._replace(advice=learner.advice._replace(offset=offset))
    metrics |= fitted | valued
    metrics |= {
        "control/correlation": correlation,
        "control/eta": used.eta,
        "control/horizon": used.horizon,
        "value/explained": 1.0 - jnp.var(advantage) / jnp.maximum(jnp.var(batch.empirical_return), 1e-12),
        "value/offset": offset,
        "return/mean": jnp.mean(batch.empirical_return),
    }
    if used.tensor_eta is not None:
        each = jnp.stack(jax.tree.leaves(used.tensor_eta))
        metrics |= {"control/tensor_eta_min": jnp.min(each), "control/tensor_eta_max": jnp.max(each)}
    metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}
    return state._replace(learner=learner, memory=memory), metrics
