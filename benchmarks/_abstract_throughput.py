"""The tasks of ``abstract_throughput``: updates and plans of the library, compiled ahead, and their peers."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from benchmarks.abstract_throughput import METHODS
from benchmarks.throughput import Task
from jaxhybrid.envs import maze
from jaxhybrid.systems import gmas, gmas_parts, gmas_updates

if TYPE_CHECKING:
    from benchmarks.abstract_throughput import Config

__all__ = ["own_tasks", "peer_tasks"]

_TUPLES = 2000


def own_tasks(config: Config) -> list[Task]:
    """The library's tasks, on pictures of random mazes."""
    env = maze.make(pool_size=64, max_episode_steps=None, observation="cells", split="train")
    data = jax.jit(partial(gmas.collect, env, num_tuples=_TUPLES))(jax.random.key(0))
    built = {method: _parts(method, config, env) for method in dict.fromkeys(["crar", *config.methods])}
    learner = jax.jit(partial(gmas_updates.init_learner, built["crar"]))(jax.random.key(0))
    tasks = []
    for method in config.methods:
        own = learner._replace(opts=_opts(built[method], learner.params))
        tasks.append(
            _task(f"{method} update", "updates", config.updates, partial(_updates, built[method], config, data), own)
        )
    for depth, states in itertools.product(config.depths, config.states):
        act = jax.vmap(partial(gmas.planned_act, built["crar"], depth=depth), in_axes=(None, 0, None))
        name = f"plan, depth {depth}, {states} state{'s' * (states > 1)}"
        tasks.append(_task(name, "actions", states, act, learner.params, data.obs[:states], jax.random.key(0)))
    return tasks


def peer_tasks(config: Config, *, compiled: bool) -> list[Task]:
    """CRAR in PyTorch, as it stands and after ``torch.compile``."""
    from benchmarks.peers.crar import crar_updates

    tasks = []
    for method in ("crar", "crar joint"):
        for flag in (False, True) if compiled else (False,):
            if method in config.methods:
                run = crar_updates(config.batch, joint=method == "crar joint", compiled=flag)
                name = f"PyTorch {method}{', compiled' if flag else ''}"
                rival = f"{method} update"
                tasks.append(Task(name, "updates", config.updates, partial(run, config.updates), rival=rival))
    return tasks


def _parts(method: str, config: Config, env: Any) -> gmas_parts.Parts:
    preset, mode, share = METHODS[method]
    changes = {"loss_mode": mode, "share_patches": share, "batch_size": config.batch}
    numbers = dataclasses.replace(gmas.presets[preset], **changes)
    return gmas_parts.make_parts(numbers, env.spec, maze.sprites())


def _opts(parts: gmas_parts.Parts, params: Any) -> Any:
    every = tuple(params)
    return {
        name: optimiser.init({part: params[part] for part in gmas_parts.LOSSES.get(name, every)})
        for name, optimiser in parts.optimisers.items()
    }


def _updates(parts: gmas_parts.Parts, config: Config, data: Any, learner: Any) -> Any:
    weights = jnp.ones(parts.config.match_depth + 1)

    def one(current: Any, key: Any) -> Any:
        rows = jax.tree.map(lambda x: x[jax.random.randint(key, (config.batch,), 0, _TUPLES)], data)
        return gmas_updates.update(parts, current, rows, weights, jnp.asarray(5e-4), key)

    return jax.lax.scan(one, learner, jax.random.split(jax.random.key(1), config.updates))[0].params


def _task(name: str, unit: str, count: int, fn: Callable[..., Any], *args: Any) -> Task:
    began = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - began
    return Task(name, unit, count, lambda: jax.block_until_ready(compiled(*args)), seconds)
