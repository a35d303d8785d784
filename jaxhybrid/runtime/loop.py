"""The host loop over compiled iterations: evaluation, records, checkpoints, interruption and the guard's last word."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, console, devices, records, strict_json
from jaxhybrid.runtime.interrupts import Interrupts, wait
from jaxhybrid.runtime.members import Member
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.runtime.programs import Programs, compile_programs, lower_init
from jaxhybrid.types import Env, HostEnv, PyTree, System

__all__ = ["INTERRUPTED_EXIT", "NONFINITE_EXIT", "RunResult", "run", "warn_of_refused"]

NONFINITE_EXIT = 3
INTERRUPTED_EXIT = 143
_FACTS = {"position": int, "env_steps": int, "elapsed": float, "identity": dict}


class RunResult(NamedTuple):
    """How a run ended.

    Attributes:
      directory: of the run.
      state: the last state, with a leading axis ``S`` when there are several members; None when they ran in processes
        of their own.
      iteration: iterations done.
      exit_code: 0 when complete, 128 plus the signal when interrupted, 3 when updates kept being refused.
    """

    directory: Path
    state: PyTree
    iteration: int
    exit_code: int


class _Position(NamedTuple):
    """Where a run stands between two iterations; ``worker`` is the state of a host environment."""

    iteration: int
    state: PyTree
    worker: PyTree
    env_steps: int
    elapsed: float


@dataclasses.dataclass(frozen=True)
class _Run:
    directory: Path
    identity: Mapping[str, Any]
    options: RunOptions
    group: Sequence[Member]
    total: int
    programs: Programs
    writer: records.Writer

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"


def run(
    system_fn: Callable[[Mapping[str, Any]], System],
    env: Env | HostEnv,
    group: Sequence[Member],
    *,
    directory: Path,
    identity: Mapping[str, Any],
    options: RunOptions,
    total: int,
    num_steps: int | None,
) -> RunResult:
    """Runs the members of one program, in a directory that is open, to their last iteration.

    The state is donated from iteration to iteration. Evaluation uses the deterministic policy, keys of its own, and
    nothing of it flows back. Ctrl-C and SIGTERM end the run after the current iteration, with a checkpoint; the second
    one at once. When ``guard/nonfinite_streak`` of a member reaches ``options.max_nonfinite`` the run ends with a copy
    of the newest checkpoint, from which the failure replays.

    Args:
      system_fn: ``system_fn(numbers)`` is the system with some numbers of its config replaced.
      env: the environment it is made for.
      group: the members; exactly one on a host environment.
      directory: of the run.
      identity: what its manifest says.
      options: how to run.
      total: iterations.
      num_steps: steps per iteration and instance of a `HostEnv`.
    """
    template, init = lower_init(system_fn, options, group)
    worker = episodes.host_reset(env, group[0].seed) if isinstance(env, HostEnv) else None
    restored = _restore(directory, template, worker) if options.resume else None
    if restored is not None and restored.iteration >= total:
        done = f"is complete: {total} iterations; --iterations asks for more"
        beyond = f"has {restored.iteration} iterations already, more than the {total} that are asked for"
        _say(options, f"{directory} {done if restored.iteration == total else beyond}.")
        return RunResult(directory, restored.tree["state"], restored.iteration, 0)
    _say(options, f"{directory}: compiling ...")
    programs = compile_programs(system_fn, env, options, group, template=template, worker=worker, num_steps=num_steps)
    _say(options, f"{directory}: compiled in {programs.seconds:.1f} s")

    with Interrupts() as interrupts, _writer(directory, options, restored) as writer:
        run = _Run(directory, identity, options, group, total, programs, writer)
        position = _begin(run, init(), worker) if restored is None else _resume(run, restored)
        position, exit_code = _loop(run, interrupts, position)
    return RunResult(directory, position.state, position.iteration, exit_code)


def warn_of_refused(labels: Sequence[str], refused: Any, streak: Any) -> None:
    """Says so if updates were refused, or a run that has learnt nothing would end like any other.

    Args:
      labels: of the members.
      refused: updates of each that were refused, ``[S]``, or ``[]`` for one member.
      streak: how many in a row up to now, the same shape or the most of any.
    """
    refused, longest = np.atleast_1d(refused), int(np.max(streak))
    who = ", ".join(label for label, count in zip(labels, refused, strict=False) if count)
    if not who:
        return
    text = f"{int(np.sum(refused))} updates were refused because something in them was not finite ({who})"
    if longest:
        text += (
            f", and the last {longest} in a row up to the end: nothing was learnt from these. Start anew with "
            f"--max-nonfinite {longest} to get a capsule, which replays the first that failed (docs/resume.md)"
        )
    console.warn(f"{text}.")


def _restore(directory: Path, template: PyTree, worker: PyTree | None) -> checkpoint.Restored | None:
    tree = {"state": template} if worker is None else {"state": template, "worker": worker}
    identity = records.identity(directory)
    restored = checkpoint.restore(directory / "checkpoints", tree, console.warn, identity=identity)
    if restored is None:
        console.warn(f"{directory} has no checkpoint yet: it starts from the beginning.")
        return None
    try:
        strict_json.record(restored.facts, _FACTS, "facts")
    except ValueError as reason:
        raise InputError(f"checkpoint {restored.iteration:08d} {reason}: it was not written by this library.") from None
    return restored


def _writer(directory: Path, options: RunOptions, restored: checkpoint.Restored | None) -> records.Writer:
    if not devices.is_first():
        return records.Silence()
    if restored is None:
        return records.Writer(directory, position=0, tensorboard=options.tensorboard)
    return records.Writer(
        directory,
        position=restored.facts["position"],
        tensorboard=options.tensorboard,
        purge_step=restored.facts["env_steps"] + 1,
    )


def _resume(run: _Run, restored: checkpoint.Restored) -> _Position:
    iteration, tree, facts = restored
    _say(run.options, f"resumed at iteration {iteration}")
    return _Position(iteration, tree["state"], tree.get("worker"), facts["env_steps"], facts["elapsed"])


def _begin(run: _Run, state: PyTree, worker: PyTree) -> _Position:
    """Evaluates the untrained policy, at no steps, and saves the first state."""
    position = _Position(0, state, worker, 0, 0.0)
    zero = 0 if len(run.group) == 1 else [0] * len(run.group)
    row = {"iteration": 0, "env/steps": zero, **_evaluate(run, state), "time/compile": run.programs.seconds}
    _say(run.options, _summary(row, position, run))
    run.writer.write(row)
    _save(run, position)
    return position


def _loop(run: _Run, interrupts: Interrupts, position: _Position) -> tuple[_Position, int]:
    latest = ""
    began, first = time.monotonic(), position
    with console.progress_bar(run.options.progress and not run.options.quiet) as bar:
        task = bar.add_task("training", total=run.total, completed=first.iteration, steps=0, speed="", latest="")
        # Decided once per iteration, so that a signal at any moment leads through the checkpoint below.
        leaving = position.iteration >= run.total
        while not leaving:
            position, rows = _advance(run, position)
            done = position.iteration >= run.total
            if done or position.iteration % run.options.eval_every == 0:
                rows[-1] |= _evaluate(run, position.state)
                latest = f"return {_number(rows[-1]['eval/return'])}"
                _say(run.options, _summary(rows[-1], position, run))
            for row in rows:
                run.writer.write(row)
            streak = np.max([row.get("guard/nonfinite_streak", 0) for row in rows], axis=0)
            if np.max(streak) >= run.options.max_nonfinite:
                return position, _abort(run, position, f"{int(np.max(streak))} updates in a row were refused", streak)
            # The processes of a job stop at the same iteration, whichever of them was asked to.
            leaving = done or devices.agreed(interrupts.received is not None)
            due = position.iteration % run.options.checkpoint_every == 0
            # A checkpoint within a streak would push out the one from before it, which replays the failure.
            if leaving or (due and np.max(streak) == 0):
                try:
                    _save(run, position)
                except checkpoint.NonFiniteError as reason:
                    return position, _abort(run, position, str(reason), streak)
            if leaving and devices.is_first():
                refused, labels = rows[-1].get("guard/nonfinite", 0), [member.label for member in run.group]
                warn_of_refused(labels, refused, rows[-1].get("guard/nonfinite_streak", 0))
            speed = (position.env_steps - first.env_steps) / (time.monotonic() - began)
            bar.update(
                task,
                completed=position.iteration,
                steps=f"{position.env_steps:,}",
                speed=f"{speed:,.0f}/s",
                latest=latest,
            )
    code = (interrupts.exit_code or INTERRUPTED_EXIT) if position.iteration < run.total else 0
    _say(run.options, f"{'complete' if code == 0 else 'stopped'} at iteration {position.iteration}: {run.directory}")
    return position, code


def _advance(run: _Run, position: _Position) -> tuple[_Position, list[dict[str, Any]]]:
    """Runs one chunk; returns the new position and one record per iteration."""
    began = time.monotonic()
    worker, batch, collected = position.worker, None, {}
    if run.programs.collect is not None:
        worker, batch, stats = run.programs.collect(position.state, worker, position.iteration)
        collected = {f"collect/{name}": value for name, value in stats.items()}
    state, metrics = run.programs.step(position.state, batch)
    values = devices.fetched(dict(wait(metrics))) | collected
    seconds = time.monotonic() - began

    chunk = run.options.chunk
    rows = []
    for i in range(chunk):
        row = {name: value if chunk == 1 else value[..., i] for name, value in values.items()}
        clock = {"time/elapsed": position.elapsed + seconds * (i + 1) / chunk, "time/iteration": seconds / chunk}
        rows.append({"iteration": position.iteration + i + 1, **row, **clock})
    env_steps = int(np.max(rows[-1]["env/steps"]))
    return _Position(position.iteration + chunk, state, worker, env_steps, position.elapsed + seconds), rows


def _evaluate(run: _Run, state: PyTree) -> dict[str, Any]:
    began = time.monotonic()
    returns, lengths = run.programs.evaluate(state)
    return {
        "eval/return": np.mean(returns, axis=-1),
        "eval/return_std": np.std(returns, axis=-1),
        "eval/length": np.mean(lengths, axis=-1),
        "time/evaluation": time.monotonic() - began,
    }


def _summary(row: Mapping[str, Any], position: _Position, run: _Run) -> str:
    returns = np.atleast_1d(row["eval/return"])
    over = f"{run.options.eval_episodes} episodes" + (f" x {returns.size} seeds" if returns.size > 1 else "")
    return (
        f"iteration {position.iteration}/{run.total}  {position.env_steps:,} env steps  "
        f"eval return {_number(returns)} ({over})"
    )


def _number(returns: Any) -> str:
    mean = float(np.mean(returns))
    return f"{mean:,.1f}" if abs(mean) >= 10 else f"{mean:.3f}"


def _save(run: _Run, position: _Position) -> None:
    tree = (
        {"state": position.state} if position.worker is None else {"state": position.state, "worker": position.worker}
    )
    facts = {
        "position": run.writer.position,
        "env_steps": position.env_steps,
        "elapsed": position.elapsed,
        "identity": records.jsonable(run.identity),
    }
    # The checkpoint counts on the records before it.
    run.writer.sync()
    checkpoint.save(run.checkpoints, position.iteration, tree, facts)
    if devices.is_first():
        checkpoint.prune(run.checkpoints, run.options.keep_last, run.options.keep_every)


def _abort(run: _Run, position: _Position, reason: str, streak: np.ndarray) -> int:
    """Keeps the newest checkpoint, from which the failure replays, out of reach of ``keep_last``.

    The state right before the failure was donated; a copy of every state would double the memory of every run. The
    checkpoint and the number of iterations from it to the failure determine that state to the bit.
    """
    if not devices.is_first():
        return NONFINITE_EXIT
    capsule = run.directory / f"capsule-{position.iteration:08d}"
    start = checkpoint.steps(run.checkpoints)[-1]
    failed = np.flatnonzero(np.atleast_1d(streak) >= run.options.max_nonfinite)
    labels = [run.group[int(i)].label for i in failed]
    # Renamed when it is whole, so that a kill leaves none that does not replay.
    partial = run.directory / f".{capsule.name}.partial"
    facts = {
        "format": 1,
        "reason": reason,
        "members": labels,
        "checkpoint_iteration": start,
        "failed_by_iteration": position.iteration,
        "iterations_to_replay": position.iteration - start,
        "identity": records.jsonable(run.identity),
    }
    try:
        if not capsule.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(run.checkpoints / f"{start:08d}", partial / "checkpoints" / f"{start:08d}")
            (partial / "capsule.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            partial.rename(capsule)
        how = f"it replays from {capsule}"
    except OSError as trouble:
        shutil.rmtree(partial, ignore_errors=True)
        how = f"no capsule could be written ({trouble.strerror or trouble})"
    who = f" ({', '.join(labels)})" if labels else ""
    console.error(f"{reason}{who} by iteration {position.iteration}; {how}.")
    return NONFINITE_EXIT


def _say(options: RunOptions, text: str) -> None:
    if not options.quiet and devices.is_first():
        console.say(text)
