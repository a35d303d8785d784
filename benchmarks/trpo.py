"""Seconds per iteration of TRPO and MSCV on the host, split into collection, policy, model and value function.

Batches of 5,000 steps on swimmer by default. The parts are compiled and timed one by one, in turns, and so is the whole
step; beside them the TRPO of sb3-contrib where it is installed. Seconds are those of the clock and, where others use
the machine too, those of all cores. Memory is what the compiled step takes, the batches it remembers included. Prints a
table; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
import tyro

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, console, records

__all__ = ["main"]

_PARTS = ("collect", "policy", "model", "value", "whole step")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    task: str = "swimmer"
    """A task of `envs.mujoco_v1`."""
    methods: tuple[str, ...] = ("trpo", "mscv")
    """Methods of the study mscv."""
    num_envs: tuple[int, ...] = (5, 20)
    """Instances that are stepped side by side: fewer finish whole episodes, more need fewer calls of the policy."""
    steps: int = 5000
    """Steps of a batch."""
    horizon: int | None = None
    """Model steps of MSCV; by default the paper's."""
    repeats: int = 5
    """Timed repetitions, of which the medians are reported."""
    seed: int = 0
    """Seed of the policy and the episodes."""
    out: str | None = None
    """Directory of the results; by default runs/trpo-<task>-benchmark-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
      argv: without the name of the benchmark.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    name = "trpo"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m benchmarks {name}", description=__doc__)
    if arguments.repeats < 1:
        raise InputError(f"repeats={arguments.repeats} must be at least 1.")
    if arguments.horizon is not None and arguments.horizon < 1:
        raise InputError(f"horizon={arguments.horizon} must be at least 1; --methods trpo is without a model.")
    if arguments.steps < 1:
        raise InputError(f"steps={arguments.steps} must be at least 1.")
    for count in arguments.num_envs:
        if count < 1 or arguments.steps % count:
            raise InputError(f"steps={arguments.steps} must be a multiple of num_envs={count}, at least 1.")
    # Imported here, so that --help needs no JAX.
    from experiments.mscv import METHODS
    from jaxhybrid.envs import mujoco_v1
    from jaxhybrid.systems import mscv_config

    if arguments.task not in mujoco_v1.TASKS:
        raise unknown("task", arguments.task, mujoco_v1.TASKS)
    for method in arguments.methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    env = mujoco_v1.make(arguments.task)
    env.close()
    for method in arguments.methods:
        for count in arguments.num_envs:
            mscv_config.checked(_config(arguments, method, count), env.spec)
    default = records.default_directory(name, arguments.task, "benchmark", arguments.seed)
    out = Path(arguments.out or default).expanduser()
    records.open_run(out, {"study": name} | dataclasses.asdict(arguments), dataclasses.asdict(arguments), resume=False)
    rows = {}
    for count in arguments.num_envs:
        for method in arguments.methods:
            rows[f"{method}, {count} environments"] = _measure(arguments, method, count)
    peers = {count: _peer(arguments, count) for count in arguments.num_envs}
    rows |= {f"sb3-contrib TRPO, {count} environments": found for count, found in peers.items() if found}
    rich.console.Console(width=130).print(
        _table(rows, f"seconds per iteration of {arguments.steps:,} steps, {arguments.task}")
    )
    text = json.dumps(records.jsonable({"arguments": dataclasses.asdict(arguments), "rows": rows}), indent=1)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    console.say(f"results in {out}")
    return 0


def _config(arguments: Arguments, method: str, num_envs: int) -> Any:
    """The numbers of a method."""
    from jaxhybrid.systems import mscv

    preset = mscv.presets["paper" if method == "mscv" else f"paper/{method}"]
    return dataclasses.replace(
        preset,
        horizon=arguments.horizon if method == "mscv" and arguments.horizon else preset.horizon,
        env="",
        num_envs=num_envs,
        steps_per_iteration=arguments.steps,
        segment_chunk=min(arguments.steps, 1000),
        return_lambda=0.97,
    )


def _measure(arguments: Arguments, method: str, num_envs: int) -> dict[str, Any]:
    """Median seconds of every part, on the state that one iteration left, and the memory of the whole step."""
    import jax

    from jaxhybrid import envs
    from jaxhybrid.envs import episodes
    from jaxhybrid.systems import mscv, mscv_fits, mscv_gradient, mscv_updates
    from jaxhybrid.types import HostEnv

    config = _config(arguments, method, num_envs)
    env = envs.make_rescaled(f"mujoco_v1/{arguments.task}", num_envs)
    assert isinstance(env, HostEnv), "its physics runs on the host"
    system, parts = mscv.make(config, env), mscv_updates.make_parts(config, env.spec)
    state = jax.jit(system.init)(jax.random.key(arguments.seed))
    act = jax.jit(jax.vmap(lambda s, o, k: system.act(s, o, k, deterministic=False), in_axes=(None, 0, 0)))
    worker = episodes.host_reset(env, arguments.seed)
    key = jax.random.key(arguments.seed)

    def collect() -> Any:
        nonlocal worker
        worker, batch, _ = episodes.host_collect(
            env, worker, lambda obs, keys: act(state, obs, keys), key, num_steps=config.num_steps
        )
        return batch

    @jax.jit
    def improve(learner: Any, batch: Any, steps: Any) -> Any:
        record, _ = mscv_updates.record_of(parts, learner, batch, steps)
        segments = mscv_updates.make_segments(parts, learner, record)
        # Returned, because a compiler leaves out what nobody takes.
        advantages = mscv_updates.advantages(parts, learner, segments, key)
        return advantages, mscv_gradient.policy_step(parts, learner, segments, learner.advice, key)[0]

    fit_model = jax.jit(lambda learner, memory: mscv_fits.fit_model(parts, learner, memory, key)[0].model)
    fit_value = jax.jit(lambda learner, memory: mscv_fits.fit_value(parts, learner, memory, key)[0].value_params)
    batch = collect()
    whole = jax.jit(system.step).lower(state, batch).compile()
    state, _ = whole(state, batch)
    calls: dict[str, Callable[[], Any]] = {
        "collect": collect,
        "policy": lambda: improve(state.learner, batch, state.episode_steps),
        "model": lambda: fit_model(state.learner, state.memory),
        "value": lambda: fit_value(state.learner, state.memory),
        "whole step": lambda: whole(state, batch),
    }
    if not config.needs_model:
        del calls["model"]
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[tuple[float, float]]] = {part: [] for part in calls}
    for _ in range(arguments.repeats):
        for part, call in calls.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            seconds[part].append((time.perf_counter() - began, time.process_time() - began_cpu))
    env.close()
    medians = {part: np.median(taken, axis=0) for part, taken in seconds.items()}
    taken = {part: {"clock": float(clock), "cores": float(cores)} for part, (clock, cores) in medians.items()}
    return taken | {"memory": {"gigabytes": _gigabytes(whole)}}


def _gigabytes(program: Any) -> float:
    """What a compiled program takes: arguments, results and what it computes in between."""
    needed = program.memory_analysis()
    return (needed.argument_size_in_bytes + needed.output_size_in_bytes + needed.temp_size_in_bytes) / 1e9


def _peer(arguments: Arguments, num_envs: int) -> dict[str, Any] | None:
    from benchmarks.peers import trpo as peer
    from jaxhybrid.envs.mujoco_v1 import TASKS

    try:
        found = peer.seconds_per_iteration(
            TASKS[arguments.task].gymnasium, num_envs=num_envs, steps=arguments.steps, repeats=arguments.repeats
        )
    except ImportError:
        console.warn("sb3-contrib is not installed: no peer was measured.")
        return None
    names = {"collect": "collect", "whole step": "update"}
    return {part: found[of] for part, of in names.items()}


def _table(rows: Mapping[str, Mapping[str, Any]], title: str) -> rich.table.Table:
    shown = rich.table.Table(title=f"{title}: clock (cores)")
    shown.add_column("method")
    for part in (*_PARTS, "iteration", "memory, GB"):
        shown.add_column(part, justify="right")
    for name, row in rows.items():
        cells = [f"{row[p]['clock']:.2f} ({row[p]['cores']:.2f})" if p in row else "" for p in _PARTS]
        total = [sum(row[p][what] for p in ("collect", "whole step")) for what in ("clock", "cores")]
        memory = f"{row['memory']['gigabytes']:.2f}" if "memory" in row else ""
        shown.add_row(name, *cells, f"{total[0]:.2f} ({total[1]:.2f})", memory)
    return shown


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
