"""What one iteration of MSCV does with a batch: its record, its segments, what it advises, and the policy step.

The algorithm's outer loop is in `systems.mscv`, the fits of model and value function in `systems.mscv_fits`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import multi_step_model, networks, policies, segments
from jaxhybrid.guard import Guard
from jaxhybrid.losses.control_variate import mscv_loss, qprop_loss
from jaxhybrid.multi_step_model import ModelState, MultiStepModel
from jaxhybrid.ops import filters, moments
from jaxhybrid.ops.control_variates import choose_horizon, optimal_coefficient
from jaxhybrid.ops.moments import Moments
from jaxhybrid.replay import Replay, make_replay
from jaxhybrid.systems.mscv_config import Config
from jaxhybrid.types import Array, EnvSpec, Key, PyTree, Segment, StepFn, Transition, ValueFn

__all__ = [
    "Advice",
    "Learner",
    "Parts",
    "Record",
    "advantages",
    "advise",
    "bindings",
    "first_advice",
    "init_learner",
    "make_parts",
    "make_segments",
    "offset",
    "policy_of",
    "record_of",
    "tangent",
    "value_of",
]


class Parts(NamedTuple):
    """The pure functions that an iteration is composed of; nothing here changes during a run."""

    config: Config
    spec: EnvSpec
    policy: networks.Network
    value: networks.Network
    model: MultiStepModel
    optimiser: optax.GradientTransformation
    memory: Replay


class Advice(NamedTuple):
    """What a batch says about the next one.

    Attributes:
      eta: coefficient of the control variate, ``[]``.
      horizon: its model steps, integer ``[]``.
      offset: by how much the value function is below the returns, ``[]``: it learns its constant last.
      scale: standard deviation of the advantages, ``[]``.
      tensor_eta: coefficient for every tensor of the policy, ``[]`` each; None unless the rule asks for them.
    """

    eta: Array
    horizon: Array
    offset: Array
    scale: Array
    tensor_eta: PyTree = None


class Learner(NamedTuple):
    """What an iteration changes.

    Attributes:
      policy_params: the policy's.
      value_params: the value function's.
      value_target: its slow copy.
      value_opt: its optimiser's state.
      model: the fitted model; None where no model step is taken.
      seen: moments of the observations, the filter; constant from the collection to the end of the update.
      advice: of the batch before.
      policy_guard: counts of refused policy steps.
      guard: counts of refused updates of model and value function, of which there are hundreds between two of those.
    """

    policy_params: PyTree
    value_params: PyTree
    value_target: PyTree
    value_opt: PyTree
    model: ModelState | None
    seen: Moments
    advice: Advice
    policy_guard: Guard
    guard: Guard


class Record(NamedTuple):
    """A batch as it is remembered.

    Attributes:
      steps: transitions, ``[T, N, ...]``; ``discount`` is 0 at a time limit too where that ends the problem.
      noise: of the actions, ``[T, N, A]``.
      log_prob: of the actions under the policy that took them, ``[T, N]``.
      ended: whether a step was the last of its episode, float ``[T, N]``.
    """

    steps: Transition
    noise: Array
    log_prob: Array
    ended: Array


def make_parts(config: Config, spec: EnvSpec) -> Parts:
    """Builds networks, model, optimiser and memory for an environment."""
    return Parts(
        config=config,
        spec=spec,
        policy=policies.mlp_gaussian(
            spec.obs_dim,
            spec.action_dim,
            config.hidden,
            activation=config.activation,
            log_std=config.initial_log_std,
        ),
        value=networks.mlp(spec.obs_dim, config.hidden, 1, activation=config.activation),
        model=multi_step_model.make(
            spec.obs_dim,
            spec.action_dim,
            hidden=config.model_hidden,
            activation=config.model_activation,
            learning_rate=config.model_learning_rate,
            reward_weight=config.reward_weight,
        ),
        optimiser=optax.adam(config.value_learning_rate),
        memory=make_replay(config.memory),
    )


def first_advice(config: Config, policy_params: PyTree = None) -> Advice:
    """What is done before any batch has spoken."""
    eta, zero, one = jnp.asarray(config.eta, jnp.float32), jnp.zeros(()), jnp.ones(())
    each = jax.tree.map(lambda _: eta, policy_params) if config.eta_rule == "per_tensor" else None
    return Advice(eta, jnp.asarray(config.horizon, jnp.int32), zero, one, each)


def init_learner(parts: Parts, key: Key) -> Learner:
    """Draws the first parameters; the slow value function starts as a copy of the fast one."""
    policy_key, value_key, model_key = jax.random.split(key, 3)
    policy_params, value_params = parts.policy.init(policy_key), parts.value.init(value_key)
    return Learner(
        policy_params=policy_params,
        value_params=value_params,
        value_target=jax.tree.map(jnp.copy, value_params),
        value_opt=parts.optimiser.init(value_params),
        model=parts.model.init(model_key) if parts.config.needs_model else None,
        seen=moments.empty(jnp.zeros(parts.spec.obs_dim)),
        advice=first_advice(parts.config, policy_params),
        policy_guard=Guard.new(),
        guard=Guard.new(),
    )


def policy_of(parts: Parts, seen: Moments) -> Callable[[PyTree, Array], Any]:
    """The policy as a function of the raw observation, with the filter frozen."""
    limit = parts.config.obs_limit
    return lambda params, obs: parts.policy.apply(params, filters.standardise(seen, obs, limit=limit))


def value_of(parts: Parts, seen: Moments) -> Callable[[PyTree, Array], Array]:
    """The value function of the raw observation, with the filter frozen."""
    limit = parts.config.obs_limit
    return lambda params, obs: parts.value.apply(params, filters.standardise(seen, obs, limit=limit))[0]


def record_of(parts: Parts, learner: Learner, batch: Transition, steps_before: Array) -> tuple[Record, Array]:
    """Reads a batch ``[T, N, ...]``: its episodes, and the noise and log-probability of its actions.

    Returns:
      The record, and the steps of the episodes that are under way at its end, ``[N]``.
    """
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    limit = parts.spec.max_episode_steps
    find = jax.vmap(partial(segments.ends, time_limit=limit), in_axes=(1, 0), out_axes=(1, 0))
    ended, steps = find(batch.discount, steps_before)
    if parts.config.time_limit_ends:
        batch = batch._replace(discount=jnp.where(ended, 0.0, batch.discount))
    policy_fn = partial(policy_of(parts, learner.seen), learner.policy_params)

    def read(obs: Array, action: Array) -> tuple[Array, Array]:
        noise = policy_fn(obs).infer_noise(action)
        return noise, policy_fn(obs).log_prob_of_noise(noise)

    noise, log_prob = jax.vmap(jax.vmap(read))(batch.obs, batch.action)
    return Record(batch, noise, log_prob, ended.astype(jnp.float32)), steps


def bound_value(parts: Parts, learner: Learner) -> ValueFn:
    """The value function of the update: as fitted, and lifted by what it lacked on the batch before."""
    value = partial(value_of(parts, learner.seen), learner.value_params)
    return lambda obs: value(obs) + learner.advice.offset


def bound_step(parts: Parts, learner: Learner) -> StepFn:
    """The fitted model with the rewards and terminations that are known."""
    if learner.model is None:
        return _no_model
    known = parts.spec.reward_fn if parts.config.reward == "known" else None
    return parts.model.step_fn(learner.model, reward_fn=known, terminated_fn=parts.spec.terminated_fn)


def _no_model(obs: Array, action: Array, noise: Any) -> tuple[Array, Array, Array]:
    raise AssertionError("a model step was taken by a configuration that needs no model")


def make_segments(parts: Parts, learner: Learner, record: Record) -> Segment:
    """Every step of a batch with its return and the noise of the steps that follow, ``[T N, ...]``."""
    build = partial(
        segments.of_recording,
        horizon=max(1, parts.config.horizon),
        gamma=parts.config.gamma,
        value_fn=bound_value(parts, learner),
        lambda_=parts.config.return_lambda,
    )
    each = jax.vmap(build, in_axes=1)(record.steps, record.ended > 0, record.noise)
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), each)


def advantages(parts: Parts, learner: Learner, batch: Segment, key: Key) -> tuple[Array, Array]:
    """Advantages ``A [B]``, and those of the control variate for each horizon that a rule may choose, ``[K, B]``."""
    config = parts.config
    if config.estimator == "qprop":
        losses: list[Any] = [tangent(parts, learner)]
    else:
        horizons = (config.horizon,) if config.horizon_rule == "fixed" else range(1, config.horizon + 1)
        losses = [partial(mscv_loss, horizon=h, **bindings(parts, learner)) for h in horizons]
    keys = jax.random.split(key, batch.obs.shape[0])

    def both(segment: Segment, segment_key: Key) -> tuple[Array, Array]:
        aux = [loss(learner.policy_params, segment, segment_key)[1] for loss in losses]
        return aux[0]["advantage"], jnp.stack([a["embedded_advantage"] for a in aux])

    advantage, embedded = jax.lax.map(lambda x: both(*x), (batch, keys), batch_size=config.segment_chunk)
    return advantage, embedded.T


def advise(parts: Parts, advice: Advice, advantage: Array, embedded: Array) -> tuple[Advice, Array]:
    """What a batch says about coefficient, horizon and scale; and the correlation at the horizon it names, ``[]``."""
    config = parts.config
    rule = "cov" if config.horizon_rule == "fixed" else config.horizon_rule
    chosen, correlations = choose_horizon(advantage, embedded, rule=rule)
    horizon = advice.horizon if config.horizon_rule == "fixed" else chosen
    row = jnp.zeros((), jnp.int32) if config.horizon_rule == "fixed" else jnp.maximum(chosen - 1, 0)
    eta = advice.eta if config.eta_rule == "fixed" else optimal_coefficient(advantage, embedded[row])
    scale = jnp.std(advantage)
    said = advice._replace(eta=eta, horizon=horizon.astype(jnp.int32), scale=jnp.where(scale > 0, scale, 1.0))
    return said, correlations[row]


def offset(parts: Parts, learner: Learner, batch: Segment) -> Array:
    """By how much the value function is below the returns of a batch, ``mean (R - V(s))``, ``[]``."""
    value = partial(value_of(parts, learner.seen), learner.value_params)
    found = jnp.mean(batch.empirical_return - jax.vmap(value)(batch.obs))
    # The next returns are bootstrapped with it: what is not finite would never leave.
    return jnp.where(jnp.isfinite(found), found, 0.0)


def bindings(parts: Parts, learner: Learner) -> dict[str, Any]:
    """What every loss of a segment is given."""
    return {
        "policy_fn": policy_of(parts, learner.seen),
        "step_fn": bound_step(parts, learner),
        "value_fn": bound_value(parts, learner),
        "gamma": parts.config.gamma,
        "behaviour_params": learner.policy_params,
    }


def tangent(parts: Parts, learner: Learner) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The loss of Q-Prop on a segment, whose critic is one model step and the value function."""
    known = bindings(parts, learner)

    def q_fn(obs: Array, action: Array) -> Array:
        next_obs, reward, discount = known["step_fn"](obs, action, None)
        return reward + parts.config.gamma * discount * known["value_fn"](next_obs)

    kept = {name: known[name] for name in ("policy_fn", "value_fn", "behaviour_params")}
    return partial(qprop_loss, q_fn=q_fn, reading=parts.config.qprop_reading, **kept)
