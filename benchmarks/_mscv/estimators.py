"""Gradients of a frozen policy from single episodes, by every estimator, with the model that a run left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.losses.control_variate import mscv_loss, qprop_loss, svg_loss
from jaxhybrid.ops.control_variates import optimal_coefficient
from jaxhybrid.systems import mscv_updates as updates
from jaxhybrid.types import Array, Key, PyTree, Segment

__all__ = ["episode_gradients", "rows", "with_coefficient"]

HORIZONS = (1, 2, 3, 4, 5)


def rows(run: Any) -> dict[str, Callable[[PyTree, Segment, Key], tuple[Array, Any]]]:
    """Returns the losses of a segment whose gradients span all rows: of TRPO, and with each control variate at 1."""
    learner, parts = run.state.learner, run.parts
    policy_fn, step_fn = updates.policy_of(parts, learner.seen), updates.bound_step(parts, learner)
    value_fn, gamma = updates.bound_value(parts, learner), run.config.gamma
    bound: dict[str, Any] = {"policy_fn": policy_fn, "step_fn": step_fn, "value_fn": value_fn, "gamma": gamma}

    def q_fn(obs: Array, action: Array) -> Array:
        next_obs, reward, discount = step_fn(obs, action, None)
        return reward + gamma * discount * value_fn(next_obs)

    found: dict[str, Any] = {"TRPO": partial(mscv_loss, horizon=0, eta=0.0, **bound)}
    found |= {f"MSCV, k = {k}": partial(mscv_loss, horizon=k, **bound) for k in HORIZONS}
    found["Q-Prop"] = partial(qprop_loss, policy_fn=policy_fn, q_fn=q_fn, value_fn=value_fn)
    found["SVG, k = 2"] = partial(svg_loss, horizon=2, **bound)
    return found


def episode_gradients(run: Any) -> Callable[[Any, Key], dict[str, PyTree]]:
    """Returns ``(steps, key) -> directions of ascent from each episode``, leaves ``[E, ...]``, by row.

    ``steps`` are whole episodes side by side, ``[T, E, ...]``; ``key`` is of what the record lacks, the same for all
    rows.

    Args:
      run: from `experiments._mscv.states.load`.
    """
    learner, parts = run.state.learner, run.parts
    longest = parts._replace(config=dataclasses.replace(run.config, horizon=max(HORIZONS)))
    losses = rows(run)
    params = learner.policy_params

    @jax.jit
    def one(episode: Any, episode_key: Key) -> dict[str, PyTree]:
        record, _ = updates.record_of(parts, learner, episode, jnp.zeros(1, jnp.int32))
        segments = updates.make_segments(longest, learner, record)
        keys = jax.random.split(episode_key, segments.obs.shape[0])

        def mean(loss: Any, p: PyTree) -> Array:
            return -jnp.mean(jax.vmap(lambda s, k: loss(p, s, k)[0])(segments, keys))

        return {name: jax.grad(partial(mean, loss))(params) for name, loss in losses.items()}

    def each(steps: Any, key: Key) -> dict[str, PyTree]:
        keys = jax.random.split(key, steps.reward.shape[1])
        found = [one(jax.tree.map(lambda x, i=i: x[:, i : i + 1], steps), k) for i, k in enumerate(keys)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(found))

    return each


def with_coefficient(base: PyTree, corrected: PyTree, *, per_tensor: bool) -> tuple[PyTree, dict[str, float]]:
    """Gradients with the best coefficient, found on one half of the episodes and applied to the other, both ways.

    Args:
      base: gradients without the control variate, leaves ``[E, ...]``.
      corrected: the same with the coefficient 1.
      per_tensor: one coefficient for each parameter tensor, else one for all.

    Returns:
      The gradients, and the coefficients by tensor (means over the halves).
    """
    half = jax.tree.leaves(base)[0].shape[0] // 2
    control = jax.tree.map(np.subtract, base, corrected)

    def part(tree: PyTree, which: slice) -> PyTree:
        return jax.tree.map(lambda x: x[which], tree)

    halves, used = [], []
    for fit, use in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        if per_tensor:
            coef = jax.tree.map(optimal_coefficient, part(base, fit), part(control, fit))
        else:
            one = optimal_coefficient(_flat(part(base, fit)), _flat(part(control, fit)))
            coef = jax.tree.map(lambda _, one=one: one, base)
        halves.append(jax.tree.map(lambda b, h, c: b - float(c) * h, part(base, use), part(control, use), coef))
        used.append(coef)
    mean = jax.tree.map(lambda a, b: float(a + b) / 2, *used)
    return jax.tree.map(lambda a, b: np.concatenate([b, a]), *halves), _named(mean)


def _flat(tree: PyTree) -> Array:
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([jnp.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)


def _named(tree: PyTree) -> dict[str, float]:
    return {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(tree)}
