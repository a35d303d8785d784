"""Gradients of one policy on the gridworld from many data sets, against the exact one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.table

from benchmarks._gamps.limits import limits
from jaxhybrid.envs import finite, gridworld
from jaxhybrid.policies import tabular_softmax
from jaxhybrid.systems import gamps
from jaxhybrid.transition_models import effect_transition
from jaxhybrid.types import Array, Key

__all__ = ["measure", "table"]

_ESTIMATORS = (
    "MFG, PGT",
    "MFG, REINFORCE",
    "FMG, likely model",
    "FMG, gradient-aware model",
    "MVG, likely model",
    "MVG, gradient-aware model",
)
_AWAY = 0.1  # standard deviation by which the logits differ from those that collected the data


def measure(datasets: int, counts: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Returns bias, variance and error of every estimator and number of trajectories, relative to the exact gradient.

    The policy is fixed and slightly off the one that collects; every estimator sees the same data sets. ``limit_bias``
    is exact: the bias that no amount of data mends. ``limit_z`` is the largest difference of a mean from that limit in
    standard errors; Monte-Carlo gradients are unbiased for it, the others get there as their model does.
    """
    policy_key, away_key, data_key = jax.random.split(jax.random.key(seed), 3)
    grid = gridworld.layout()
    policy = tabular_softmax(grid.fixed_action, 4)
    behaviour = policy.init(policy_key)
    target = behaviour + _AWAY * jax.random.normal(away_key, behaviour.shape)
    ends = limits(_numbers(counts[0]), behaviour, target)
    rows = []
    for count in counts:
        one, truth = _estimators(count, behaviour, target)
        # A few data sets at a time: a thousand trajectories of each estimator fill the memory otherwise.
        draws = jax.jit(partial(jax.lax.map, one, batch_size=10))(jax.random.split(data_key, datasets))
        scale = np.linalg.norm(truth)
        for name, found, end in zip(_ESTIMATORS, np.moveaxis(np.asarray(draws, np.float64), 1, 0), ends):
            bias = found.mean(axis=0) - truth
            variance = found.var(axis=0, ddof=1)
            rows.append(
                {
                    "estimator": name,
                    "trajectories": count,
                    "datasets": datasets,
                    "bias": np.linalg.norm(bias) / scale,
                    "bias_standard_error": np.sqrt(variance.sum() / datasets) / scale,
                    "limit_bias": np.linalg.norm(end - truth) / scale,
                    "limit_z": np.max(np.abs(found.mean(axis=0) - end) / np.sqrt(variance / datasets + 1e-12)),
                    "variance": variance.sum() / scale**2,
                    "mse": np.square(found - truth[None]).sum(axis=(1, 2)).mean() / scale**2,
                    "cosine": np.mean([np.sum(g * truth) / max(np.linalg.norm(g) * scale, 1e-300) for g in found]),
                }
            )
    return rows


def _numbers(count: int) -> gamps.Config:
    return dataclasses.replace(gamps.presets["gridworld"], trajectories=count, model_steps=50)


def _estimators(count: int, behaviour: Array, target: Array) -> tuple[Any, np.ndarray]:
    """Returns all estimates of one data set as a function of its key, ``[6, S, A]``, and the exact gradient."""
    base = _numbers(count)
    task = gamps.make_task(base, gamps.environment(base))
    problem, grid = gridworld.problem(gamma=base.gamma), gridworld.layout()
    cells = jnp.arange(len(grid.start))
    policy = tabular_softmax(grid.fixed_action, 4)

    def probs_fn(params: Array) -> Array:
        return jax.vmap(lambda s: policy.apply(params, s).probs())(cells)

    def one(key: Key) -> Array:
        data = task.collect(behaviour, key, count, True)
        found = []
        for baseline in ("pgt", "reinforce"):
            config = dataclasses.replace(gamps.presets[baseline], trajectories=count)
            found.append(gamps.policy_gradient(config, task, target, None, data, key))
        models = []
        for config in (dataclasses.replace(base, model_weights="uniform"), base):
            weights = gamps.step_weights(config, task, target, data)
            models.append(task.fit(task.init_model(key), data, weights)[0])
        for effects in models:
            # Infinitely many roll-outs: the exact gradient of the model itself.
            model = effect_transition(effects, grid.moves).at[grid.goal].set(problem.transition[grid.goal])
            found.append(finite.policy_gradient(problem._replace(transition=model), probs_fn, target))
        found += [gamps.policy_gradient(base, task, target, effects, data, key) for effects in models]
        return jnp.stack(found)

    assert task.exact_gradient is not None
    return one, np.asarray(task.exact_gradient(target), np.float64)


def table(rows: Sequence[Mapping[str, Any]]) -> rich.table.Table:
    """Returns the table that is printed; all numbers but the cosine are relative to the length of the gradient."""
    shown = rich.table.Table(title="gradients on the gridworld, off policy, relative to the exact one")
    for name in ("N", "estimator", "bias", "s.e. of bias", "bias at N = inf", "variance", "MSE", "cosine"):
        shown.add_column(name, justify="left" if name == "estimator" else "right")
    for row in rows:
        names = ("bias", "bias_standard_error", "limit_bias", "variance", "mse", "cosine")
        numbers = (f"{row[name]:.3g}" for name in names)
        shown.add_row(str(row["trajectories"]), row["estimator"], *numbers)
    return shown
