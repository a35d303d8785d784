"""What the agents of DREAM are made of, and how each learns: one gradient update on a batch of recorded trials."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid.context_networks import CODE, ContextNetworks, Heads, dueling, make_networks
from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.guard import Guard, apply_if_finite
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.context import bottleneck_loss, decoder_loss, exploration_rewards
from jaxhybrid.losses.critic import double_q_targets, sequence_squared_error
from jaxhybrid.ops import trees
from jaxhybrid.systems import dream_extensions, dream_joined
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.systems.dream_extensions import Extension
from jaxhybrid.systems.dream_trials import previous_actions
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["Agent", "Parts", "execution_update", "exploration_update", "init_agents", "make_parts"]

_KNOWN = ("decoder", "first_error", "last_error", "code_square")


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
      extensions: what is added to plain DREAM.
      metrics: what an update of either agent logs.
      optimiser: of either agent.
      told_fn: ``told_fn(params, task_id, key) -> [CODE]``, the noisy code of a task.
      decode_fn: ``decode_fn(params, episodes) -> [..., T+1, CODE]``, what every prefix of explorations says.
      policies_fn: ``policies_fn(params of all agents)`` -> ``explore_fn(hidden, obs, previous)`` and
        ``execute_fn(hidden, obs, previous, goal, code)``, each of which returns ``(hidden, Heads)``.
      start: hidden state before exploration.
      next_fn: ``next_fn(hidden after exploration)``, the hidden state before execution.
    """

    config: Config
    town: City
    nets: ContextNetworks
    extensions: tuple[Extension, ...]
    metrics: dict[str, tuple[str, ...]]
    optimiser: optax.GradientTransformation
    told_fn: Callable[[PyTree, Array, Key], Array]
    decode_fn: Callable[[PyTree, Episode], Array]
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
    )

    def told_fn(params: PyTree, task_id: Array, key: Key) -> Array:
        return nets.problem.apply(params["problem"], task_id) + config.noise * jax.random.normal(key, (CODE,))

    extensions = dream_extensions.make_extensions(config, town, nets)

    def decode_fn(params: PyTree, episodes: Episode) -> Array:
        codes = nets.decoder.apply(params["decoder"], episodes.obs, episodes.action)
        for extension in extensions:
            codes = extension.read_fn(params, codes, episodes)
        return codes

    if config.method != "dream":
        # Nothing is known of the task, neither from its number nor from a trajectory.
        told_fn, decode_fn = _untold, _unread
    start, execution_start = nets.execution.start if alone else nets.exploration.start, nets.execution.start
    return Parts(
        config=config,
        town=town,
        nets=nets,
        extensions=extensions,
        metrics={
            "exploration": ("td", "q", "reward", "grad_norm"),
            "execution": ("td", "q", "grad_norm", *_KNOWN, *(name for each in extensions for name in each.metrics)),
        },
        optimiser=dream_extensions.optimiser(config, extensions),
        told_fn=told_fn,
        decode_fn=decode_fn,
        policies_fn=partial(_one_policy, nets) if alone else partial(_two_policies, config, town, nets),
        start=start,
        next_fn=(lambda hidden: hidden) if alone else (lambda _: execution_start),
    )


def _two_policies(config: Config, town: City, nets: ContextNetworks, params: dict[str, PyTree]) -> tuple[Any, Any]:
    def explore_fn(hidden: PyTree, obs: Array, previous: Array) -> tuple[PyTree, Heads]:
        return nets.exploration.step(params["exploration"]["policy"], hidden, obs, previous)

    def execute_fn(hidden: PyTree, obs: Array, previous: Array, goal: Array, code: Array) -> tuple[PyTree, Heads]:
        del previous  # the instruction and the place are enough
        if config.planning_depth:
            return hidden, dream_extensions.planned_heads(config, town, nets, params["execution"], obs, goal, code)
        return nets.execution.step(params["execution"]["policy"], hidden, obs, goal, code)

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


def _unread(params: PyTree, episodes: Episode) -> Array:
    del params
    return jnp.zeros((*episodes.obs.shape[:-1], CODE))


