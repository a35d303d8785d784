"""Every setting and method of the study, as records; and the weight maps of one data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import gridworld
from jaxhybrid.runtime.programs import evaluation_key
from jaxhybrid.systems import gamps
from jaxhybrid.types import Env, HostEnv

if TYPE_CHECKING:
    from experiments.gamps import Config

__all__ = ["Setting", "numbers", "settings", "sweep", "weight_maps"]


class Setting(NamedTuple):
    """What is run: a topology (empty outside the gridworld), a number of trajectories, a method."""

    topology: str
    trajectories: int
    method: str


def settings(config: Config) -> list[Setting]:
    """Returns the settings in the order in which they run; the literal layout at the largest data set only."""
    gridded = config.domain == "gridworld"
    found = [
        Setting("two_areas" if gridded else "", count, method)
        for count in sorted(config.trajectories)
        for method in config.methods
    ]
    if gridded and config.literal:
        found += [Setting("literal", max(config.trajectories), method) for method in config.methods]
    return found


def numbers(config: Config, setting: Setting) -> gamps.Config:
    """Returns the numbers of the algorithm in one setting."""
    base = config.domain if setting.method == "gamps" else f"{config.domain}/{setting.method}"
    changes: dict[str, Any] = {
        "trajectories": setting.trajectories,
        "iterations": config.iterations,
        "fresh_trajectories": config.fresh_trajectories,
    }
    if config.domain == "swimmer" and config.fresh_trajectories:
        changes["physics"] = "generalized"  # what runs on the host cannot be collected from inside the step
    if setting.topology:
        changes["topology"] = setting.topology
    return dataclasses.replace(gamps.presets[base], **changes)


def sweep(config: Config, first_seed: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of one setting at a time, all seeds side by side.

    The policy and the data of a seed are the same for every method, so methods can be compared run by run.
    """
    seeds = range(first_seed, first_seed + config.seeds)
    for setting in settings(config):
        chosen = numbers(config, setting)
        env = gamps.environment(chosen)
        if isinstance(env, HostEnv):
            metrics, seconds = _one_by_one(chosen, env, config.iterations, seeds)
            env.close()
        else:
            metrics, seconds = _side_by_side(chosen, env, config.iterations, seeds)
        yield [
            {
                **setting._asdict(),
                "seed": first_seed + i,
                "returns": metrics["policy/return"][i],
                "effective_sample_size": metrics["data/effective_sample_size"][i],
                "cosine": metrics["policy/cosine"][i] if "policy/cosine" in metrics else None,
                "stopped": metrics["stopped"][i],
                "refused": metrics["guard/nonfinite"][i, -1],
                "seconds_of_all_seeds": seconds,
            }
            for i in range(config.seeds)
        ]


# Metrics speak of the policy before the step: one more iteration shows the last policy.


def _side_by_side(chosen: gamps.Config, env: Env, iterations: int, seeds: range) -> tuple[dict[str, np.ndarray], float]:
    """Runs all seeds in one program; returns the metrics ``[S, iterations + 1]`` and the seconds."""
    system = gamps.make(chosen, env)

    def run(key: jax.Array) -> Any:
        return jax.lax.scan(system.step, system.init(key), None, length=iterations + 1)[1]

    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    compiled = jax.jit(jax.vmap(run)).lower(keys).compile()
    began = time.perf_counter()
    metrics = jax.tree.map(np.asarray, jax.block_until_ready(compiled(keys)))
    return metrics, time.perf_counter() - began


def _one_by_one(
    chosen: gamps.Config, env: HostEnv, iterations: int, seeds: range
) -> tuple[dict[str, np.ndarray], float]:
    """The same with recording and evaluation on the host; every policy of a seed meets the same episodes."""
    task, step, began = gamps.make_task(chosen, env), None, time.perf_counter()
    rows = []
    for seed in seeds:
        key = jax.random.key(seed)
        system = gamps.make(chosen, env, gamps.record(chosen, task, key))
        state = system.init(key)
        # The data are in the state: one program serves all seeds.
        step = jax.jit(system.step) if step is None else step
        logged = []
        for _ in range(iterations + 1):
            evaluated = task.evaluate(state.policy_params, evaluation_key(seed))
            state, metrics = step(state, None)
            logged.append({**metrics, "policy/return": evaluated})
        rows.append(jax.tree.map(lambda *leaves: np.stack(leaves), *logged))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows), time.perf_counter() - began


def weight_maps(seed: int, trajectories: int = 1000) -> dict[str, dict[str, np.ndarray]]:
    """Returns the share of the model's likelihood that every pair gets, ``[5, 5, 4]`` by layout and kind of weight."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for topology in ("two_areas", "literal"):
        found[topology] = {}
        for kind in ("uniform", "gradient_aware"):
            config = dataclasses.replace(
                gamps.presets["gridworld"], topology=topology, model_weights=kind, trajectories=trajectories
            )
            env = gamps.environment(config)
            state = jax.jit(gamps.make(config, env).init)(jax.random.key(seed))
            weights = gamps.step_weights(config, gamps.make_task(config, env), state.policy_params, state.dataset)
            obs, action = np.asarray(state.dataset.obs), np.asarray(state.dataset.action)
            cells = np.round(obs[..., 0] * gridworld.SIZE + obs[..., 1]).astype(int)
            total = np.zeros((gridworld.SIZE**2, 4))
            np.add.at(total, (cells, action), np.asarray(weights, np.float64) * np.asarray(state.dataset.mask))
            found[topology][kind] = (total / total.sum()).reshape(gridworld.SIZE, gridworld.SIZE, 4)
    return found
