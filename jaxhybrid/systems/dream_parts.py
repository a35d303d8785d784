"""What the agents of DREAM are made of: networks, optimisers, and how an exploration is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxhybrid.context_layers import CODE
from jaxhybrid.context_networks import ContextNetworks, Heads, make_networks
from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.guard import Guard
from jaxhybrid.systems import dream_joined, dream_models
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.systems.dream_models import Models
from jaxhybrid.trials import Episode
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["Agent", "Parts", "init_agents", "make_parts"]


class Agent(NamedTuple):
    """An agent and what its learning needs.

    Attributes:
      params: of its networks, by name.
      target_params: slow copies.
      opt: optimiser state, of all parameters as one vector.
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
      told_fn: ``told_fn(params, task_id, key)``, noisy codes of tasks, ``[B, CODE]``, or of one, ``[CODE]``.
      features_fn: ``features_fn(params of all agents, episode)``, gradients of every prefix, or None.
      decode_fn: ``decode_fn(params, episodes, features) -> [B, T+1, CODE]``, what every prefix of explorations says.
      code_fn: ``code_fn(params, episodes, features)``, what whole explorations say, ``[B, CODE]``, or one, ``[CODE]``.
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
    code_fn: Callable[[PyTree, Episode, PyTree], Array]
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
        possible=None if alone else city.observations(town).tolist(),
    )

    models = dream_models.make_models(config, town)

    def told_fn(params: PyTree, task_id: Array, key: Key) -> Array:
        code = nets.problem.apply(params["problem"], task_id)
        return code + config.noise * jax.random.normal(key, code.shape)

    # Each view of an exploration ends in a linear layer, so that their sum is a linear layer on both.
    def decode_fn(params: PyTree, episodes: Episode, features: PyTree) -> Array:
        views, lengths = [], episodes.lengths
        if "decoder" in params:
            views.append(nets.decoder.packed(params["decoder"], episodes.obs, episodes.action, lengths))
        if "reader" in params:
            views.append(dream_models.read_packed(models, params["reader"], features, lengths))
        return sum(views[1:], views[0])

    def code_fn(params: PyTree, episodes: Episode, features: PyTree) -> Array:
        views, lengths = [], episodes.lengths
        if "decoder" in params:
            steps = (params["decoder"], episodes.obs, episodes.action)
            one = episodes.mask.ndim == 1  # as they are played
            views.append(nets.decoder.apply(*steps)[lengths] if one else nets.decoder.whole(*steps, lengths))
        if "reader" in params:
            views.append(dream_models.read_whole(models, params["reader"], features, lengths))
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
        decode_fn=decode_fn if known else partial(_unread, axes=1),
        code_fn=code_fn if known else partial(_unread, axes=2),
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
    del params, key
    return jnp.zeros((*task_id.shape, CODE))


def _unread(params: PyTree, episodes: Episode, features: PyTree, *, axes: int) -> Array:
    """Codes of nothing, ``[..., CODE]`` without the last axes of observations."""
    del params, features
    return jnp.zeros((*episodes.obs.shape[:-axes], CODE))


def init_agents(parts: Parts, key: Key) -> dict[str, Agent]:
    """Draws the first parameters; the slow ones start as copies unless ``config.init_target`` says otherwise."""
    key, slow_key = jax.random.split(key)
    params = _drawn(parts, key)
    slow = _drawn(parts, slow_key) if parts.config.init_target == "random" else jax.tree.map(jnp.copy, params)
    opt = {name: parts.optimisers[name].init(ravel_pytree(params[name])[0]) for name in params}
    zero = jnp.zeros((), jnp.int32)
    return {name: Agent(params[name], slow[name], opt[name], zero, zero, Guard.new()) for name in params}


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