def init_agents(parts: Parts, key: Key) -> dict[str, Agent]:
    """Draws the first parameters; the slow ones start as copies unless ``config.init_target`` says otherwise."""
    nets, (key, slow_key) = parts.nets, jax.random.split(key)

    def drawn(key: Key) -> dict[str, dict[str, PyTree]]:
        key, explore_key, execute_key, problem_key, decoder_key = jax.random.split(key, 5)
        params = {"execution": {"policy": nets.execution.init(execute_key)}}
        if parts.config.method != "rl2":
            params["exploration"] = {"policy": nets.exploration.init(explore_key)}
        if parts.config.method == "dream":
            params["execution"] |= {
                "problem": nets.problem.init(problem_key),
                "decoder": nets.decoder.init(decoder_key),
            }
        for extension, extension_key in zip(parts.extensions, jax.random.split(key, len(parts.extensions) + 1)):
            params["execution"] |= extension.init(extension_key)
        return params

    params = drawn(key)
    slow = drawn(slow_key) if parts.config.init_target == "random" else jax.tree.map(jnp.copy, params)
    zero = jnp.zeros((), jnp.int32)
    return {
        name: Agent(params[name], slow[name], parts.optimiser.init(params[name]), zero, zero, Guard.new())
        for name in params
    }


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
    config, agent, known = parts.config, agents["exploration"], agents["execution"].params
    episodes = trials.exploration

    def heads(params: PyTree) -> Heads:
        return parts.nets.exploration.apply(params["policy"], episodes.obs, previous_actions(episodes))

    codes, told = parts.decode_fn(known, episodes), parts.nets.problem.apply(known["problem"], trials.task_id)
    reward = jax.vmap(partial(exploration_rewards, penalty=config.penalty))(codes, told, episodes.mask)
    slow = heads(agent.target_params)
    num_steps = jnp.mean(jnp.sum(episodes.mask, axis=1))

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        return _td_loss(config, heads(params), slow, episodes, reward, num_steps)

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(agent.params)
    metrics |= {"reward": jnp.sum(reward) / jnp.sum(episodes.mask), "grad_norm": trees.norm(grads)}
    return _stepped(parts, agent, grads, own_step), metrics


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
    config, agent = parts.config, agents["execution"]
    trials, episodes = batch
    size = trials.task_id.shape[0]
    noise_key, extension_key = jax.random.split(key)
    fast_key, slow_key = (jax.random.split(k, size) for k in jax.random.split(noise_key))
    told_fn = jax.vmap(parts.told_fn, in_axes=(None, 0, 0))
    seen = jnp.sum(trials.exploration.mask, axis=1).astype(jnp.int32)
    num_prefixes, num_steps = jnp.mean(seen + 1.0), jnp.mean(jnp.sum(episodes.mask, axis=1))

    def contexts(codes: Array, told: Array, by_id: Array) -> Array:
        explored = jnp.take_along_axis(codes, seen[:, None, None], axis=1)[:, 0]
        return jnp.where(by_id, told, explored)

    def heads(params: PyTree, contexts: Array) -> Heads:
        return parts.nets.execution.apply(params["policy"], episodes.obs, trials.goal, contexts)

    slow_params = agent.target_params
    # As released, the slow values always know the number of the task.
    slow_by_id = by_id if config.target_context == "matched" else jnp.ones((), bool)
    slow_codes = jax.lax.cond(
        slow_by_id,
        lambda: jnp.zeros((size, 1 + parts.town.horizon, CODE)),
        lambda: parts.decode_fn(slow_params, trials.exploration),
    )
    slow_told = told_fn(slow_params, trials.task_id, slow_key)
    slow = heads(slow_params, contexts(slow_codes, slow_told, slow_by_id))

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        codes = parts.decode_fn(params, trials.exploration)
        known = contexts(codes, told_fn(params, trials.task_id, fast_key), by_id)
        td, metrics = _td_loss(config, heads(params, known), slow, episodes, episodes.reward, num_steps)
        if config.method != "dream":
            return td, metrics | dict.fromkeys(_KNOWN, jnp.zeros(()))
        # Decoded here, once for both losses; the code of the task is a constant of the decoder's.
        target = parts.nets.problem.apply(agent.params["problem"], trials.task_id)
        examples = (codes, trials.exploration.mask, target)
        decode = partial(decoder_loss, decode_fn=_given, num_prefixes=num_prefixes)
        decoder, errors = batched(decode)(None, examples, key)
        squeeze = partial(bottleneck_loss, encode_fn=parts.nets.problem.apply, bound=config.bound)
        length, code = batched(squeeze)(params["problem"], trials.task_id, key)
        metrics |= {"decoder": decoder, **errors, "code_square": code["square"]}
        loss = td + decoder + config.bottleneck * length
        for extension in parts.extensions:
            added, found = extension.loss_fn(params, trials, episodes, known, extension_key)
            loss, metrics = loss + added, metrics | found
        return loss, metrics

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(agent.params)
    return _stepped(parts, agent, grads, own_step), metrics | {"grad_norm": trees.norm(grads)}


def _given(_: PyTree, codes: Array) -> Array:
    return codes


def _td_loss(
    config: Config, fast: Heads, slow: Heads, episodes: Episode, reward: Array, num_steps: Array
) -> tuple[Array, dict[str, Array]]:
    """Mean squared error of double Q-learning over all steps of a batch of episodes, from heads ``[B, T+1, ...]``."""

    def before(heads: Heads) -> Array:
        return dueling(Heads(heads.value[:, :-1], heads.advantage[:, :-1]), mean=config.dueling_mean)

    def after(heads: Heads) -> Array:
        return dueling(Heads(heads.value[:, 1:], heads.advantage[:, 1:]), mean=config.dueling_mean)

    # The same parameters choose the action, as a constant.
    next_q = jax.lax.stop_gradient(after(fast))
    targets = jax.vmap(partial(double_q_targets, gamma=config.gamma))(reward, episodes.discount, next_q, after(slow))
    examples = (before(fast), episodes.action, targets, episodes.mask)
    td = partial(sequence_squared_error, q_fn=_given, num_steps=num_steps)
    loss, aux = batched(td)(None, examples, jax.random.key(0))
    return loss, {"td": loss, **aux}


def _stepped(parts: Parts, agent: Agent, grads: PyTree, own_step: Array) -> Agent:
    """Takes the optimiser's step, and copies to the slow parameters where one is due."""
    config = parts.config
    params, opt, guard = apply_if_finite(parts.optimiser, grads, agent.opt, agent.params, agent.guard)
    due = own_step // config.target_interval > (own_step - config.update_every) // config.target_interval
    slow = jax.lax.cond(due, lambda: params, lambda: agent.target_params)
    return agent._replace(params=params, target_params=slow, opt=opt, updates=agent.updates + 1, guard=guard)
