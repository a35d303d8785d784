"""What is learned from data: a bootstrap ensemble of the dynamics, and a critic of the fixed policy by TD(0)."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments._gradient_error.problem import GAIN, Sizes, policy, random_transitions
from jaxhybrid import networks
from jaxhybrid.dynamics import Bootstrap, Ensemble, EnsembleState, make_ensemble
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.critic import soft_bootstrap, squared_error
from jaxhybrid.ops import trees
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["Critic", "build_ensemble", "fit_critics", "fit_models", "learned_q"]


def build_ensemble(sizes: Sizes) -> Ensemble:
    """The learned dynamics: a small bootstrap ensemble that stops when its validation loss no longer falls."""
    return make_ensemble(
        2,
        1,
        num_members=sizes.members,
        hidden=sizes.hidden,
        activation="swish",
        learning_rate=3e-3,
        batch_size=sizes.batch_size,
        max_epochs=sizes.epochs,
        early_stopping="patience",
        patience=max(5, sizes.epochs // 10),
    )


def _fit_model(data: Transition, size: Array, key: Key, sizes: Sizes) -> EnsembleState:
    """Fits the ensemble to the first ``size`` steps; a fifth of them validates."""
    split_key, init_key, fit_key = jax.random.split(key, 3)
    ensemble = build_ensemble(sizes)
    held_out = jax.random.bernoulli(split_key, 0.2, (data.reward.shape[0], sizes.members))
    return ensemble.fit(ensemble.init(init_key), Bootstrap(data, held_out, size), fit_key)[0]


class Critic(NamedTuple):
    """A learned critic: network parameters and the scales they are in."""

    params: PyTree
    input_mean: Array
    input_std: Array
    scale: Array


def learned_q(critic: Critic, sizes: Sizes, obs: Array, action: Array) -> Array:
    """Value of the learned critic, ``[]``."""
    x = (jnp.concatenate([obs, action]) - critic.input_mean) / critic.input_std
    return critic.scale * networks.mlp(3, sizes.hidden, 1, activation="swish").apply(critic.params, x)[0]


def _fit_critic(data: Transition, size: Array, gamma: Array, key: Key, sizes: Sizes) -> Critic:
    """Evaluates the fixed policy by TD(0) on the first ``size`` steps, off-policy: the next action is the policy's."""
    init_key, updates_key = jax.random.split(key)
    weight = (jnp.arange(data.reward.shape[0]) < size).astype(jnp.float32) / size
    inputs = jnp.concatenate([data.obs, data.action], axis=1)
    mean = weight @ inputs
    std = jnp.sqrt(weight @ jnp.square(inputs - mean[None]))
    # A reward scale over 1 - gamma is the scale of a return: the network then works on numbers of order one.
    scale = jnp.sqrt(weight @ jnp.square(data.reward - weight @ data.reward)) / (1.0 - gamma)
    params = networks.mlp(3, sizes.hidden, 1, activation="swish").init(init_key)
    optimiser = optax.adam(optax.cosine_decay_schedule(3e-3, sizes.updates))
    bound = functools.partial(policy, jnp.array(GAIN))

    def q_fn(p: PyTree, obs: Array, action: Array) -> Array:
        return learned_q(Critic(p, mean, std, scale), sizes, obs, action)

    loss = batched(functools.partial(squared_error, q_fn=q_fn))

    def update(carry: tuple[PyTree, PyTree, PyTree], update_key: Key) -> tuple[tuple[PyTree, PyTree, PyTree], None]:
        params, target_params, state = carry
        row_key, action_key, loss_key = jax.random.split(update_key, 3)
        rows = jax.random.randint(row_key, (sizes.batch_size,), 0, size)
        batch = jax.tree.map(lambda x: x[rows], data)
        target_q = functools.partial(q_fn, target_params)
        values = jax.vmap(lambda s, k: soft_bootstrap(s, k, policy_fn=bound, q_fn=target_q)[0])(
            batch.next_obs, jax.random.split(action_key, sizes.batch_size)
        )
        example = (batch.obs, batch.action, batch.reward + gamma * batch.discount * values)
        grads, _ = jax.grad(loss, has_aux=True)(params, example, loss_key)
        updates, state = optimiser.update(grads, state)
        params = optax.apply_updates(params, updates)
        return (params, trees.lerp(target_params, params, 0.05), state), None

    carry = (params, params, optimiser.init(params))
    (params, _, _), _ = jax.lax.scan(update, carry, jax.random.split(updates_key, sizes.updates))
    return Critic(params, mean, std, scale)


@functools.partial(jax.jit, static_argnames=("capacity", "sizes"))
def fit_models(keys: Key, size: Array, *, capacity: int, sizes: Sizes) -> tuple[Transition, EnsembleState]:
    """Draws the data of every seed, ``[S, capacity]``, and fits a model to the first ``size`` steps."""

    def one(key: Key) -> tuple[Transition, EnsembleState]:
        data_key, fit_key = jax.random.split(key)
        data = random_transitions(data_key, capacity, sizes)
        return data, _fit_model(data, size, fit_key, sizes)

    return jax.vmap(one)(keys)


@functools.partial(jax.jit, static_argnames="sizes")
def fit_critics(data: Transition, keys: Key, size: Array, gamma: Array, *, sizes: Sizes) -> Critic:
    """Fits the critic of every seed to the first ``size`` steps of its data."""
    return jax.vmap(lambda d, k: _fit_critic(d, size, gamma, k, sizes))(data, keys)
