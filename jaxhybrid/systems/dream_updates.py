"""What the agents of DREAM are made of, and how each learns: one gradient update on a batch of recorded trials."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid.context_layers import CODE
from jaxhybrid.context_networks import ContextNetworks, Heads, make_networks
from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.losses.context import exploration_rewards
from jaxhybrid.ops import trees
from jaxhybrid.systems import dream_joined, dream_models
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.systems.dream_losses import KNOWN, context_loss, td_loss
from jaxhybrid.systems.dream_models import Models
from jaxhybrid.systems.dream_trials import previous_actions
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "Agent",
    "Parts",
    "dynamics_update",
    "execution_update",
    "exploration_update",
    "init_agents",
    "make_parts",
    "metric_names",
]


def metric_names(config: Config, name: str) -> tuple[str, ...]:
    """What an update of an agent logs."""
    told = dream_models.LATENT_METRICS if config.shared else ()
    signal = ("snr",) if config.diagnose_parts else ()
    return {
        "exploration": ("td", "q", "reward", "grad_norm", "update_ratio", *signal),
        "execution": ("td", "q", "grad_norm", "update_ratio", *KNOWN, *told, *signal),
        "dynamics": ("after", "before", "support", "grad_norm", "update_ratio", *signal),
    }[name]


class Agent(NamedTuple):
    """An agent and what its learning needs.

    Attributes:
      params: of its networks, by name.
      target_params: slow copies.
      opt: optimiser state.
      steps: of its own that it has taken, ``[]``.
      updates: done so far, ``[]``.
      guard: counts of refused updates.
    """

    params: dict[str, PyTree]
    target_params: dict[str, PyTree]
    opt: PyTree
    steps: Array
    updates: Array
    guard: Guard


class Parts(NamedTuple):
    """The pure functions that a step is composed of; nothing here changes during a run.

    Attributes:
      config: the numbers.
      town: where the trials take place.
      nets: the networks.
      models: those of the extensions.
      optimisers: of every agent, by name.
      told_fn: ``told_fn(params, task_id, key) -> [CODE]``, the noisy code of a task.
      features_fn: ``features_fn(params of all agents, episode)``, gradients of every prefix, or None.
      decode_fn: ``decode_fn(params, episodes, features) -> [..., T+1, CODE]``, what every prefix of explorations says.
      policies_fn: ``policies_fn(params of all agents)`` -> ``explore_fn(hidden, obs, previous)`` and
        ``execute_fn(hidden, obs, previous, goal, code)``, each of which returns ``(hidden, Heads)``.
      start: hidden state before exploration.
      next_fn: ``next_fn(hidden after exploration)``, the hidden state before execution.
    """

    config: Config
    town: City
    nets: ContextNetworks
    models: Models
    optimisers: dict[str, optax.GradientTransformation]
    told_fn: Callable[[PyTree, Array, Key], Array]
    features_fn: Callable[[dict[str, PyTree], Episode], PyTree]
    decode_fn: Callable[[PyTree, Episode, PyTree], Array]
    policies_fn: Callable[[dict[str, PyTree]], tuple[Any, Any]]
    start: PyTree
    next_fn: Callable[[PyTree], PyTree]


def make_parts(config: Config, town: City) -> Parts:
    """Builds networks, policies and optimisers for a city."""
    alone = config.method == "rl2"
    nets = make_networks(
        dream_joined.obs_sizes(town) if alone else town.obs_sizes,
        (city.SIZE, city.SIZE),
        num_actions=town.num_actions,
        num_ids=town.num_ids,
        recurrent=config.recurrent,
        look=dream_models.make_look(town) if config.observation == "picture" else None,
    )

    models = dream_models.make_models(config, town)

    def told_fn(params: PyTree, task_id: Array, key: Key) -> Array:
        return nets.problem.apply(params["problem"], task_id) + config.noise * jax.random.normal(key, (CODE,))

    def decode_fn(params: PyTree, episodes: Episode, features: PyTree) -> Array:
        views = []
        if "decoder" in params:
            steps = (params["decoder"], episodes.obs, episodes.action)
            one = episodes.mask.ndim == 1  # as they are played
            views.append(nets.decoder.apply(*steps) if one else nets.decoder.packed(*steps, _lengths(episodes)))
        if "reader" in params:
            views.append(dream_models.read(models, params["reader"], features))
        # Each view ends in a linear layer, so that their sum is a linear layer on both.
        return sum(views[1:], views[0])

    known = config.method == "dream"
    learning_rates = {"exploration": config.learning_rate, "execution": config.learning_rate}
    learning_rates["dynamics"] = config.model_learning_rate
    execution_start = nets.execution.start
    return Parts(
        config=config,
        town=town,
        nets=nets,
        models=models,
        optimisers={
            name: optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(rate))
            for name, rate in learning_rates.items()
        },
        # Without a context nothing is known of the task, neither from its number nor from a trajectory.
        told_fn=told_fn if known else _untold,
        features_fn=partial(dream_models.prefix_features, models),
        decode_fn=decode_fn if known else _unread,
        policies_fn=partial(_one_policy, nets) if alone else partial(_two_policies, config, nets, models),
        start=execution_start if alone else nets.exploration.start,
        next_fn=(lambda hidden: hidden) if alone else (lambda _: execution_start),
    )


def _two_policies(config: Config, nets: ContextNetworks, models: Models, params: dict[str, PyTree]) -> tuple[Any, Any]:
    known = params["execution"]

    def explore_fn(hidden: PyTree, obs: Array, previous: Array) -> tuple[PyTree, Heads]:
        return nets.exploration.step(params["exploration"]["policy"], hidden, obs, previous)

    def execute_fn(hidden: PyTree, obs: Array, previous: Array, goal: Array, code: Array) -> tuple[PyTree, Heads]:
        del previous  # the instruction and the place are enough
        if config.plan_depth > 0:
            return hidden, dream_models.planned(models, config, nets.execution, known, obs, goal, code)
        return nets.execution.step(known["policy"], hidden, obs, goal, code)

    return explore_fn, execute_fn


def _one_policy(nets: ContextNetworks, params: dict[str, PyTree]) -> tuple[Any, Any]:
    policy, nowhere = params["execution"]["policy"], jnp.zeros(2, jnp.int32)

    def explore_fn(hidden: PyTree, obs: Array, previous: Array) -> tuple[PyTree, Heads]:
        seen = dream_joined.seen(obs, previous, nowhere, exploring=True)
        return nets.execution.step(policy, hidden, seen, nowhere, jnp.zeros(CODE))

    def execute_fn(hidden: PyTree, obs: Array, previous: Array, goal: Array, code: Array) -> tuple[PyTree, Heads]:
        seen = dream_joined.seen(obs, previous, goal, exploring=False)
        return nets.execution.step(policy, hidden, seen, nowhere, code)

    return explore_fn, execute_fn


def _untold(params: PyTree, task_id: Array, key: Key) -> Array:
    del params, task_id, key
    return jnp.zeros(CODE)


def _unread(params: PyTree, episodes: Episode, features: PyTree) -> Array:
    del params, features
    return jnp.zeros((*episodes.obs.shape[:-1], CODE))


def init_agents(parts: Parts, key: Key) -> dict[str, Agent]:
    """Draws the first parameters; the slow ones start as copies unless ``config.init_target`` says otherwise."""
    key, slow_key = jax.random.split(key)
    params = _drawn(parts, key)
    slow = _drawn(parts, slow_key) if parts.config.init_target == "random" else jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    return {
        name: Agent(params[name], slow[name], parts.optimisers[name].init(params[name]), zero, zero, Guard.new())
        for name in params
    }


def _drawn(parts: Parts, key: Key) -> dict[str, dict[str, PyTree]]:
    """First parameters of the agents that there are."""
    config, nets, models = parts.config, parts.nets, parts.models
    keys = iter(jax.random.split(key, 7))
    params: dict[str, dict[str, PyTree]] = {"execution": {"policy": nets.execution.init(next(keys))}}
    if config.method != "rl2":
        params["exploration"] = {"policy": nets.exploration.init(next(keys))}
    if config.method == "dream":
        params["execution"]["problem"] = nets.problem.init(next(keys))
        if config.gradient != "replace":
            params["execution"]["decoder"] = nets.decoder.init(next(keys))
    if models.reader is not None:
        # It starts saying little, so that the codes start as near those of tasks as without it.
        params["execution"]["reader"] = jax.tree.map(lambda x: 0.3 * x, models.reader.init(next(keys)))
        params["dynamics"] = dream_models.init_adaptable(models, config, next(keys))
    if models.latent is not None:
        params["execution"]["latent"] = dream_models.init_latent(models, next(keys))
    return params


def exploration_update(
    parts: Parts, agents: dict[str, Agent], trials: Trial, own_step: Array
) -> tuple[Agent, dict[str, Array]]:
    """One update of the exploration agent: whatever tells more of the task was worth doing.

    Args:
      parts: of the system.
      agents: both; the other one's view of the trajectories is the reward.
      trials: ``[B, ...]``.
      own_step: of the agent's steps the one that pays for this update, ``[]``.

    Returns:
      ``(agent, metrics)``.
    """
    agent = agents["exploration"]
    grads, metrics = _exploration_gradient(parts, agents, trials)
    metrics |= _signal(parts, agent, trials, lambda part, _: _exploration_gradient(parts, agents, part)[0])
    agent, taken = _stepped(parts, "exploration", agent, grads, own_step)
    return agent, metrics | taken


def _exploration_gradient(parts: Parts, agents: dict[str, Agent], trials: Trial) -> tuple[PyTree, dict[str, Array]]:
    config, agent, known = parts.config, agents["exploration"], agents["execution"].params
    episodes = trials.exploration

    def heads(params: PyTree) -> Heads:
        seen = (params["policy"], episodes.obs, previous_actions(episodes))
        if config.dueling_mean == "batch":  # the mean is over what is past the ends as well
            return parts.nets.exploration.apply(*seen)
        return parts.nets.exploration.packed(*seen, _lengths(episodes) + 1)

    codes = parts.decode_fn(known, episodes, _features(parts, agents, episodes))
    told = parts.nets.problem.apply(known["problem"], trials.task_id)
    reward = jax.vmap(partial(exploration_rewards, penalty=config.penalty))(codes, told, episodes.mask)
    slow = heads(agent.target_params)
    num_steps = jnp.mean(jnp.sum(episodes.mask, axis=1))

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        return td_loss(config, heads(params), slow, episodes, reward, num_steps)

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(agent.params)
    return grads, metrics | {"reward": jnp.sum(reward) / jnp.sum(episodes.mask)}


def execution_update(
    parts: Parts, agents: dict[str, Agent], batch: tuple[Trial, Episode], by_id: Array, own_step: Array, key: Key
) -> tuple[Agent, dict[str, Array]]:
    """One update of the execution agent, and of what it knows about tasks: temporal difference, decoder, bottleneck.

    Args:
      parts: of the system.
      agents: both.
      batch: trials ``[B, ...]``, and the part of each execution episode to learn from.
      by_id: whether the context is the noisy code of the task and not what was explored, boolean ``[]``.
      own_step: of the agent's steps the one that pays for this update, ``[]``.
      key: noise of the codes.

    Returns:
      ``(agent, metrics)``.
    """
    agent = agents["execution"]
    grads, metrics = _execution_gradient(parts, agents, batch, by_id, key)
    metrics |= _signal(parts, agent, batch, lambda part, k: _execution_gradient(parts, agents, part, by_id, k)[0], key)
    agent, taken = _stepped(parts, "execution", agent, grads, own_step)
    return agent, metrics | taken


def _execution_gradient(
    parts: Parts, agents: dict[str, Agent], batch: tuple[Trial, Episode], by_id: Array, key: Key
) -> tuple[PyTree, dict[str, Array]]:
    config, agent = parts.config, agents["execution"]
    trials, episodes = batch
    size = trials.task_id.shape[0]
    noise_key, model_key = jax.random.split(key)
    fast_key, slow_key = (jax.random.split(k, size) for k in jax.random.split(noise_key))
    told_fn = jax.vmap(parts.told_fn, in_axes=(None, 0, 0))
    seen = _lengths(trials.exploration)
    num_prefixes, num_steps = jnp.mean(seen + 1.0), jnp.mean(jnp.sum(episodes.mask, axis=1))
    features = _features(parts, agents, trials.exploration)

    def context(codes: Array, told: Array, by_id: Array) -> Array:
        explored = jnp.take_along_axis(codes, seen[:, None, None], axis=1)[:, 0]
        return jnp.where(by_id, told, explored)

    def heads(params: PyTree, code: Array) -> Heads:
        return parts.nets.execution.apply(params["policy"], episodes.obs, trials.goal, code)

    slow_params = agent.target_params
    # As released, the slow values always know the number of the task.
    slow_by_id = by_id if config.target_context == "matched" else jnp.ones((), bool)
    slow_codes = jax.lax.cond(
        slow_by_id,
        lambda: jnp.zeros((size, 1 + parts.town.horizon, CODE)),
        lambda: parts.decode_fn(slow_params, trials.exploration, features),
    )
    slow = heads(slow_params, context(slow_codes, told_fn(slow_params, trials.task_id, slow_key), slow_by_id))

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        codes = parts.decode_fn(params, trials.exploration, features)
        code = context(codes, told_fn(params, trials.task_id, fast_key), by_id)
        total, metrics = td_loss(config, heads(params, code), slow, episodes, episodes.reward, num_steps)
        known, logged = context_loss(parts, params, agent.params, trials, codes, num_prefixes)
        metrics |= logged
        if config.shared:
            policy, both = parts.nets.execution, (trials, episodes)
            told, logged = dream_models.latent_loss(parts.models, config, policy, params, both, code, model_key)
            total, metrics = total + told, metrics | logged
        return total + known, metrics

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(agent.params)
    return grads, metrics


def dynamics_update(
    parts: Parts, agents: dict[str, Agent], trials: Trial, own_step: Array, key: Key
) -> tuple[Agent, dict[str, Array]]:
    """One update of the model whose gradients are read: what it predicts of execution after a step on exploration.

    Args:
      parts: of the system.
      agents: by name.
      trials: ``[B, ...]``.
      own_step: of the execution agent's steps the one that pays for this update, ``[]``.
      key: unused by the loss, which draws nothing.

    Returns:
      ``(agent, metrics)``.
    """
    agent = agents["dynamics"]

    def gradient(part: Trial, _: Key) -> tuple[PyTree, dict[str, Array]]:
        loss = partial(dream_models.model_loss, parts.models, parts.config, trials=part, key=key)
        return jax.grad(loss, has_aux=True)(agent.params)

    grads, metrics = gradient(trials, key)
    metrics |= _signal(parts, agent, trials, lambda part, k: gradient(part, k)[0])
    agent, taken = _stepped(parts, "dynamics", agent, grads, own_step)
    return agent, metrics | taken


def _lengths(episodes: Episode) -> Array:
    """Steps of episodes ``[B, ...]``."""
    return jnp.sum(episodes.mask, axis=1).astype(jnp.int32)


def _signal(
    parts: Parts, agent: Agent, batch: PyTree, gradient_fn: Callable[[PyTree, Key], PyTree], key: Key | None = None
) -> dict[str, Array]:
    """Signal-to-noise ratio of an agent's gradient if it is asked for; see `gradient_snr`."""
    if not parts.config.diagnose_parts:
        return {}
    key = jax.random.key(0) if key is None else key  # of gradients without a draw
    _, aux = gradient_snr(
        lambda _, part, k: gradient_fn(part, k), agent.params, batch, key, num_parts=parts.config.diagnose_parts
    )
    return aux


def _features(parts: Parts, agents: dict[str, Agent], episodes: Episode) -> PyTree:
    """Gradients of every prefix of explorations ``[B, ...]``."""
    params = {name: agent.params for name, agent in agents.items()}
    return jax.vmap(partial(parts.features_fn, params))(episodes)


def _stepped(parts: Parts, name: str, agent: Agent, grads: PyTree, own_step: Array) -> tuple[Agent, dict[str, Array]]:
    """Takes the optimiser's step, and copies to the slow parameters where one is due; says how far it went."""
    config = parts.config
    params, opt, guard = apply_if_finite(parts.optimisers[name], grads, agent.opt, agent.params, agent.guard)
    due = own_step // config.target_interval > (own_step - config.update_every) // config.target_interval
    slow = trees.where(due, params, agent.target_params)
    metrics = {"grad_norm": trees.norm(grads), "update_ratio": trees.relative_change(agent.params, params)}
    return Agent(params, slow, opt, agent.steps, agent.updates + 1, guard), metrics
