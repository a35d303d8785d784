"""The tasks of ``throughput``: functions of the library itself, compiled ahead, and their peers."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import dynamics, envs
from jaxhybrid.envs import episodes, mbbl
from jaxhybrid.sharding import BATCH_AXIS
from jaxhybrid.systems import maac, maac_updates
from jaxhybrid.types import EnvSpec, PyTree, Transition

if TYPE_CHECKING:
    from benchmarks.throughput import Config, Task

__all__ = ["own_tasks", "peer_tasks"]

_OBS, _ACTION = 17, 6  # half cheetah's
_MEMBERS = 8  # divides a batch of 256; the published ensembles have seven or eight
_SAC = "SAC update"
_ENSEMBLE = "ensemble step"


def _task(name: str, unit: str, count: int, fn: Callable[..., Any], *args: PyTree, flops: float = 0.0) -> Task:
    from benchmarks.throughput import Task

    began = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - began
    return Task(name, unit, count, lambda: jax.block_until_ready(compiled(*args)), seconds, flops)


def own_tasks(config: Config) -> list[Task]:
    """The library's tasks; the first is the matrix product that the others are compared with."""
    size = config.matmul
    square = jax.random.normal(jax.random.key(0), (size, size))
    tasks = [_task(f"matmul {size}", "products", 1, lambda x: x @ x, square, flops=2.0 * size**3)]
    tasks += [_env_task(name, config) for name in config.envs]
    tasks += [_sac_task(config), _products_task(config), _ensemble_task(config)]
    used = max(count for count in range(1, jax.device_count() + 1) if _MEMBERS % count == 0)
    tasks += [_ensemble_task(config, jax.devices()[:used])] if used > 1 else []
    return tasks + [_actor_task(config, horizon) for horizon in config.horizons]


def _env_task(name: str, config: Config) -> Task:
    env: Any = envs.make(name)
    reset = episodes.auto_reset(env)[0]
    workers = jax.vmap(reset)(jax.random.split(jax.random.key(0), config.num_envs))
    low, high = env.spec.action_low, env.spec.action_high
    steps = 50

    def collect(workers: Any, key: Any) -> Any:
        def act(obs: Any, k: Any) -> Any:
            return jax.random.uniform(k, (env.spec.action_dim,), minval=low, maxval=high)

        return episodes.collect(env, workers, act, key, num_steps=steps)

    title = f"{env.spec.name}, {config.num_envs} side by side"
    return _task(title, "env steps", steps * config.num_envs, collect, workers, jax.random.key(1))


def _spec() -> EnvSpec:
    bound = np.ones(_ACTION, np.float32)
    return EnvSpec("mbbl/halfcheetah", _OBS, _ACTION, -bound, bound, 1000, reward_fn=mbbl.reward_fn("halfcheetah"))


def _parts(config: Config, **changes: Any) -> maac_updates.Parts:
    sizes = {
        "policy_hidden": config.hidden,
        "critic_hidden": config.hidden,
        "model_hidden": config.model_hidden,
        "batch_size": config.batch,
        "ensemble_size": _MEMBERS,
        "real_capacity": 32_000,
        "num_paths": 1,
    }
    return maac_updates.make_parts(maac.Config(**{**sizes, **changes}), _spec())


def _rows(count: int) -> Transition:
    keys = jax.random.split(jax.random.key(2), 3)
    obs, change = jax.random.normal(keys[0], (2, count, _OBS))
    action = jax.random.uniform(keys[1], (count, _ACTION), minval=-1.0)
    return Transition(obs, action, obs[:, 0], jnp.ones(count), obs + 0.1 * change)


def _mlp_flops(widths: tuple[int, ...]) -> float:
    """Operations of one forward pass of one row."""
    return 2.0 * sum(i * o for i, o in itertools.pairwise(widths))


def _sac_task(config: Config) -> Task:
    """Replay sampling, both critics, actor, temperature, slow critics."""
    parts = _parts(config, horizon=0, steve_horizon=0, real_ratio=1.0)
    learner = maac_updates.init_learner(parts, jax.random.key(3))
    held_out = jnp.zeros((10_000, _MEMBERS), bool)
    blank = (maac_updates.blank_transition(parts.spec), held_out[0])
    replay = parts.real_replay.add(parts.real_replay.init(blank), (_rows(10_000), held_out))

    def updates(learner: Any, replay: Any, key: Any) -> Any:
        def update(carry: Any, k: Any) -> Any:
            sample_key, update_key = jax.random.split(k)
            batch = maac_updates.sample(parts, replay, None, sample_key)
            return maac_updates.update(parts, maac_updates.no_model, carry, batch, update_key)

        return jax.lax.scan(update, learner, jax.random.split(key, config.repeats))

    actor = _mlp_flops((_OBS, *config.hidden, 2 * _ACTION))
    critic = _mlp_flops((_OBS + _ACTION, *config.hidden, 1))
    # Actor: forward and backward, and forward for the target. Two critics: target forward, loss forward and backward,
    # actor's forward and backward to the action.
    flops = config.batch * (4 * actor + 2 * (1 + 3 + 2) * critic)
    return _task(_SAC, "updates", config.repeats, updates, learner, replay, jax.random.key(4), flops=flops)


