"""The model-based extensions of DREAM: a model that is adapted to what was explored, and one that is told the task.

Gradients of the first, read by a network, are a second view of a trajectory; the second shares the embedding of states
with the execution policy, and plans.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.context_layers import CODE, Look
from jaxhybrid.context_networks import Heads, RecurrentQ, dueling
from jaxhybrid.envs import city
from jaxhybrid.envs.city import City
from jaxhybrid.envs.city_planes import NUM_PLANES, planes
from jaxhybrid.gradient_readers import GradientReader, gradient_reader
from jaxhybrid.integer_dynamics import OutcomeModel, outcome_model
from jaxhybrid.latent_networks import LatentModel, PlaneEncoder, latent_model
from jaxhybrid.losses import adaptation
from jaxhybrid.losses.abstract import rolled_pairs
from jaxhybrid.losses.adaptation import Adaptable, Outcomes
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.context_model import ContextStep, context_model_loss, mixed
from jaxhybrid.networks import Network
from jaxhybrid.ops import packing
from jaxhybrid.planning.context import TaskModel, planned_values
from jaxhybrid.systems.dream_config import Config, used
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = [
    "LATENT_METRICS",
    "Models",
    "init_adaptable",
    "init_latent",
    "latent_loss",
    "make_look",
    "make_models",
    "model_loss",
    "outcomes",
    "planned",
    "prefix_features",
    "read_packed",
    "read_whole",
]

LATENT_METRICS = ("transition", "disambiguation", "reward", "discount", "distance")


class Models(NamedTuple):
    """The networks of the extensions; None where one is not used.

    Attributes:
      outcome: the model that is adapted.
      reader: of its gradients.
      latent: the model that is told the task.
    """

    outcome: OutcomeModel | None
    reader: GradientReader | None
    latent: LatentModel | None


def make_models(config: Config, town: City) -> Models:
    """Returns the networks that the switches of ``config`` ask for."""
    outcome = outcome_model(town.obs_sizes, town.num_actions) if config.gradient != "off" else None
    reader = None
    if outcome is not None:
        options: dict[str, Any] = {"kind": config.reader, "preprocessing": config.preprocessing, "out": CODE}
        reader = gradient_reader(outcome.origin, **options)
    latent = None
    if config.shared or config.plan_depth:
        latent = latent_model(CODE, CODE, (city.SIZE, city.SIZE), town.num_actions, gamma=config.gamma)
    return Models(outcome, reader, latent)


def make_look(town: City) -> Look:
    """Returns observations as small pictures of the city, and the network that reads one."""
    encoder, blank = PlaneEncoder(CODE), jnp.zeros((city.SIZE, city.SIZE, NUM_PLANES))
    return Look(
        draw=lambda obs: planes(town, obs),
        encoder=Network(lambda key: encoder.init(key, blank), encoder.apply),
    )


def init_adaptable(models: Models, config: Config, key: Key) -> dict[str, PyTree]:
    """Draws the model that is adapted, and its inner step sizes if they are learnt."""
    assert models.outcome is not None
    params = {"model": models.outcome.init(key)}
    if config.learned_rates:
        params["log_rates"] = adaptation.initial_log_rates(params["model"], config.inner_rate)
    return params


def init_latent(models: Models, key: Key) -> dict[str, PyTree]:
    """Draws the parameters of dynamics, reward and discount."""
    assert models.latent is not None
    keys = jax.random.split(key, len(models.latent))
    return {name: net.init(k) for name, net, k in zip(models.latent._fields, models.latent, keys, strict=True)}


def outcomes(episode: Episode) -> Outcomes:
    """What an episode shows of the city: all its steps but giving up, whose outcome says nothing."""
    weight = jnp.where(episode.action == city.END, 0.0, episode.mask)
    return Outcomes(episode.obs[:-1], episode.action, episode.obs[1:], weight)


def model_loss(
    models: Models, config: Config, params: PyTree, trials: Trial, key: Key
) -> tuple[Array, dict[str, Array]]:
    """Error on execution after a step on exploration, in the mean over trials ``[B, ...]``."""
    assert models.outcome is not None
    apply = models.outcome.apply
    support, query = jax.vmap(outcomes)(trials.exploration), jax.vmap(outcomes)(trials.execution)
    if used(config.surprise):
        # Steps that the model predicts anyway teach it nothing about adapting.
        errors = jax.vmap(lambda q: adaptation.outcome_errors(params["model"], q, logits_fn=apply))(query)
        weights = jax.vmap(lambda e, w: adaptation.surprise_weights(e, w, exponent=config.surprise))
        query = query._replace(weight=weights(errors, query.weight))

    def loss(params: Adaptable, example: Any, key: Key) -> tuple[Array, dict[str, Array]]:
        options: dict[str, Any] = {"rate": config.inner_rate, "order": config.order}
        return adaptation.adaptation_loss(params, example, key, logits_fn=apply, **options)

    value, aux = batched(loss)(Adaptable(params["model"], params.get("log_rates")), (support, query), key)
    return value, {"after": value, **aux}


def prefix_features(models: Models, params: dict[str, PyTree], episode: Episode) -> PyTree:
    """Gradients that every prefix of one exploration would adapt the model by, ``[T+1, ...]``; None without a model.

    Args:
      models: of the system.
      params: of the agents, by name; the model is a constant of what reads its gradients.
      episode: of exploration.
    """
    if models.outcome is None:
        return None
    model, shifted = params["dynamics"]["model"], models.outcome.shifted
    return adaptation.prefix_gradients(
        models.outcome.origin, outcomes(episode), logits_fn=lambda at, obs, action: shifted(model, at, obs, action)
    )


def read_packed(models: Models, reader_params: PyTree, features: PyTree, lengths: Array) -> Array:
    """What the reader makes of the gradients of every prefix of explorations, ``[B, T+1, CODE]``, zeros past the ends.

    Args:
      models: of the system.
      reader_params: of the reader.
      features: ``[B, T+1, ...]``, from `prefix_features`; those of the empty prefix are zeros.
      lengths: of the explorations, integer ``[B]``.
    """
    assert models.reader is not None
    places = packing.pack(lengths, jax.tree.leaves(features)[0].shape[1] - 1)
    rows = [packing.with_empty(places, packing.take(places, x[:, 1:])) for x in jax.tree.leaves(features)]
    gradients = jax.tree.unflatten(jax.tree.structure(features), [x for x, _ in rows])
    return packing.spread_prefixes(places, models.reader.many(reader_params, gradients, rows[0][1]))


def read_whole(models: Models, reader_params: PyTree, features: PyTree, lengths: Array) -> Array:
    """The same of whole explorations, ``[B, CODE]``, or of one, ``[CODE]``."""
    assert models.reader is not None
    if lengths.ndim == 0:
        return models.reader.apply(reader_params, jax.tree.map(lambda x: x[lengths], features))
    last = jax.tree.map(lambda x: jax.vmap(lambda prefixes, place: prefixes[place])(x, lengths), features)
    return models.reader.many(reader_params, last)


def latent_loss(
    models: Models,
    config: Config,
    policy: RecurrentQ,
    params: PyTree,
    batch: tuple[Trial, Episode],
    codes: Array,
    key: Key,
) -> tuple[Array, dict[str, Array]]:
    """Loss of the model that is told the task, on single steps ``[B]``; the state embedder is that of the policy.

    Args:
      models: of the system.
      config: the numbers.
      policy: the execution policy.
      params: of the execution agent.
      batch: trials ``[B, ...]`` and the steps of their execution, each as an episode of one.
      codes: of the tasks, ``[B, Z]``; they learn from the model's errors too.
      key: draws the steps of exploration that are mixed in.
    """
    latent = models.latent
    assert latent is not None
    trials, steps = batch

    def seen(episodes: Episode, rewarded: float) -> ContextStep:
        # Embedded here, all at once, and not one by one in the loss.
        x, next_x = jnp.moveaxis(policy.embed(params["policy"], episodes.obs), 1, 0)
        step = Transition(x, episodes.action[:, 0], episodes.reward[:, 0], episodes.discount[:, 0], next_x)
        _, other = rolled_pairs(x)
        return ContextStep(step, trials.goal, codes, other, jnp.full(codes.shape[0], rewarded))

    examples = seen(steps, 1.0)
    if used(config.mix):
        lengths = trials.exploration.lengths
        place = jax.random.randint(key, lengths.shape, 0, lengths)
        explored = jax.tree.map(lambda x: jnp.take_along_axis(x, place[:, None], axis=1), tuple(trials.exploration[1:]))
        pairs = jax.vmap(lambda obs, t: jax.lax.dynamic_slice_in_dim(obs, t, 2))(trials.exploration.obs, place)
        examples = mixed(examples, seen(Episode(pairs, *explored), 0.0), share=config.mix)

    def part(name: str) -> Any:
        return lambda p, *inputs: getattr(latent, name).apply(p["latent"][name], *inputs)

    def loss(params: PyTree, example: ContextStep, key: Key) -> tuple[Array, dict[str, Array]]:
        planning = {"reward_fn": part("reward"), "discount_fn": part("discount")} if config.plan_depth > 0 else {}
        return context_model_loss(
            params,
            example,
            key,
            encode_fn=lambda _, x: x,
            dynamics_fn=part("dynamics"),
            gamma=config.gamma,
            **planning,
        )

    # Embedded states and codes are examples that depend on what is differentiated.
    return batched(loss)(params, examples, key)


def planned(
    models: Models, config: Config, policy: RecurrentQ, params: PyTree, obs: Array, goal: Array, code: Array
) -> Heads:
    """Values of one state after ``config.plan_depth`` steps of the model, as heads of which only the order counts."""
    latent = models.latent
    assert latent is not None
    model = TaskModel(
        dynamics_fn=lambda x, action: latent.dynamics.apply(params["latent"]["dynamics"], x, action, code),
        reward_fn=lambda x, action: latent.reward.apply(params["latent"]["reward"], x, action, goal, code),
        discount_fn=lambda x, action: latent.discount.apply(params["latent"]["discount"], x, action, goal, code),
    )
    values = planned_values(
        policy.embed(params["policy"], obs),
        q_fn=lambda x: dueling(policy.values(params["policy"], x, goal, code)),
        model=model,
        depth=config.plan_depth,
        average=config.plan_average,
    )
    return Heads(jnp.zeros(()), values)
