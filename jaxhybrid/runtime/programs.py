"""The compiled programs of a run: one iteration, one evaluation, one collection; each is traced exactly once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding

from jaxhybrid.envs import episodes
from jaxhybrid.runtime import memory
from jaxhybrid.runtime.console import warn
from jaxhybrid.runtime.devices import fetched, placed, placement
from jaxhybrid.runtime.interrupts import wait
from jaxhybrid.runtime.members import Member, stacked
from jaxhybrid.runtime.options import RunOptions, cache_directory
from jaxhybrid.types import Env, HostEnv, Key, Metrics, PyTree, System, Transition

__all__ = ["Programs", "collection_key", "compile_programs", "evaluation_key", "lower_init", "training_key"]

SystemFn = Callable[[Mapping[str, Any]], System]

# Evaluation and collection draw from streams that no training key leads to: training starts from key(seed), these from
# keys no seed reaches, since seeds end at 2^31.
_EVALUATION = 0xE7A15EED
_COLLECTION = 0xC011EC75


class Programs(NamedTuple):
    """What the loop calls. States and metrics have a leading axis ``S`` when there are several members.

    Attributes:
      step: ``step(state, batch) -> (state, metrics)``; the state passed in is donated. Metrics have a last axis of
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


def lower_init(
    system_fn: SystemFn, options: RunOptions, group: Sequence[Member]
) -> tuple[PyTree, Callable[[], PyTree]]:
    """Returns the shapes of the state and the function that computes the first one.

    The second is compiled when called, which a resumed run never does.
    """
    keys, numbers = _inputs(training_key, group)

    def init(key: Key, numbers: PyTree) -> PyTree:
        return system_fn(numbers).init(key)

    sharding = placement(options, len(group))
    several = init if len(group) == 1 else _side_by_side(init, sharding)
    lowered = _lower(several, sharding, keys, numbers)
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), lowered.out_info
    )
    return template, lambda: wait(lowered.compile()(*placed((keys, numbers), sharding)))


def compile_programs(
    system_fn: SystemFn,
    env: Env | HostEnv,
    options: RunOptions,
    group: Sequence[Member],
    *,
    template: PyTree,
    worker: PyTree | None,
    num_steps: int | None,
) -> Programs:
    """Compiles everything a run calls, ahead of its first iteration.

    Args:
      system_fn: ``system_fn(numbers)`` is the system with some numbers of its config replaced.
      env: the environment it is made for.
      options: of the run; uses chunk, eval_episodes, memory_gib and compile_cache.
      group: the members that run side by side; exactly one on a host environment.
      template: shapes of the state, from `lower_init`.
      worker: state of a host environment; None for a pure one.
      num_steps: steps ``T`` that the host collects from each instance per iteration; None for a pure environment.

    Raises:
      TypeError: ``system.step`` returns a state of other shapes than ``system.init`` does.
      InputError: the members do not fit the memory, not even in turns; a swept number decides what is compiled.
    """
    start = time.monotonic()
    _use_cache(cache_directory(options))
    collect, batch = None, None
    # The evaluation compiles while the iteration is traced.
    with ThreadPoolExecutor(1) as beside:
        if isinstance(env, HostEnv):
            system = system_fn(group[0].numbers)
            act, evaluate = _host_policies(system, env, options, group[0].seed, template, worker)
            collect, batch = _host_collection(env, act, group[0].seed, template, worker, num_steps or 1)
        else:
            evaluate = _evaluation(system_fn, env, options, group, template, beside)
        step = _iteration(system_fn, options, group, template, batch)
    return Programs(step, evaluate, collect, time.monotonic() - start)


def _iteration(
    system_fn: SystemFn, options: RunOptions, group: Sequence[Member], template: PyTree, batch: PyTree
) -> Callable[[PyTree, Transition | None], tuple[PyTree, Metrics]]:
    sharding = placement(options, len(group))
    numbers = placed(_inputs(training_key, group)[1], sharding)

    def one(state: PyTree, numbers: PyTree, batch: PyTree) -> tuple[PyTree, Metrics]:
        system = system_fn(numbers)
        if options.chunk == 1:
            return system.step(state, batch)
        return jax.lax.scan(system.step, state, None, length=options.chunk)

    def compiled(in_turns: int | None) -> Any:
        several = _side_by_side(lambda state, numbers: one(state, numbers, None), sharding, in_turns)
        step = one if len(group) == 1 else lambda state, numbers, _: several(state, numbers)
        lowered = _lower(step, sharding, template, numbers, batch, donate=True)
        _check_shapes(template, lowered.out_info[0])
        return lowered.compile()

    program = compiled(None)
    num_devices = 1 if sharding is None else sharding.num_devices
    if options.data_parallel and num_devices > 1 and not _exchanges(program.as_text()):
        warn(f"data_parallel divides nothing: no batch is a multiple of the {num_devices} devices.")
    if len(group) > 1:
        at_once = memory.members_at_once(program.memory_analysis(), len(group), num_devices, options)
        program = program if at_once is None else compiled(at_once)
    return lambda state, batch: program(state, numbers, batch)


