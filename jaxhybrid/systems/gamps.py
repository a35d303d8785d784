"""Gradient-aware model-based policy search (GAMPS): a model fitted where its errors would hurt the policy gradient.

The maximum-likelihood model, PGT, REINFORCE and the exact gradient are the same step with another ingredient; `presets`
names them. The numbers live in `systems.gamps_config`, the domains in `systems.gamps_tasks`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import envs
from jaxhybrid.envs import gridworld, minigolf
from jaxhybrid.errors import InputError
from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.ops import importance, trees
from jaxhybrid.systems.gamps_config import Config, checked, presets
from jaxhybrid.systems.gamps_tasks import Task, gridworld_task, minigolf_task, swimmer_task
from jaxhybrid.trajectories import Dataset, Trajectory
from jaxhybrid.trajectories import checked as checked_dataset
from jaxhybrid.types import Array, Env, HostEnv, Key, Metrics, PyTree, Setting, System

__all__ = [
    "SMALLEST_ESS",
    "Config",
    "State",
    "environment",
    "make",
    "make_task",
    "policy_gradient",
    "presets",
    "record",
    "setting",
    "step_weights",
]

SMALLEST_ESS = 1.0 + 1e-3
"""Effective number of trajectories below which one of them decides everything, and improvement stops."""


class State(NamedTuple):
    """Everything that persists between iterations.

    Attributes:
      policy_params: the policy, theta.
      optimiser: state of its optimiser.
      model_params: the model, where the next fit starts.
      dataset: the recorded trajectories, ``[N, T, ...]``.
      guard: counts of refused updates.
      stopped: whether improvement has ended for want of effective trajectories, boolean ``[]``.
      key: key of the next iteration.
      iteration: iterations done, ``[]``.
      env_steps: real steps recorded, ``[]``.
    """

    policy_params: PyTree
    optimiser: PyTree
    model_params: PyTree
    dataset: Trajectory
    guard: Guard
    stopped: Array
    key: Key
    iteration: Array
    env_steps: Array


def environment(config: Config) -> Env | HostEnv:
    """Makes the environment that the numbers are meant for; the swimmer's is one whose reward the observation tells."""
    if config.domain == "gridworld":
        return gridworld.make(topology=config.topology, max_episode_steps=config.episode_steps)
    if config.domain == "minigolf":
        return minigolf.make(far_friction=config.far_friction, max_episode_steps=config.episode_steps)
    instances = {"num_envs": min(config.trajectories, config.eval_episodes)} if config.physics == "mujoco" else {}
    return envs.make(config.env, max_episode_steps=config.episode_steps, **instances)


def setting(config: Config, name: str) -> Setting:
    """Returns what a search in the environment of this name is made of, which is that of the domain.

    Raises:
      InputError: as for `make`, or another environment.
    """
    env = environment(checked(config))
    if name != env.spec.name:
        raise InputError(f"env={name!r} is not that of domain={config.domain!r}, {env.spec.name!r}.")
    task = make_task(config, env)

    def act(policy_params: PyTree, obs: Array, key: Key, *, deterministic: bool) -> Array:
        return task.act(policy_params["policy"], obs, key, deterministic)

    return Setting(make, env, lambda state: {"policy": state.policy_params}, act)


def make_task(config: Config, env: Env | HostEnv) -> Task:
    """Returns the ingredients of the domain; see `systems.gamps_tasks`."""
    if config.domain == "swimmer":
        return swimmer_task(config, env)
    if isinstance(env, HostEnv):
        raise InputError(f"env={env.spec.name!r} runs on the host, which domain={config.domain!r} does not.")
    return {"gridworld": gridworld_task, "minigolf": minigolf_task}[config.domain](config, env)


def record(config: Config, task: Task, key: Key) -> Trajectory:
    """Records the trajectories that ``init(key)`` collects, under the same first policy.

    Args:
      config: the numbers.
      task: of the domain, see `make_task`; on the host where the environment runs there.
      key: the key that ``init`` will be given.
    """
    policy_key, _, data_key, _ = jax.random.split(key, 4)
    return task.collect(task.init_policy(policy_key), data_key, config.trajectories, True)