def _products_task(config: Config) -> Task:
    """The batched products of one hidden layer, forward and backward: an ensemble step cannot be faster than those."""
    width = config.model_hidden[0]
    keys = jax.random.split(jax.random.key(11), 2)
    rows = jax.random.normal(keys[0], (_MEMBERS, config.batch, width))
    weights = jax.random.normal(keys[1], (_MEMBERS, width, width)) / width

    def products(rows: Any, weights: Any) -> Any:
        def once(_: Any, carry: Any) -> Any:
            forward = carry[0] @ carry[1]
            back = forward @ jnp.swapaxes(carry[1], 1, 2)
            return back, jnp.swapaxes(carry[0], 1, 2) @ forward / config.batch

        return jax.lax.fori_loop(0, config.repeats, once, (rows, weights))

    flops = 3 * 2.0 * _MEMBERS * config.batch * width**2
    name = f"batched products of a layer, {_MEMBERS} x {config.batch} x {width} x {width}"
    return _task(name, "layers", config.repeats, products, rows, weights, flops=flops)


def _ensemble_task(config: Config, devices: Sequence[jax.Device] = ()) -> Task:
    """One epoch of a fit, its row statistics and validation included; with devices, members are divided over them."""
    parts = _parts(config, model_max_epochs=1, model_batch_size=config.batch)
    size = config.repeats * config.batch * 5 // 4
    held_out = jax.random.bernoulli(jax.random.key(5), 0.2, (size, _MEMBERS))
    data = dynamics.Bootstrap(_rows(size), held_out, jnp.asarray(size))
    state = parts.ensemble.init(jax.random.key(6))
    flops = 3 * _MEMBERS * config.batch * _mlp_flops((_OBS + _ACTION, *config.model_hidden, 2 * _OBS))
    name = f"{_ENSEMBLE}, members on {len(devices)} devices" if devices else _ENSEMBLE
    with jax.set_mesh(jax.sharding.Mesh(np.array(devices), (BATCH_AXIS,))) if devices else contextlib.nullcontext():
        return _task(name, "steps", config.repeats, parts.ensemble.fit, state, data, jax.random.key(7), flops=flops)


def _actor_task(config: Config, horizon: int) -> Task:
    """Gradient of the model-augmented actor loss, one member per row and step."""
    parts = _parts(config, horizon=horizon)
    learner = maac_updates.init_learner(parts, jax.random.key(8))
    step_fn = maac_updates.make_step_fn(parts, parts.ensemble.init(jax.random.key(9)))
    obs = _rows(config.batch).obs
    repeats = max(config.repeats // 10, 1)

    def gradients(learner: Any, obs: Any, key: Any) -> Any:
        def once(carry: Any, k: Any) -> Any:
            grads, _ = jax.grad(maac_updates.actor_loss, has_aux=True)(
                learner.policy_params, obs, k, parts=parts, step_fn=step_fn, learner=learner
            )
            return jax.tree.map(jnp.add, carry, grads), None

        return jax.lax.scan(once, jax.tree.map(jnp.zeros_like, learner.policy_params), jax.random.split(key, repeats))

    model = _mlp_flops((_OBS + _ACTION, *config.model_hidden, 2 * _OBS))
    actor = _mlp_flops((_OBS, *config.hidden, 2 * _ACTION))
    critic = 2 * _mlp_flops((_OBS + _ACTION, *config.hidden, 1))
    # Model and critics: forward and backward to their inputs. Actor: to its parameters and inputs too.
    flops = config.batch * (2 * horizon * model + 3 * (horizon + 1) * actor + 2 * critic)
    name = f"MAAC actor step, H = {horizon}"
    return _task(name, "steps", repeats, gradients, learner, obs, jax.random.key(10), flops=flops)


def peer_tasks(config: Config) -> list[Task]:
    """The peers' tasks, each beside the one of ours that does the same work."""
    from benchmarks.peers.ensemble import ensemble_steps, mbrl_steps
    from benchmarks.peers.sac import sac_updates
    from benchmarks.throughput import Task

    count = config.repeats
    tasks = []
    for library in ("sbx", "stable-baselines3"):
        run = sac_updates(library, _OBS, _ACTION, config.hidden, config.batch)
        tasks.append(Task(f"{library} {_SAC}", "updates", count, partial(run, count), rival=_SAC))
    for compiled in (False, True):
        steps = ensemble_steps(_MEMBERS, _OBS + _ACTION, _OBS, config.model_hidden, config.batch, compiled=compiled)
        how = "compiled" if compiled else "eager"
        tasks.append(Task(f"PyTorch {how} {_ENSEMBLE}", "steps", count, partial(steps, count), rival=_ENSEMBLE))
    if importlib.util.find_spec("mbrl") is not None:
        steps = mbrl_steps(_MEMBERS, _OBS, _ACTION, config.model_hidden, config.batch)
        tasks.append(Task(f"mbrl-lib {_ENSEMBLE}", "steps", count, partial(steps, count), rival=_ENSEMBLE))
    return tasks
