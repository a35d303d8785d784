"""What DREAM can be extended by: codes read from the gradients of a model, and a model in the policy's own states.

An extension adds parameters to the execution agent, a term to its loss and something to what it does. Without one, the
step is plain DREAM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid.context_networks import CODE, ContextNetworks, Heads, dueling
from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.gradient_readers import gradient_reader
from jaxhybrid.integer_dynamics import outcome_model
from jaxhybrid.latent_networks import LatentModel, latent_model
from jaxhybrid.losses.abstract import rolled_pairs
from jaxhybrid.losses.adaptation import (
    Adaptable,
    Outcomes,
    adaptation_loss,
    initial_log_rates,
    outcome_errors,
    prefix_gradients,
    surprise_weights,
)
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.context_model import ContextStep, context_model_loss, mixed
from jaxhybrid.networks import mlp
from jaxhybrid.planning.context import TaskModel, planned_values
from jaxhybrid.systems.dream_config import Config
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["Extension", "make_extensions", "optimiser", "planned_heads"]

_ADAPTED = "model"


class Extension(NamedTuple):
    """Pure functions of the parameters of the execution agent.

    Attributes:
      init: ``init(key)`` -> the parameters that it adds, by name.
      read_fn: ``read_fn(params, codes, episodes)`` -> what prefixes of explorations say, given what the decoder says.
      loss_fn: ``loss_fn(params, trials, episodes, contexts, key) -> (loss, metrics)`` on a batch: what is added to the
        loss of an update. ``contexts [B, CODE]`` are the codes that the policy was given.
      metrics: names of the metrics.
    """

    init: Callable[[Key], dict[str, PyTree]]
    read_fn: Callable[[dict[str, PyTree], Array, Episode], Array]
    loss_fn: Callable[[dict[str, PyTree], Trial, Episode, Array, Key], tuple[Array, dict[str, Array]]]
    metrics: tuple[str, ...]


def make_extensions(config: Config, town: City, nets: ContextNetworks) -> tuple[Extension, ...]:
    """Returns the extensions that a configuration names, none for plain DREAM."""
    makers = {_gradients: config.gradient != "off", _latent: config.model != "off"}
    return tuple(maker(config, town, nets) for maker, wanted in makers.items() if wanted)


def optimiser(config: Config, extensions: tuple[Extension, ...]) -> optax.GradientTransformation:
    """Returns what an agent learns by: Adam, with a step size of its own for the model that is adapted."""

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(rate))

    if not extensions:
        return adam(config.learning_rate)

    def labels(params: dict[str, PyTree]) -> dict[str, str]:
        return {name: _ADAPTED if name == _ADAPTED else "own" for name in params}

    rates = {"own": config.learning_rate, _ADAPTED: config.model_learning_rate}
    return optax.multi_transform({name: adam(rate) for name, rate in rates.items()}, labels)


def planned_heads(
    config: Config, town: City, nets: ContextNetworks, params: dict[str, PyTree], obs: Array, goal: Array, code: Array
) -> Heads:
    """Values of the actions after planning, as heads of which `dueling` keeps the order.

    Args:
      config: the numbers.
      town: from `envs.city.make`.
      nets: of the system.
      params: of the execution agent.
      obs: integer ``[C]``.
      goal: integer ``[2]``.
      code: what is known about the task, ``[CODE]``.

    Raises:
      InputError: no model to plan with.
    """
    policy, model = params["policy"], None
    if config.model == "planning":
        weights, latent = params["latent"], _latent_model(config, town)
        model = TaskModel(
            dynamics_fn=lambda x, action: latent.dynamics.apply(weights["dynamics"], x, action, code),
            reward_fn=lambda x, action: latent.reward.apply(weights["reward"], x, action, goal, code),
            discount_fn=lambda x, action: latent.discount.apply(weights["discount"], x, action, goal, code),
        )
    values = planned_values(
        nets.embed(policy, obs),
        q_fn=lambda x: dueling(nets.values_of(policy, x, goal, code)),
        model=model,
        depth=config.planning_depth,
        average=config.planning_values == "average",
    )
    return Heads(jnp.zeros(()), values)


def _gradients(config: Config, town: City, nets: ContextNetworks) -> Extension:
    """A model of outcomes is adapted to exploration; the gradients of that step are read as a code."""
    del nets
    model = outcome_model(town.obs_sizes, town.num_actions, rank=config.gradient_rank)
    reader = gradient_reader(model.origin, kind=config.reader, out=CODE)
    join = mlp(2 * CODE, (), CODE)
    adapt = partial(adaptation_loss, logits_fn=model.apply, rate=config.inner_rate, order=config.inner_order)

    def init(key: Key) -> dict[str, PyTree]:
        model_key, reader_key, join_key = jax.random.split(key, 3)
        params = model.init(model_key)
        rates = initial_log_rates(params, config.inner_rate) if config.inner_rates == "learned" else None
        added = {_ADAPTED: Adaptable(params, rates), "reader": reader.init(reader_key)}
        return added | ({"join": join.init(join_key)} if config.gradient == "augment" else {})

    def read_fn(params: dict[str, PyTree], codes: Array, episodes: Episode) -> Array:
        # The model is there to be adapted: what reads its gradients must not bend it to be read easily.
        frozen = jax.lax.stop_gradient(params[_ADAPTED].model)

        def read(episode: Episode) -> Array:
            gradients = prefix_gradients(
                model.origin, _outcomes(episode), logits_fn=lambda c, obs, a: model.shifted(frozen, c, obs, a)
            )
            return jax.vmap(partial(reader.apply, params["reader"]))(gradients)

        found = (read if episodes.action.ndim == 1 else jax.vmap(read))(episodes)
        if config.gradient == "replace":
            return found
        return join.apply(params["join"], jnp.concatenate([codes, found], axis=-1))

    def loss_fn(
        params: dict[str, PyTree], trials: Trial, episodes: Episode, contexts: Array, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        del episodes, contexts  # whole episodes, and nothing told
        support, query = (jax.vmap(_outcomes)(each) for each in (trials.exploration, trials.execution))
        errors = jax.vmap(partial(outcome_errors, params[_ADAPTED].model, logits_fn=model.apply))(query)
        weights = jax.vmap(partial(surprise_weights, exponent=config.surprise))(errors, query.weight)
        loss, aux = batched(adapt)(params[_ADAPTED], (support, query._replace(weight=weights)), key)
        return loss, {"adapted": loss, **aux}

    return Extension(init, read_fn, loss_fn, ("adapted", "before", "support"))


def _latent(config: Config, town: City, nets: ContextNetworks) -> Extension:
    """A model in the states that the policy embeds observations as, and what keeps these apart."""
    latent = _latent_model(config, town)
    planning = config.model == "planning"

    def init(key: Key) -> dict[str, PyTree]:
        keys = jax.random.split(key, len(latent))
        weights = {name: net.init(k) for (name, net), k in zip(latent._asdict().items(), keys)}
        return {"latent": weights if planning else {"dynamics": weights["dynamics"]}}

    def reward_fn(params: PyTree, *inputs: Array) -> Array:
        return latent.reward.apply(params["latent"]["reward"], *inputs)

    def discount_fn(params: PyTree, *inputs: Array) -> Array:
        return latent.discount.apply(params["latent"]["discount"], *inputs)

    model_loss = partial(
        context_model_loss,
        encode_fn=lambda params, obs: nets.embed(params["policy"], obs),
        dynamics_fn=lambda params, *inputs: latent.dynamics.apply(params["latent"]["dynamics"], *inputs),
        reward_fn=reward_fn if planning else None,
        discount_fn=discount_fn if planning else None,
        gamma=config.gamma,
        disambiguation=config.disambiguation,
        sharpness=config.sharpness,
    )

    def loss_fn(
        params: dict[str, PyTree], trials: Trial, episodes: Episode, contexts: Array, key: Key
    ) -> tuple[Array, dict[str, Array]]:
        execute_key, explore_key, loss_key = jax.random.split(key, 3)

        def steps(episodes: Episode, key: Key, rewarded: float) -> ContextStep:
            drawn = jax.vmap(_drawn_step)(episodes, jax.random.split(key, contexts.shape[0]))
            # A code tells what the policy needs to know; the model must do with that.
            known = jax.lax.stop_gradient(contexts)
            other = rolled_pairs(drawn.obs)[1]
            return ContextStep(drawn, trials.goal, known, other, jnp.full(contexts.shape[:1], rewarded))

        executed, explored = steps(episodes, execute_key, 1.0), steps(trials.exploration, explore_key, 0.0)
        examples = mixed(executed, explored, share=config.mix)
        return batched(model_loss)(params, examples, loss_key)

    metrics = ("transition", "disambiguation", "distance", "reward", "discount")
    return Extension(init, lambda params, codes, episodes: codes, loss_fn, metrics)


def _latent_model(config: Config, town: City) -> LatentModel:
    return latent_model(CODE, CODE, (city.SIZE, city.SIZE), town.num_actions, gamma=config.gamma)


def _outcomes(episode: Episode) -> Outcomes:
    """The steps of an episode and what came of them; ending it shows nothing."""
    weight = episode.mask * (episode.action != city.END)
    return Outcomes(episode.obs[:-1], episode.action, episode.obs[1:], weight)


def _drawn_step(episode: Episode, key: Key) -> Transition:
    """One step of an episode, uniformly."""
    t = jax.random.randint(key, (), 0, jnp.maximum(jnp.sum(episode.mask).astype(jnp.int32), 1))
    rest = (episode.action[t], episode.reward[t], episode.discount[t])
    return Transition(episode.obs[t], *rest, episode.obs[t + 1])
