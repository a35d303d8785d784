"""The compiled programs of a run: one iteration, one evaluation, one collection; each is traced exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from jaxhybrid.envs import episodes
from jaxhybrid.runtime.console import warn
from jaxhybrid.runtime.interrupts import wait
from jaxhybrid.runtime.options import RunOptions, cache_directory
from jaxhybrid.types import Env, HostEnv, Key, Metrics, PyTree, System, Transition

__all__ = ["Programs", "collection_key", "compile_programs", "evaluation_key", "lower_init", "training_key"]

# Evaluation and collection draw from streams that no training key leads to: training starts from key(seed), these from
# keys no seed reaches, since seeds end at 2^31.
_EVALUATION = 0xE7A15EED
_COLLECTION = 0xC011EC75


class Programs(NamedTuple):
    """What the loop calls. States and metrics have a leading axis ``S`` when there are several seeds.

    Attributes:
      step: ``step(state, batch) -> (state, metrics)``; the state passed in is donated. Metrics have a leading axis of
        ``chunk`` when that is more than 1.
      evaluate: ``evaluate(state) -> (returns [S, E] or [E], lengths)`` of the deterministic policy.
      collect: ``collect(state, worker, iteration) -> (worker, batch, stats)``; None for pure environments.
      seconds: what compiling took.
    """

    step: Callable[[PyTree, Transition | None], tuple[PyTree, Metrics]]
    evaluate: Callable[[PyTree], tuple[np.ndarray, np.ndarray]]
    collect: Callable[[PyTree, PyTree, int], tuple[PyTree, Transition, dict[str, Any]]] | None
    seconds: float


def training_key(seed: int) -> Key:
    """Returns the key that the run of a seed starts from, alone or among others."""
    return jax.random.key(seed)


def evaluation_key(seed: int) -> Key:
    """Returns the key of every evaluation of a seed: the same start states each time, so that evaluations compare."""
    return jax.random.fold_in(jax.random.key(_EVALUATION), seed)


def collection_key(seed: int, iteration: int) -> Key:
    """Returns the key with which the host collects in an iteration."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(_COLLECTION), seed), iteration)


def lower_init(system: System, options: RunOptions) -> tuple[PyTree, Callable[[], PyTree]]:
    """Returns the shapes of the state and the function that computes the first one.

    The second is compiled when called, which a resumed run never does.
    """
    keys = _per_seed(training_key, options)
    init = system.init if options.seeds == 1 else jax.vmap(system.init)
    lowered = jax.jit(init).lower(keys)
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), lowered.out_info)
    return template, lambda: wait(lowered.compile()(keys))


def compile_programs(
    system: System,
    env: Env | HostEnv,
    options: RunOptions,
    *,
    template: PyTree,
    worker: PyTree | None,
    num_steps: int | None,
) -> Programs:
    """Compiles everything a run calls, ahead of its first iteration.

    Args:
      system: three pure functions.
      env: the environment they were made for.
      options: of the run; uses seed, seeds, chunk, eval_episodes and compile_cache.
      template: shapes of the state, from `lower_init`.
      worker: state of a host environment; None for a pure one.
      num_steps: steps ``T`` that the host collects from each instance per iteration; None for a pure environment.

    Raises:
      TypeError: ``system.step`` returns a state of other shapes than ``system.init`` does.
    """
    start = time.monotonic()
    _use_cache(cache_directory(options))
    if isinstance(env, HostEnv):
        act, evaluate = _host_policies(system, env, options, template, worker)
        collect, batch = _host_collection(env, act, options, template, worker, num_steps or 1)
    else:
        evaluate, collect, batch = _evaluation(system, env, options, template), None, None
    return Programs(
        step=_iteration(system, options, template, batch),
        evaluate=evaluate,
        collect=collect,
        seconds=time.monotonic() - start,
    )


