"""A finished run of MSCV as a system and its last state, and fresh experience of its policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxhybrid import envs
from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, console, programs, records
from jaxhybrid.runtime.members import Member
from jaxhybrid.systems import mscv
from jaxhybrid.systems.mscv_updates import Parts, make_parts
from jaxhybrid.types import Env, HostEnv, Key, System, Transition

__all__ = ["Run", "fresh", "load"]


class Run(NamedTuple):
    """What a run left.

    Attributes:
      config: its numbers.
      env: its environment.
      system: both together.
      parts: the functions of the system.
      state: the last checkpoint.
      iteration: of that checkpoint.
    """

    config: mscv.Config
    env: Env | HostEnv
    system: System
    parts: Parts
    state: mscv.State
    iteration: int


def load(directory: Path, seed: int, num_envs: int | None = None) -> Run:
    """Reads a seed of a run back.

    Args:
      directory: of a run of ``python -m experiments mscv``.
      seed: one of its seeds.
      num_envs: instances that will collect; by default as many as in training.

    Raises:
      InputError: it is no such run, is a sweep, has no such seed, or no checkpoint.
    """
    if not (directory / "manifest.json").exists():
        raise InputError(f"run={str(directory)!r} holds no run: name the directory of one.")
    identity = records.identity(directory)
    if identity.get("study") != "mscv" or seed not in identity["seeds"]:
        raise InputError(f"run={str(directory)!r} is no run of the study 'mscv' with seed={seed}: name one.")
    if identity["sweep"]:
        raise InputError(f"run={str(directory)!r} is a sweep over {', '.join(identity['sweep'])}: name one part of it.")
    if identity["parallel"] == "processes":
        return load(directory / Member(seed, {}).label, seed, num_envs)
    numbers: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in identity["config"].items()}
    config = mscv.Config(**numbers)
    env = envs.make_rescaled(identity["env"], config.num_envs)
    system = mscv.make(config, env)
    keys = [programs.training_key(each) for each in identity["seeds"]]
    several = len(keys) > 1
    init: Callable[..., mscv.State] = jax.vmap(system.init) if several else system.init
    tree: dict[str, Any] = {"state": jax.eval_shape(init, jax.numpy.stack(keys) if several else keys[0])}
    if isinstance(env, HostEnv):
        tree["worker"] = episodes.host_reset(env, seed)
    restored = checkpoint.restore(directory / "checkpoints", tree, console.warn)
    if restored is None:
        raise InputError(f"run={str(directory)!r} has no checkpoint: let the run finish first.")
    if num_envs is not None and isinstance(env, HostEnv):
        env.close()
        env = envs.make_rescaled(identity["env"], num_envs)
    state = restored.tree["state"]
    if several:
        state = jax.tree.map(lambda x: x[identity["seeds"].index(seed)], state)
    return Run(config, env, system, make_parts(config, env.spec), state, restored.iteration)


def fresh(run: Run, key: Key, *, num_steps: int, num_envs: int) -> Transition:
    """Collects with the last policy of a run, from the start of episodes, ``[T, N, ...]``.

    Args:
      run: from `load`; a host environment has ``num_envs`` instances.
      key: consumed.
      num_steps: ``T``.
      num_envs: ``N``.
    """
    act: Callable[..., Any] = jax.jit(jax.vmap(lambda obs, k: run.system.act(run.state, obs, k, deterministic=False)))
    if isinstance(run.env, HostEnv):
        seed_key, act_key = jax.random.split(key)
        worker = episodes.host_reset(run.env, int(jax.random.randint(seed_key, (), 0, np.iinfo(np.int32).max)))
        return episodes.host_collect(run.env, worker, act, act_key, num_steps=num_steps)[1]
    reset_key, act_key = jax.random.split(key)
    workers = jax.vmap(episodes.auto_reset(run.env)[0])(jax.random.split(reset_key, num_envs))

    def one(obs: Any, k: Key) -> Any:
        return run.system.act(run.state, obs, k, deterministic=False)

    return episodes.collect(run.env, workers, one, act_key, num_steps=num_steps)[1]
