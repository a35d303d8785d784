"""How the agents of DREAM learn: one gradient update of each on a batch of recorded trials."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxhybrid.context_networks import Heads
from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.guard import apply_if_finite
from jaxhybrid.losses.context import exploration_rewards
from jaxhybrid.ops import trees
from jaxhybrid.systems import dream_models
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.systems.dream_losses import KNOWN, context_loss, td_loss
from jaxhybrid.systems.dream_parts import Agent, Parts
from jaxhybrid.systems.dream_trials import previous_actions
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["dynamics_update", "execution_update", "exploration_update", "metric_names"]


def metric_names(config: Config, name: str) -> tuple[str, ...]:
    """What an update of an agent logs."""
    told = dream_models.LATENT_METRICS if config.shared else ()
    signal = ("snr",) if config.diagnose_parts else ()
    return {
        "exploration": ("td", "q", "reward", "grad_norm", "update_ratio", *signal),
        "execution": ("td", "q", "grad_norm", "update_ratio", *KNOWN, *told, *signal),
        "dynamics": ("after", "before", "support", "grad_norm", "update_ratio", *signal),
    }[name]


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
        return parts.nets.exploration.packed(*seen, episodes.lengths + 1)

    codes = parts.decode_fn(known, episodes, _features(parts, agents, episodes))
    told = parts.nets.problem.apply(known["problem"], trials.task_id)
    reward = jax.vmap(partial(exploration_rewards, penalty=config.penalty))(codes, told, episodes.mask)
    slow = heads(agent.target_params)
    num_steps = jnp.mean(episodes.lengths)

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
    fast_key, slow_key, model_key = jax.random.split(key, 3)
    seen = trials.exploration.lengths
    num_prefixes, num_steps = jnp.mean(seen + 1.0), jnp.mean(episodes.lengths)
    features = _features(parts, agents, trials.exploration)

    def heads(params: PyTree, code: Array) -> Heads:
        return parts.nets.execution.apply(params["policy"], episodes.obs, trials.goal, code)

    slow_params = agent.target_params
    # As released, the slow values always know the number of the task.
    slow_by_id = by_id if config.target_context == "matched" else jnp.ones((), bool)
    slow_code = jax.lax.cond(
        slow_by_id,
        lambda: parts.told_fn(slow_params, trials.task_id, slow_key),
        lambda: parts.code_fn(slow_params, trials.exploration, features),
    )
    slow = heads(slow_params, slow_code)

    def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
        codes = parts.decode_fn(params, trials.exploration, features)
        explored = jnp.take_along_axis(codes, seen[:, None, None], axis=1)[:, 0]
        code = jnp.where(by_id, parts.told_fn(params, trials.task_id, fast_key), explored)
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
    # All layers as one vector: one pass over the memory in the place of one for each of them.
    (before, shaped), (gradient, _) = ravel_pytree(agent.params), ravel_pytree(grads)
    after, opt, guard = apply_if_finite(parts.optimisers[name], gradient, agent.opt, before, agent.guard, bounded=True)
    params = shaped(after)
    due = own_step // config.target_interval > (own_step - config.update_every) // config.target_interval
    slow = jax.lax.cond(due, lambda: params, lambda: agent.target_params)
    metrics = {"grad_norm": trees.norm(gradient), "update_ratio": trees.relative_change(before, after)}
    return Agent(params, slow, opt, agent.steps, agent.updates + 1, guard), metrics