def make(config: Config, env: Env | HostEnv, dataset: Dataset | Trajectory | None = None) -> System:
    """Builds the search for a domain.

    Args:
      config: the numbers; see `presets`.
      env: `environment(config)`, or another environment of the same domain. On a host environment every iteration uses
        recorded trajectories only, and its metrics have no return: evaluate with ``make_task(config, env).evaluate``.
      dataset: recorded trajectories ``[N, T, ...]``, as `record` makes them, which a host environment needs, or a
        `Dataset` of this environment; None: ``init`` collects them with the exploring policy.

    Returns:
      ``System(init, step, act)``; ``step(state, None)`` is one iteration. Its metrics speak of the policy that the
      iteration started from.

    Raises:
      InputError: a field of ``config`` or a data set that makes no sense; the message names it.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, algorithm 1.
    """
    task = make_task(checked(config), env)
    if task.on_host and (dataset is None or config.fresh_trajectories):
        raise InputError(
            f"env={env.spec.name!r} runs on the host, outside the compiled step: pass a dataset (systems.gamps.record) "
            "and fresh_trajectories=0."
        )
    if isinstance(dataset, Dataset):
        dataset = dataset.of(env.spec.name)
    if dataset is not None:
        dataset = checked_dataset(dataset)

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        return task.act(state.policy_params, obs, key, deterministic)

    return System(partial(_init, config, task, dataset), partial(_step, config, task), act)


def _init(config: Config, task: Task, dataset: Trajectory | None, key: Key) -> State:
    policy_key, model_key, _, run_key = jax.random.split(key, 4)  # the third one is that of `record`
    params = task.init_policy(policy_key)
    if dataset is None:
        dataset = record(config, task, key)
    return State(
        policy_params=params,
        optimiser=optax.adam(config.learning_rate).init(params),
        model_params=task.init_model(model_key),
        dataset=dataset,
        guard=Guard.new(),
        stopped=jnp.zeros((), bool),
        key=run_key,
        iteration=jnp.zeros((), jnp.int32),
        env_steps=jnp.sum(dataset.mask).astype(jnp.int32),
    )


def _step(config: Config, task: Task, state: State, batch: None = None) -> tuple[State, Metrics]:
    del batch  # the data are in the state
    next_key, collect_key, evaluate_key, ascent_key = jax.random.split(state.key, 4)
    state = _collect(config, task, state._replace(key=next_key), collect_key)
    params, dataset = state.policy_params, state.dataset

    log_ratios = _log_ratios(config, task, params, dataset)
    ess = importance.effective_sample_size(log_ratios[:, -1])
    few = ess < max(SMALLEST_ESS, config.ess_fraction * dataset.mask.shape[0])
    # The exact gradient needs no trajectory.
    stopped = state.stopped | (few & (config.gradient != "exact"))

    model_params, fitted = state.model_params, {}
    if config.gradient == "model_value":  # the baselines without a model need not fit one
        weights = step_weights(config, task, params, dataset)  # line 3
        model_params, fitted["model/loss"] = task.fit(state.model_params, dataset, weights)  # line 4

    def ascend(carry: tuple, step_key: Key) -> tuple[tuple, PyTree]:
        theta, optimiser, guard = carry
        gradient = policy_gradient(config, task, theta, model_params, dataset, step_key)  # lines 6-9
        descent = jax.tree.map(jnp.negative, gradient)
        moved, new_optimiser, guard = apply_if_finite(
            optax.adam(config.learning_rate), descent, optimiser, theta, guard
        )
        # line 10
        return trees.where(stopped, carry, (moved, new_optimiser, guard)), gradient

    start = (params, state.optimiser, state.guard)
    (theta, optimiser, guard), gradients = jax.lax.scan(
        ascend, start, jax.random.split(ascent_key, config.ascent_steps)
    )
    first = jax.tree.map(lambda g: g[0], gradients)
    metrics = fitted | {
        "data/effective_sample_size": ess,
        "policy/grad_norm": trees.norm(first),
        "stopped": stopped.astype(jnp.float32),
        "env/steps": state.env_steps,
        "guard/nonfinite": guard.refused,
        "guard/nonfinite_streak": guard.streak,
    }
    if config.diagnose_parts:

        def part_gradient(theta: PyTree, part: Trajectory, part_key: Key) -> PyTree:
            return policy_gradient(config, task, theta, model_params, part, part_key)

        _, aux = gradient_snr(part_gradient, params, dataset, ascent_key, num_parts=config.diagnose_parts)
        metrics["policy/snr"] = aux["snr"]
    if not task.on_host:
        metrics["policy/return"] = task.evaluate(params, evaluate_key)
    if task.exact_gradient is not None:
        metrics["policy/cosine"] = trees.cosine(first, task.exact_gradient(params))
    state = state._replace(
        policy_params=theta,
        optimiser=optimiser,
        model_params=model_params,
        guard=guard,
        stopped=stopped,
        iteration=state.iteration + 1,
    )
    return state, metrics


