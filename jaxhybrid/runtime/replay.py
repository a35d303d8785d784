"""Replays the failure that a run left in a capsule, and names the first quantity that was not finite.

A capsule is a checkpoint from before the failure and the number of iterations from it to the end of the run. The
iterations are repeated with the compiled program, to the bit, until an update is refused or a value that persists is no
longer finite; that iteration is run once more with the value of every operation kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import blame, checkpoint, cli, console, schema, settings, strict_json
from jaxhybrid.runtime.members import configured, members, stacked
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.runtime.programs import compile_programs, lower_init
from jaxhybrid.types import HostEnv, Metrics, PyTree, Setting, System

__all__ = ["Capsule", "Finding", "main", "read", "replay"]

_FACTS = {
    "format": int,
    "reason": str,
    "members": list,
    "checkpoint_iteration": int,
    "failed_by_iteration": int,
    "iterations_to_replay": int,
    "identity": dict,
}
_REFUSED, _STREAK = "guard/nonfinite", "guard/nonfinite_streak"


class Capsule(NamedTuple):
    """What a capsule says of itself.

    Attributes:
      directory: of the capsule.
      reason: why the run ended.
      iterations: from the checkpoint in it to the end of the run.
      identity: what decided the numbers of the run.
      options: those of the run's options that did.
    """

    directory: Path
    reason: str
    iterations: int
    identity: dict[str, Any]
    options: RunOptions


class Finding(NamedTuple):
    """What a replay found.

    Attributes:
      iteration: the first iteration in which something was not finite.
      leaves: paths and first indices of what persists and stopped being finite in it.
      refused: updates refused in it.
      origin: where the first value came from that was not finite.
    """

    iteration: int
    leaves: tuple[str, ...]
    refused: int
    origin: blame.Origin


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the replay is given on the command line."""

    capsule: tyro.conf.Positional[Path]
    """Directory of the capsule, <run>/capsule-<iteration>."""
    compile_cache: str = "default"
    """As for a run."""
    unjitted: bool = False
    """Runs the failing iteration operation by operation, which takes minutes, and not one program for each body."""


def main(argv: Sequence[str]) -> int:
    """Replays a capsule and says what it found; returns the exit code, 1 if every value was finite.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: the directory holds no capsule, or one of a system that is not known.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid replay", description=__doc__)
    capsule = read(arguments.capsule)
    _compile_as(arguments.capsule.absolute().parent)
    setting, config = settings.rebuilt(capsule.identity)
    console.say(f"{capsule.directory}: {capsule.reason}; {capsule.iterations} iterations to replay ...")
    finding = replay(
        capsule._replace(options=dataclasses.replace(capsule.options, compile_cache=arguments.compile_cache)),
        setting,
        config,
        compiled=not arguments.unjitted,
    )
    if finding is None:
        console.warn("every value was finite: was the run on another device, or with another version?")
        return 1
    console.say(f"iteration {finding.iteration}: {finding.refused} updates refused")
    for leaf in finding.leaves:
        console.say(f"  {leaf} stopped being finite")
    console.say(f"first: {finding.origin}")
    return 0


def _compile_as(run: Path) -> None:
    """Compiles in haste, or not, as the last session of a run did, where its manifest is there and says so."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        hasty = strict_json.read(run / "manifest.json")["sessions"][-1]["compiled_in_haste"]
        jax.config.update("jax_disable_most_optimizations", bool(hasty))


def read(directory: Path) -> Capsule:
    """Reads what a capsule says of itself.

    Raises:
      InputError: it is none, or was changed into something else.
    """
    path = directory / "capsule.json"
    try:
        facts = strict_json.record(strict_json.read(path), _FACTS, "capsule")
    except ValueError as reason:
        raise InputError(f"{str(path)!r} {reason}: name the directory of a capsule.") from None
    if facts["format"] != 1 or facts["iterations_to_replay"] < 1:
        raise InputError(f"{str(path)!r} has another format than 1, or nothing to replay.")
    options = _options(facts["identity"])
    return Capsule(directory, facts["reason"], facts["iterations_to_replay"], facts["identity"], options)


