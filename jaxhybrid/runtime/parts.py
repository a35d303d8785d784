"""A run in parts: one process per member, each with a directory of its own inside that of the run.

On a CPU this is the faster way to run several seeds, and for environments on the host it is the only one.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import console, loop, policies, records
from jaxhybrid.runtime.interrupts import Interrupts
from jaxhybrid.runtime.members import Member
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.types import Env, HostEnv

__all__ = ["cores", "in_processes", "merge", "run"]

_POLL_SECONDS = 0.5
# JAX ends a traceback with a note on itself, below a line of dashes.
_FOOTER = "For simplicity, JAX has removed its internal frames"


class _Part(NamedTuple):
    member: Member
    directory: Path
    log: Path


class _Seen(NamedTuple):
    """What the records of a part say up to a byte: the last value of every metric."""

    end: int
    latest: Mapping[str, Any]


_NOTHING = _Seen(0, {})


def in_processes(
    options: RunOptions, env: Env | HostEnv, group: Sequence[Member], command: Sequence[str] | None
) -> bool:
    """Returns whether the members of a run get a process each.

    Raises:
      InputError: they would have to, and there is no command to start one with; or ``parallel`` asks for what the
        environment cannot do.
    """
    on_host = isinstance(env, HostEnv)
    if len(group) == 1 or jax.process_count() > 1:
        return False
    if options.parallel == "vmap" and on_host:
        raise InputError(
            f"parallel='vmap' is not possible on {env.spec.name!r}, which runs on the host: use 'processes'."
        )
    wanted = options.parallel == "processes" or (
        options.parallel == "auto" and (on_host or jax.default_backend() == "cpu")
    )
    if wanted and command is None and (on_host or options.parallel == "processes"):
        raise InputError("several seeds in processes need a command line to start each with: run one seed per call.")
    return wanted and command is not None


def run(
    directory: Path, options: RunOptions, group: Sequence[Member], command: Sequence[str], total: int
) -> tuple[int, int]:
    """Runs every member in a process and merges what they leave.

    Args:
      directory: of the run, opened.
      options: of the run; uses jobs, progress and quiet.
      group: the members.
      command: starts the whole run; options that narrow it to one member are appended.
      total: iterations of each member.

    Returns:
      ``(iterations that every member has done, exit code)``: the code is that of the first member that failed.
    """
    parts = [_Part(m, directory / m.label, directory / f"{m.label}.log") for m in group]
    jobs = min(options.jobs or len(cores()), len(parts))
    shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for i in range(jobs):
        shares.put(cores()[i::jobs] or cores())
    running: dict[str, subprocess.Popen[bytes]] = {}

    with Interrupts() as interrupts, ThreadPoolExecutor(jobs) as pool:

        def train(part: _Part) -> int:
            if interrupts.received is not None:
                return interrupts.exit_code
            share = shares.get()
            try:
                with part.log.open("ab") as log:
                    process = _start(part, command, total, share if jobs > 1 else [], log)
                    running[part.member.label] = process
                    code = process.wait()
                    # Before it listens to signals a member ends by one.
                    return 128 - code if code < 0 else code
            finally:
                running.pop(part.member.label, None)
                shares.put(share)

        futures = [pool.submit(train, part) for part in parts]
        try:
            _watch(options, parts, futures, interrupts, running, total)
        except KeyboardInterrupt:
            _signal(running, signal.SIGINT)
            raise
    codes = [future.result() for future in futures]
    for part, code in zip(parts, codes, strict=True):
        if code not in (0, interrupts.exit_code):
            console.error(f"{part.member.label} ended with exit code {code}: {_last_line(part.log)}")
    _warn_of_refused([part for part, code in zip(parts, codes, strict=True) if code != loop.NONFINITE_EXIT])
    done = merge(directory, [part.directory for part in parts])
    failed = [code for code in codes if code]
    if not failed:
        each = [part.directory / "policy" for part in parts]
        policies.join(directory / "policy", each, numbers=[member.numbers for member in group])
    return done, failed[0] if failed else 0


def cores() -> list[int]:
    """Returns the cores this process may use."""
    # Not every operating system tells.
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1))


def merge(directory: Path, parts: Sequence[Path]) -> int:
    """Writes the records of the parts as those of one run, a list with an entry per part for every metric.

    Returns:
      The last iteration that every part has reached, 0 where one has not started.
    """
    runs = [records.read(part) if (part / records.METRICS).exists() else [] for part in parts]
    lines = []
    for rows in zip(*runs, strict=False):
        names = dict.fromkeys(name for row in rows for name in row if name != "iteration")
        merged = {"iteration": rows[0]["iteration"], **{name: [row.get(name) for row in rows] for name in names}}
        lines.append(json.dumps(records.jsonable(merged), allow_nan=False) + "\n")
    partial = directory / f"{records.METRICS}.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(directory / records.METRICS)
    return json.loads(lines[-1])["iteration"] if lines else 0


def _start(part: _Part, command: Sequence[str], total: int, share: Sequence[int], log: Any) -> subprocess.Popen[bytes]:
    """Starts one member on a share of the cores; it inherits the affinity of the thread that starts it."""
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    exists = (part.directory / records.MANIFEST).exists()
    narrowed = [
        *command,
        *("--sweep", "--seed", str(part.member.seed), "--seeds", "1", "--parallel", "vmap", "--no-progress"),
        *("--out", str(part.directory), "--resume" if exists else "--no-resume", "--iterations", str(total)),
    ]
    for name, value in part.member.numbers.items():
        narrowed += [f"--config.{name.replace('_', '-')}", repr(value)]
    # Several processes share an accelerator only if none of them takes all of its memory.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    # A session of its own, so that Ctrl-C reaches it once, from here.
    return subprocess.Popen(
        narrowed,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _watch(
    options: RunOptions,
    parts: Sequence[_Part],
    futures: Sequence[Future[int]],
    interrupts: Interrupts,
    running: Mapping[str, subprocess.Popen[bytes]],
    total: int,
) -> None:
    """Shows how far the members are until all have ended, and passes on the first signal, once to each."""
    told: set[str] = set()
    seen = [_NOTHING] * len(parts)
    with console.progress_bar(options.progress and not options.quiet) as bar:
        tasks = [bar.add_task(p.member.label, total=total, steps=0, speed="", latest="") for p in parts]
        while not all(future.done() for future in futures):
            if interrupts.received is not None:
                # A member that was about to start when the others were told is told when it has.
                untold = {label: process for label, process in list(running.items()) if label not in told}
                _signal(untold, interrupts.received)
                told |= untold.keys()
            if not bar.disable:
                seen = [_read_on(part.directory, each) for part, each in zip(parts, seen, strict=True)]
                for (_, latest), task in zip(seen, tasks, strict=True):
                    if latest:
                        steps = f"{latest.get('env/steps', 0):,}"
                        bar.update(task, completed=latest["iteration"], steps=steps, latest=_return(latest))
            time.sleep(_POLL_SECONDS)
    if not options.quiet:
        for part in parts:
            latest = _latest(part.directory)
            returned = _return(latest)
            evaluated = f", eval {returned}" if returned else ""
            console.say(f"{part.member.label}: iteration {latest.get('iteration', 0)}/{total}{evaluated}")


def _return(latest: Mapping[str, Any]) -> str:
    returned = latest.get("eval/return", math.nan)
    return "" if math.isnan(returned) else f"return {returned:,.1f}"


def _warn_of_refused(parts: Sequence[_Part]) -> None:
    """Repeats what stands in the logs of the members, where few look."""
    rows = [_latest(part.directory) for part in parts]
    refused, streaks = ([row.get(name, 0) for row in rows] for name in ("guard/nonfinite", "guard/nonfinite_streak"))
    loop.warn_of_refused([part.member.label for part in parts], refused, max(streaks, default=0))


def _latest(directory: Path) -> Mapping[str, Any]:
    """The last whole record, with the last evaluation; empty where there is none."""
    return _read_on(directory, _NOTHING).latest


def _read_on(directory: Path, seen: _Seen) -> _Seen:
    """Reads the whole lines that were written since."""
    latest = dict(seen.latest)
    try:
        with (directory / records.METRICS).open("rb") as file:
            # A member that resumes cuts its records off at its checkpoint; then all of them are read again.
            start = seen.end if seen.end <= file.seek(0, os.SEEK_END) else 0
            file.seek(start)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            latest |= records.parse(line)
        return _Seen(start + len(whole), latest)
    except OSError:
        return seen
    except ValueError:
        return _Seen(0, latest)


def _signal(running: Mapping[str, subprocess.Popen[bytes]], number: int) -> None:
    for process in list(running.values()):
        with suppress(ProcessLookupError):
            process.send_signal(number)


def _last_line(log: Path) -> str:
    written = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in written if line.strip("- ") and not line.startswith(_FOOTER)]
    return f"{lines[-1] if lines else 'it said nothing'} (all of it in {log})"
