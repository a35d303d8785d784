"""The fits of MSCV's model and value function to the batches in memory."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxhybrid import multi_step_model
from jaxhybrid.guard import apply_if_finite
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.multi_step import Window
from jaxhybrid.losses.value import weighted_td_loss
from jaxhybrid.ops import importance, trees
from jaxhybrid.rollout_values import score_weights
from jaxhybrid.sharding import spread
from jaxhybrid.systems.mscv_updates import Learner, Parts, Record, policy_of, value_of
from jaxhybrid.types import Array, Key, PyTree, Transition

__all__ = ["fit_model", "fit_value", "step_weights", "windows"]


def windows(
    parts: Parts, memory: PyTree, key: Key, *, count: int, length: int, weight: Array | None = None
) -> tuple[Record, Array, Array | None]:
    """Draws ``count`` windows of ``length`` steps in a row, ``[count, length, ...]``.

    Args:
      parts: of the system.
      memory: the last batches.
      key: one draw.
      count: windows.
      length: their steps.
      weight: what every step in memory counts, see `step_weights`.

    Returns:
      The windows, their masks ``[count, length]``, and their weights alike; None without ``weight``.
    """
    records, size = parts.memory.contents(memory)
    num_steps, num_envs = records.log_prob.shape[1:]
    batch_key, step_key, env_key = jax.random.split(key, 3)
    which = jax.random.randint(batch_key, (count, 1), 0, size)
    first = jax.random.randint(step_key, (count, 1), 0, num_steps)
    env = jax.random.randint(env_key, (count, 1), 0, num_envs)
    rows = first + jnp.arange(length)[None]
    clipped = jnp.minimum(rows, num_steps - 1)
    drawn, counts = jax.tree.map(lambda x: x[which, clipped, env], (records, weight))
    ends_before = jnp.cumsum(drawn.ended, axis=1) - drawn.ended
    return drawn, ((rows < num_steps) & (ends_before == 0)).astype(jnp.float32), counts


def step_weights(parts: Parts, learner: Learner, memory: PyTree) -> Array | None:
    """What every step in memory counts in the model's error, ``[M, T, N]``; None where all count alike.

    The current policy is the one that collects next, with its filter.
    """
    config = parts.config
    if config.model_weights == "uniform":
        return None
    records, size = parts.memory.contents(memory)
    shape = records.log_prob.shape
    obs, action, log_prob, used = jax.tree.map(
        lambda x: x.reshape((-1,) + x.shape[3:]),
        (
            records.steps.obs,
            records.steps.action,
            records.log_prob,
            jnp.broadcast_to((jnp.arange(config.memory) < size)[:, None, None], shape),
        ),
    )
    return score_weights(
        learner.policy_params,
        obs,
        action,
        log_prob,
        used,
        policy_fn=policy_of(parts, learner.seen),
        max_ratio=config.model_max_ratio,
        chunk=config.segment_chunk,
    ).reshape(shape)


def fit_model(parts: Parts, learner: Learner, memory: PyTree, key: Key) -> tuple[Learner, dict[str, Array]]:
    """Fits the model to windows from memory, with the statistics of all of it."""
    config = parts.config
    if learner.model is None:
        return learner, {}
    records, size = parts.memory.contents(memory)
    weight = jnp.broadcast_to((jnp.arange(config.memory) < size)[:, None, None], records.log_prob.shape)
    rows = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[3:]), records.steps)
    scales = multi_step_model.scales_of(rows, weight.reshape(-1).astype(jnp.float32))

    counts = step_weights(parts, learner, memory)

    def draw(draw_key: Key) -> Window:
        drawn, mask, weight = windows(
            parts, memory, draw_key, count=config.model_batch_size, length=config.horizon, weight=counts
        )
        return spread(Window(drawn.steps, mask, weight))

    model, guard, metrics = parts.model.fit(
        learner.model._replace(scales=scales), draw, learner.guard, key, num_updates=config.model_updates
    )
    return learner._replace(model=model, guard=guard), {f"model/{name}": value for name, value in metrics.items()}


def fit_value(parts: Parts, learner: Learner, memory: PyTree, key: Key) -> tuple[Learner, dict[str, Array]]:
    """Fits the value function of the policy to steps from memory that earlier ones took (algorithm 2)."""
    config = parts.config
    value_fn, policy_fn = value_of(parts, learner.seen), policy_of(parts, learner.seen)

    def example(steps: Transition, log_prob: Array) -> tuple[Transition, Array]:
        now = policy_fn(learner.policy_params, steps.obs).log_prob(steps.action)
        return steps, jnp.minimum(jnp.exp(now - log_prob), config.max_ratio)

    def update(carry: tuple, step_key: Key) -> tuple[tuple, dict[str, Array]]:
        params, target, opt, guard = carry
        draw_key, loss_key = jax.random.split(step_key)
        drawn, _, _ = windows(parts, memory, draw_key, count=config.value_batch_size, length=1)
        rows = jax.tree.map(lambda x: x[:, 0], drawn)
        examples = spread(jax.vmap(example)(rows.steps, rows.log_prob))
        loss = partial(weighted_td_loss, value_fn=value_fn, target_fn=partial(value_fn, target), gamma=config.gamma)
        (error, aux), grads = jax.value_and_grad(batched(loss), has_aux=True)(params, examples, loss_key)
        params, opt, guard = apply_if_finite(parts.optimiser, grads, opt, params, guard)
        target = trees.lerp(target, params, config.value_target_rate)
        weights = examples[1]
        said = {
            "error": error,
            "value": aux["value"],
            "weight": jnp.mean(weights),
            "effective_sample_size": importance.effective_sample_size(jnp.log(weights)),
        }
        return (params, target, opt, guard), said

    start = (learner.value_params, learner.value_target, learner.value_opt, learner.guard)
    (params, target, opt, guard), logged = jax.lax.scan(update, start, jax.random.split(key, config.value_updates))
    late = max(1, config.value_updates // 10)
    fitted = learner._replace(value_params=params, value_target=target, value_opt=opt, guard=guard)
    return fitted, {f"value/{name}": jnp.mean(x[-late:]) for name, x in logged.items()}
