"""What a run costs besides learning: checkpoints and records as a share of its time, and the wait of a resumed run.

Trains MAAC's demo for some iterations in a process of its own, as a user would, with the writing of checkpoints and
records timed; then resumes it in a fresh process, with the compiled programs in the cache, and times how long the first
new iteration is in coming. Prints a table; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["Arguments", "main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    preset: Literal["demo", "smoke"] = "demo"
    """Preset of MAAC."""
    iterations: int | None = None
    """Iterations before the run is resumed; by default 30 of the demo and 2 of the smoke preset."""
    out: str | None = None
    """Directory of the benchmark; by default runs/overheads-<preset>-...-<time>."""


# Runs inside the timed process: counts the seconds that saving and recording take.
_TIMED = """
import atexit, functools, json, sys, time
from experiments import maac
from jaxhybrid.runtime import checkpoint, cli, records

spent = {"checkpoints": 0.0, "records": 0.0}

def timed(name, fn):
    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        began = time.perf_counter()
        try:
            return fn(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began
    return wrapped

checkpoint.save = timed("checkpoints", checkpoint.save)
checkpoint.prune = timed("checkpoints", checkpoint.prune)
records.Writer.write = timed("records", records.Writer.write)
records.Writer.sync = timed("records", records.Writer.sync)
atexit.register(lambda: open(sys.argv[1], "w").write(json.dumps(spent)))
cli.run_main(maac.main, sys.argv[2:])
"""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m benchmarks overheads", description=__doc__)
    iterations = arguments.iterations or {"demo": 30, "smoke": 2}[arguments.preset]
    if iterations < 1 or arguments.iterations == 0:
        raise InputError(f"iterations={arguments.iterations} must be at least 1.")
    default = records.default_directory("overheads", "maac", arguments.preset, 0)
    out = Path(arguments.out or default).expanduser().absolute()
    identity = {"study": "overheads", "config": {"preset": arguments.preset, "iterations": iterations}}
    records.open_run(out, identity, dataclasses.asdict(arguments), resume=False)
    run, spent_file = out / "run", out / "seconds.json"
    study = ["--preset", arguments.preset, "--out", str(run), "--quiet"]
    if arguments.preset == "smoke":
        study += ["--env", "pendulum"]

    console.say(f"training {iterations} iterations ...")
    timed = [sys.executable, "-c", _TIMED, str(spent_file), *study, "--iterations", str(iterations)]
    _until(timed, lambda: False)
    rows = records.read(run)
    loop_seconds = sum(row.get("time/iteration", 0.0) + row.get("time/evaluation", 0.0) for row in rows)
    spent = json.loads(spent_file.read_text(encoding="utf-8"))
    total = loop_seconds + sum(spent.values())

    console.say("resuming ...")
    again = [sys.executable, "-m", "experiments", "maac", *study, "--iterations", str(iterations + 1), "--resume"]
    waited = _until(again, lambda: len(records.read(run, mend=True)) > len(rows))
    first = records.read(run)[-1]
    results = {
        "iterations": iterations,
        "loop_seconds": total,
        "checkpoint_seconds": spent["checkpoints"],
        "record_seconds": spent["records"],
        "share": sum(spent.values()) / total,
        "resume_seconds": waited - first["time/iteration"] - first.get("time/evaluation", 0.0),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.say(
        f"checkpoints {spent['checkpoints']:.2f} s and records {spent['records']:.2f} s of {total:.1f} s: "
        f"{results['share']:.2%}; a resumed process begins its first iteration after {results['resume_seconds']:.1f} s"
    )
    console.say(f"results in {out}")
    return 0


def _until(command: Sequence[str], seen: Callable[[], bool]) -> float:
    """Runs a command to its end; returns the seconds until ``seen``, or until the end."""
    began = time.perf_counter()
    process: Any = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    waited = 0.0
    while process.poll() is None:
        if not waited and seen():
            waited = time.perf_counter() - began
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:4]))} ... ended with exit code {process.returncode}")
    return waited or time.perf_counter() - began


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