def _options(identity: Mapping[str, Any]) -> RunOptions:
    """The options that decide the numbers of a run, from what its identity says."""
    seeds, sweep = identity.get("seeds"), identity.get("sweep")
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        raise InputError("identity.seeds must be a list of seeds.")
    if not (isinstance(sweep, dict) and all(isinstance(values, list) for values in sweep.values())):
        raise InputError("identity.sweep must give a list of numbers for each field.")
    own = {name: value for name, value in identity.items() if name in ("chunk", "eval_every", "eval_episodes")}
    options = schema.from_json(RunOptions, own, "identity")
    swept = tuple(f"{name}={','.join(map(str, values))}" for name, values in sweep.items())
    return dataclasses.replace(options, seeds=f"{seeds[0]}:{seeds[-1] + 1}", sweep=swept)


def replay(capsule: Capsule, setting: Setting, config: Any, *, compiled: bool = True) -> Finding | None:
    """Repeats the iterations of a capsule up to the first that fails, and finds out why.

    Args:
      capsule: from `read`.
      setting: of the run.
      config: of the run.
      compiled: as in `blame.first_nonfinite`, for the iteration that fails.

    Returns:
      What was found; None if every iteration was finite.

    Raises:
      InputError: the checkpoint in the capsule is damaged, or of another system.
    """
    options, env = capsule.options, setting.env
    group = members(options, config)

    def system_fn(numbers: Mapping[str, Any]) -> System:
        return setting.make(configured(config, numbers), env)

    template, _ = lower_init(system_fn, options, group)
    worker = episodes.host_reset(env, group[0].seed) if isinstance(env, HostEnv) else None
    tree = {"state": template} if worker is None else {"state": template, "worker": worker}
    restored = checkpoint.restore(capsule.directory / "checkpoints", tree, console.warn, identity=capsule.identity)
    if restored is None:
        raise InputError(f"{str(capsule.directory)!r} holds no checkpoint: it is no whole capsule.")
    num_steps = capsule.identity.get("num_steps")
    programs = compile_programs(system_fn, env, options, group, template=template, worker=worker, num_steps=num_steps)
    numbers = stacked(group)[1]

    def one(state: PyTree, batch: Any) -> tuple[PyTree, Metrics]:
        if len(group) == 1:
            return system_fn(group[0].numbers).step(state, batch)
        return jax.vmap(lambda each, n: system_fn(n).step(each, None))(state, numbers)

    state, worker, batch = restored.tree["state"], restored.tree.get("worker"), None
    iteration, last = restored.iteration, restored.iteration + capsule.iterations
    while iteration < last:
        if programs.collect is not None:
            worker, batch, _ = programs.collect(state, worker, iteration)
        # The program consumes the state that it is given.
        before = jax.tree.map(jax.numpy.copy, state)
        state, metrics = programs.step(state, batch)
        if np.max(metrics.get(_STREAK, 0)) > 0 or _lost(before, state):
            return _find(one, before, batch, iteration, options.chunk, compiled)
        iteration += options.chunk
    return None


def _find(
    step: Callable[..., Any], state: PyTree, batch: Any, iteration: int, chunk: int, compiled: bool
) -> Finding | None:
    """Finds the iteration within a chunk that failed first, and the origin of the failure."""
    jitted = jax.jit(step)
    for _ in range(chunk):
        iteration += 1
        after, metrics = jitted(state, batch)
        lost, streak = _lost(state, after), int(np.max(metrics.get(_STREAK, 0)))
        if lost or streak:
            target = f"[0]{next(iter(lost))}" if lost else f"[1]['{_REFUSED}']"
            origin = blame.first_nonfinite(step, (state, batch), target, compiled=compiled)
            leaves = tuple(f"{path}{index}" for path, index in lost.items())
            return Finding(iteration, leaves, streak, origin)
        state = after
    return None


def _lost(before: PyTree, after: PyTree) -> dict[str, list[int]]:
    """Paths of the leaves that stopped being finite, with the first index at which they did."""
    found = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True)
    for (path, new), old in pairs:
        index = blame.nonfinite(new)
        if index is not None and blame.nonfinite(old) is None:
            found[jax.tree_util.keystr(path)] = index.tolist()
    return found


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