def step_weights(config: Config, task: Task, params: PyTree, dataset: Trajectory) -> Array:
    """Weights of the model's likelihood, ``[N, T]``: equation 3, or one for every step."""
    if config.model_weights == "uniform" or config.gradient != "model_value":
        return dataset.mask
    weigh = partial(
        importance.gradient_aware_weights, gamma=config.gamma, cumulative=config.model_weights == "gradient_aware"
    )
    norms = jnp.where(dataset.mask > 0, task.score_norms(params, dataset), 0.0)
    return jax.vmap(weigh)(_log_ratios(config, task, params, dataset), norms) * dataset.mask


def policy_gradient(
    config: Config, task: Task, params: PyTree, model_params: PyTree, dataset: Trajectory, key: Key
) -> PyTree:
    """The direction of ascent: equation 5, its model-free counterparts, or the exact gradient."""
    if config.gradient == "exact":
        assert task.exact_gradient is not None
        return task.exact_gradient(params)
    log_ratios = _log_ratios(config, task, params, dataset)
    if config.gradient == "model_value":
        q = task.q_values(model_params, params, dataset, key)
        discounts = jnp.power(config.gamma, jnp.arange(q.shape[1], dtype=q.dtype))
        coefficients = discounts[None] * jnp.exp(log_ratios) * q
    else:
        per_decision = partial(
            importance.per_decision_coefficients,
            gamma=config.gamma,
            past_rewards=config.gradient == "reinforce",
        )
        coefficients = jax.vmap(per_decision)(log_ratios, jnp.where(dataset.mask > 0, dataset.reward, 0.0))
    weights = jnp.where(dataset.mask > 0, coefficients, 0.0) / dataset.mask.shape[0]

    def surrogate(theta: PyTree) -> Array:
        return jnp.sum(jnp.where(dataset.mask > 0, weights * task.log_probs(theta, dataset), 0.0))

    return jax.grad(surrogate)(params)


def _log_ratios(config: Config, task: Task, params: PyTree, dataset: Trajectory) -> Array:
    """Logarithms of the weights of the sub-trajectories, ``[N, T]``; past the end they stay what they were."""
    per_step = jnp.where(dataset.mask > 0, task.log_probs(params, dataset) - dataset.behaviour_log_prob, 0.0)
    log_ratios = jnp.cumsum(per_step, axis=1)
    if config.ratios == "self_normalised":
        return importance.self_normalised_log_ratios(log_ratios)
    if config.ratios == "truncated":
        return jnp.minimum(log_ratios, jnp.log(config.max_ratio))
    return log_ratios


def _collect(config: Config, task: Task, state: State, key: Key) -> State:
    """Replaces the oldest trajectories by fresh ones of the current policy, each with its own behaviour."""
    if not config.fresh_trajectories:
        return state
    fresh = task.collect(state.policy_params, key, config.fresh_trajectories, False)
    dataset = jax.tree.map(
        lambda old, new: jnp.concatenate([old[config.fresh_trajectories :], new]), state.dataset, fresh
    )
    return state._replace(dataset=dataset, env_steps=state.env_steps + jnp.sum(fresh.mask).astype(jnp.int32))
