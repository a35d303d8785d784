"""What DREAM's two agents are made of and how each of them learns: one gradient update on a batch of recorded trials."""

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
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.systems.dream_trials import previous_actions
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["Agent", "Parts", "execution_update", "exploration_update", "init_agents", "make_parts", "METRICS"]

METRICS = {
    "exploration": ("td", "q", "reward", "grad_norm"),
    "execution": ("td", "q", "decoder", "first_error", "last_error", "code_square", "grad_norm"),
}
"""What an update of either agent logs."""


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
      optimiser: of either agent.
      told_fn: ``told_fn(params, task_id, key) -> [CODE]``, the noisy code of a task.
      decode_fn: ``decode_fn(params, episode) -> [..., T+1, CODE]``, what every prefix of explorations says.
    """

    config: Config
    town: City
    nets: ContextNetworks
    optimiser: optax.GradientTransformation
    told_fn: Callable[[PyTree, Array, Key], Array]
    decode_fn: Callable[[PyTree, Episode], Array]


def make_parts(config: Config, town: City) -> Parts:
    """Builds networks and optimisers for a city."""
    sizes: dict[str, Any] = {"num_actions": town.num_actions, "num_ids": town.num_ids, "recurrent": config.recurrent}
    nets = make_networks(town.obs_sizes, (city.SIZE, city.SIZE), **sizes)

    def told_fn(params: PyTree, task_id: Array, key: Key) -> Array:
        return nets.problem.apply(params["problem"], task_id) + config.noise * jax.random.normal(key, (CODE,))

    def decode_fn(params: PyTree, episode: Episode) -> Array:
        return nets.decoder.apply(params["decoder"], episode.obs, episode.action)

    if config.method != "dream":
        # Nothing is known of the task, neither from its number nor from a trajectory.
        told_fn, decode_fn = _untold, _unread
    optimiser = optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(config.learning_rate))
    return Parts(config, town, nets, optimiser, told_fn, decode_fn)


def _untold(params: PyTree, task_id: Array, key: Key) -> Array:
    del params, task_id, key
    return jnp.zeros(CODE)


def _unread(params: PyTree, episode: Episode) -> Array:
    del params
    return jnp.zeros((*episode.obs.shape[:-1], CODE))


def init_agents(parts: Parts, key: Key) -> dict[str, Agent]:
    """Draws the first parameters; the slow ones start as copies unless ``config.init_target`` says otherwise."""
    nets, (key, slow_key) = parts.nets, jax.random.split(key)

    def drawn(key: Key) -> dict[str, dict[str, PyTree]]:
        explore_key, execute_key, problem_key, decoder_key = jax.random.split(key, 4)
        known = {"problem": nets.problem.init(problem_key), "decoder": nets.decoder.init(decoder_key)}
        return {
            "exploration": {"policy": nets.exploration.init(explore_key)},
            "execution": {"policy": nets.execution.init(execute_key), **known},
        }

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
    metrics |= {"reward": jnp.sum(reward) / jnp.sum(episodes.mask), "grad_norm": optax.global_norm(grads)}
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
    fast_key, slow_key = (jax.random.split(k, size) for k in jax.random.split(key))
    told_fn = jax.vmap(parts.told_fn, in_axes=(None, 0, 0))
    seen = jnp.sum(trials.exploration.mask, axis=1).astype(jnp.int32)
    num_prefixes, num_steps = jnp.mean(seen + 1.0), jnp.mean(jnp.sum(episodes.mask, axis=1))

    def heads(params: PyTree, codes: Array, told: Array, by_id: Array) -> Heads:
        explored = jnp.take_along_axis(codes, seen[:, None, None], axis=1)[:, 0]
        return parts.nets.execution.apply(params["policy"], episodes.obs, trials.goal, jnp.where(by_id, told, explored))

    slow_params = agent.target_params
    # As released, the slow values always know the number of the task.
    slow_by_id = by_id if config.target_context == "matched" else jnp.ones((), bool)
    slow_codes = jax.lax.cond(
        slow_by_id,
        lambda: jnp.zeros((size, 1 + parts.town.horizon, CODE)),
        lambda: parts.decode_fn(slow_params, trials.exploration),
    )
    slow = heads(slow_params, slow_codes, told_fn(slow_params, trials.task_id, slow_key), slow_by_id)
    fixed_codes = parts.nets.problem.apply(agent.params["problem"], trials.task_id)

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        codes = parts.decode_fn(params, trials.exploration)
        fast = heads(params, codes, told_fn(params, trials.task_id, fast_key), by_id)
        td, metrics = _td_loss(config, fast, slow, episodes, episodes.reward, num_steps)
        if config.method != "dream":
            return td, metrics | dict.fromkeys(("decoder", "first_error", "last_error", "code_square"), jnp.zeros(()))
        # Decoded here, once for both losses; the code of the task is a constant of the decoder's.
        examples = (codes, trials.exploration.mask, fixed_codes)
        decode = partial(decoder_loss, decode_fn=_given, num_prefixes=num_prefixes)
        decoder, errors = batched(decode)(None, examples, key)
        squeeze = partial(bottleneck_loss, encode_fn=parts.nets.problem.apply, bound=config.bound)
        length, code = batched(squeeze)(params["problem"], trials.task_id, key)
        metrics |= {"decoder": decoder, **errors, "code_square": code["square"]}
        return td + decoder + config.bottleneck * length, metrics

    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(agent.params)
    return _stepped(parts, agent, grads, own_step), metrics | {"grad_norm": optax.global_norm(grads)}


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
    targets = jax.vmap(partial(double_q_targets, gamma=config.gamma))(
        reward, episodes.discount, next_q, after(slow)
    )
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