def _iteration(
    system: System, options: RunOptions, template: PyTree, batch: PyTree
) -> Callable[[PyTree, Transition | None], tuple[PyTree, Metrics]]:
    one = system.step if options.seeds == 1 else jax.vmap(system.step, in_axes=(0, None))

    def step(state: PyTree, batch: PyTree) -> tuple[PyTree, Metrics]:
        if options.chunk == 1:
            return one(state, batch)
        return jax.lax.scan(one, state, None, length=options.chunk)

    lowered = jax.jit(step, donate_argnums=0).lower(template, batch)
    result = lowered.out_info[0]
    structure: Any = jax.tree.structure(template)
    if jax.tree.structure(result) != structure:
        raise TypeError("system.step returned a state of another structure than system.init.")
    for (path, want), have in zip(jax.tree_util.tree_leaves_with_path(template), jax.tree.leaves(result), strict=True):
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            name = jax.tree_util.keystr(path)
            raise TypeError(f"system.step made {name} {have.dtype}{have.shape}, it was {want.dtype}{want.shape}.")
    return lowered.compile()


def _evaluation(
    system: System, env: Env, options: RunOptions, template: PyTree
) -> Callable[[PyTree], tuple[np.ndarray, np.ndarray]]:
    def evaluate(state: PyTree, key: Key) -> tuple[jax.Array, jax.Array]:
        def act(obs: jax.Array, act_key: Key) -> jax.Array:
            return system.act(state, obs, act_key, deterministic=True)

        return episodes.episode_returns(env, act, key, num_episodes=options.eval_episodes)

    keys = _per_seed(evaluation_key, options)
    program = jax.jit(evaluate if options.seeds == 1 else jax.vmap(evaluate)).lower(template, keys).compile()

    def run(state: PyTree) -> tuple[np.ndarray, np.ndarray]:
        returns, lengths = wait(program(state, keys))
        return np.asarray(returns), np.asarray(lengths)

    return run


def _host_policies(
    system: System, env: HostEnv, options: RunOptions, template: PyTree, worker: PyTree
) -> tuple[Callable[..., Any], Callable[[PyTree], tuple[np.ndarray, np.ndarray]]]:
    """Returns ``act(state, obs [N, D], keys [N])``, which explores, and the evaluation, which does not."""
    obs = jax.ShapeDtypeStruct(worker.obs.shape, worker.obs.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), env.num_envs))

    def compiled(deterministic: bool) -> Any:
        def act(state: PyTree, obs: jax.Array, keys: Key) -> jax.Array:
            return jax.vmap(lambda o, k: system.act(state, o, k, deterministic=deterministic))(obs, keys)

        return jax.jit(act).lower(template, obs, keys).compile()

    explore, exploit = compiled(False), compiled(True)
    key = evaluation_key(options.seed)

    def evaluate(state: PyTree) -> tuple[np.ndarray, np.ndarray]:
        return episodes.host_episode_returns(
            env, lambda obs, keys: exploit(state, obs, keys), key, num_episodes=options.eval_episodes
        )

    return explore, evaluate


def _host_collection(
    env: HostEnv, act: Any, options: RunOptions, template: PyTree, worker: PyTree, num_steps: int
) -> tuple[Callable[[PyTree, PyTree, int], tuple[PyTree, Transition, dict[str, Any]]], Transition]:
    shape = (num_steps, env.num_envs)
    obs, action = (env.spec.obs_dim,), (env.spec.action_dim,)
    leaves: Any = [jax.ShapeDtypeStruct((*shape, *size), np.float32) for size in (obs, action, (), (), obs)]
    batch = Transition(*leaves)

    def collect(state: PyTree, worker: PyTree, iteration: int) -> tuple[PyTree, Transition, dict[str, Any]]:
        worker, transitions, stats = episodes.host_collect(
            env,
            worker,
            lambda obs, keys: act(state, obs, keys),
            collection_key(options.seed, iteration),
            num_steps=num_steps,
        )
        return worker, jax.tree.map(lambda x: np.asarray(x, np.float32), transitions), stats

    return collect, batch


def _per_seed(key_fn: Callable[[Any], Key], options: RunOptions) -> Key:
    if options.seeds == 1:
        return key_fn(options.seed)
    return jax.vmap(key_fn)(jnp.arange(options.seed, options.seed + options.seeds))


def _use_cache(directory: Path | None) -> None:
    if directory is None:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        warn(f"compile_cache={str(directory)!r} cannot be used ({reason.strerror}): programs are compiled afresh.")
        return
    if jax.config.values["jax_compilation_cache_dir"] != str(directory):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        # JAX looks at the directory only once, at the first compilation of the process.
        compilation_cache.reset_cache()