def _lower(fn: Callable[..., Any], sharding: NamedSharding | None, *args: PyTree, donate: bool = False) -> Any:
    """Traces a program whose arguments and results live where ``sharding`` says, or on one device."""
    donated = 0 if donate else ()
    if sharding is None:
        return jax.jit(fn, donate_argnums=donated).lower(*args)
    mesh: Any = sharding.mesh
    with jax.set_mesh(mesh):
        return jax.jit(fn, donate_argnums=donated, in_shardings=sharding, out_shardings=sharding).lower(*args)


def _exchanges(program: str) -> bool:
    """Whether the devices of a compiled program tell each other anything."""
    return any(exchange in program for exchange in ("all-reduce", "all-gather"))


def _check_shapes(template: PyTree, result: PyTree) -> None:
    structure: Any = jax.tree.structure(template)
    if jax.tree.structure(result) != structure:
        raise TypeError("system.step returned a state of another structure than system.init.")
    for (path, want), have in zip(jax.tree_util.tree_leaves_with_path(template), jax.tree.leaves(result), strict=True):
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            name = jax.tree_util.keystr(path)
            raise TypeError(f"system.step made {name} {have.dtype}{have.shape}, it was {want.dtype}{want.shape}.")


def _evaluation(
    system_fn: SystemFn,
    env: Env,
    options: RunOptions,
    group: Sequence[Member],
    template: PyTree,
    beside: ThreadPoolExecutor,
) -> Callable[[PyTree], tuple[np.ndarray, np.ndarray]]:
    def evaluate(state: PyTree, numbers: PyTree, key: Key) -> tuple[jax.Array, jax.Array]:
        system = system_fn(numbers)

        def act(obs: jax.Array, act_key: Key) -> jax.Array:
            return system.act(state, obs, act_key, deterministic=True)

        return episodes.episode_returns(env, act, key, num_episodes=options.eval_episodes)

    sharding = placement(options, len(group))
    keys, numbers = placed(_inputs(evaluation_key, group), sharding)
    several = evaluate if len(group) == 1 else _side_by_side(evaluate, sharding)
    program = beside.submit(_lower(several, sharding, template, numbers, keys).compile)

    def run(state: PyTree) -> tuple[np.ndarray, np.ndarray]:
        returns, lengths = fetched(wait(program.result()(state, numbers, keys)))
        return returns, lengths

    return run


def _side_by_side(
    one: Callable[..., Any], sharding: NamedSharding | None, in_turns: int | None = None
) -> Callable[..., Any]:
    """Maps ``one`` over a leading axis of members.

    Args:
      one: function of one member.
      sharding: divides the members over devices; None keeps them on one.
      in_turns: members of a device that are computed at once, a divisor of their number; all of them where None.
    """
    devices = 1 if sharding is None else sharding.num_devices

    def several(*args: PyTree) -> Any:
        if in_turns is None:
            return jax.vmap(one)(*args)
        # In every turn each device takes the next of its own members: [S] is [devices, turns, in_turns].
        count = jax.tree.leaves(args)[0].shape[0] // (devices * in_turns)

        def turned(x: jax.Array) -> jax.Array:
            split = x.reshape(devices, count, in_turns, *x.shape[1:])
            return split.swapaxes(0, 1).reshape(count, devices * in_turns, *x.shape[1:])

        def back(x: jax.Array) -> jax.Array:
            split = x.reshape(count, devices, in_turns, *x.shape[2:])
            return split.swapaxes(0, 1).reshape(devices * count * in_turns, *x.shape[2:])

        result = jax.lax.map(lambda each: jax.vmap(one)(*each), jax.tree.map(turned, args))
        return jax.tree.map(back, result)

    return several


def _host_policies(
    system: System, env: HostEnv, options: RunOptions, seed: int, template: PyTree, worker: PyTree
) -> tuple[Callable[..., Any], Callable[[PyTree], tuple[np.ndarray, np.ndarray]]]:
    """Returns ``act(state, obs [N, D], keys [N])``, which explores, and the evaluation, which does not."""
    obs = jax.ShapeDtypeStruct(worker.obs.shape, worker.obs.dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), env.num_envs))

    def compiled(deterministic: bool) -> Any:
        def act(state: PyTree, obs: jax.Array, keys: Key) -> jax.Array:
            return jax.vmap(lambda o, k: system.act(state, o, k, deterministic=deterministic))(obs, keys)

        return jax.jit(act).lower(template, obs, keys).compile()

    explore, exploit = compiled(False), compiled(True)
    key = evaluation_key(seed)

    def evaluate(state: PyTree) -> tuple[np.ndarray, np.ndarray]:
        return episodes.host_episode_returns(
            env, lambda obs, keys: exploit(state, obs, keys), key, num_episodes=options.eval_episodes
        )

    return explore, evaluate


def _host_collection(
    env: HostEnv, act: Any, seed: int, template: PyTree, worker: PyTree, num_steps: int
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
            collection_key(seed, iteration),
            num_steps=num_steps,
        )
        return worker, jax.tree.map(lambda x: np.asarray(x, np.float32), transitions), stats

    return collect, batch


def _inputs(key_fn: Callable[[Any], Key], group: Sequence[Member]) -> tuple[Key, PyTree]:
    """Returns the keys and the swept numbers of the members, with a leading axis where there are several."""
    seeds, numbers = stacked(group)
    if len(group) == 1:
        return key_fn(group[0].seed), jax.tree.map(lambda values: values[0], numbers)
    return jax.vmap(key_fn)(seeds), numbers


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
