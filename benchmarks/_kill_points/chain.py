"""One run, stopped again and again, and compared after every stop with the run that nobody stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, records
from jaxhybrid.systems import maac
from jaxhybrid.types import PyTree

__all__ = ["FAULTS", "Chain", "Reference", "Task", "reference"]

FAULTS = ("any moment", "training", "save", "SIGTERM", "full disk")
_EXITS = {"any moment": -9, "training": -9, "save": -9, "SIGTERM": 143, "full disk": 2, "none": 0}
# A save makes about this many operations on files that Python knows of; measured, and only a range to draw from.
_OPERATIONS_PER_SAVE = 60
_PATIENCE = 300.0


@dataclasses.dataclass(frozen=True)
class Task:
    """What is run: a preset of MAAC on an environment, for some iterations."""

    preset: str
    env: str
    iterations: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """The run that nobody stopped: digests of its checkpoints, its records, the seconds of its start and its life."""

    task: Task
    digests: dict[int, str]
    rows: list[dict[str, Any]]
    template: PyTree
    cache: Path
    start_seconds: float
    seconds: float


def reference(task: Task, out: Path, cache: Path) -> Reference:
    """Runs a task to its end, twice, so that the second time says what a start with compiled programs costs."""
    template = {"state": jax.eval_shape(_system(task).init, jax.random.key(0))}
    for directory in (out / "cold", out / "whole"):
        began = time.monotonic()
        started = began
        process = _start(task, directory, cache, "none", "0", resume=False)
        while process.poll() is None:
            if started == began and _recorded(directory) >= 1:
                started = time.monotonic()
            time.sleep(0.01)
        if process.returncode != 0:
            raise InputError(f"the run that nobody stops failed: {(process.stderr or sys.stdin).read()[-300:]}")
    digests = {
        iteration: _digest(directory / "checkpoints", iteration, template)
        for iteration in checkpoint.steps(directory / "checkpoints")
    }
    rows = _rows(directory)
    return Reference(task, digests, rows, template, cache, started - began, time.monotonic() - began)


@dataclasses.dataclass
class Chain:
    """A run that is stopped until it is complete."""

    reference: Reference
    directory: Path

    @property
    def complete(self) -> bool:
        """Whether the last checkpoint is that of the last iteration."""
        return checkpoint.steps(self.directory / "checkpoints")[-1:] == [self.reference.task.iterations]

    def live(self, fault: str, rng: np.random.Generator) -> dict[str, Any]:
        """Starts or resumes the run, lets the fault strike, and says what is left of it."""
        known, task = self.reference, self.reference.task
        resume = (self.directory / "manifest.json").exists()
        newest = max(checkpoint.steps(self.directory / "checkpoints"), default=0)
        training = known.seconds - known.start_seconds
        kind, number = "none", "0"
        if fault == "save":
            saves = max(1, min(task.iterations - newest, 10))
            kind, number = "save", str(rng.integers(1, saves * _OPERATIONS_PER_SAVE))
        elif fault == "full disk":
            moment = known.start_seconds + rng.uniform(0.0, 0.5) * training
            kind, number = "disk", f"{moment:.3f}:{rng.choice([0, 500, 2_000, 10_000])}"
        began = time.monotonic()
        process = _start(task, self.directory, known.cache, kind, number, resume=resume)
        self._strike(process, fault, rng, began, newest, training)
        _, err = process.communicate(timeout=_PATIENCE)
        expected = process.returncode == _EXITS[fault]
        # A run that was over before its fault ends well, or by a SIGTERM that nobody handles any more.
        late = process.returncode in (0, -signal.SIGTERM)
        found = self._judge(newest)
        found["identical"] &= expected or late
        if fault == "full disk" and expected:
            found["identical"] &= _refused(err)
        return {"fault": fault, "struck": expected or not late, "exit": process.returncode, **found}

    def _strike(
        self,
        process: subprocess.Popen,
        fault: str,
        rng: np.random.Generator,
        began: float,
        newest: int,
        training: float,
    ) -> None:
        if fault in ("save", "full disk", "none"):
            return
        wait = rng.uniform(0.0, self.reference.seconds)
        if fault != "any moment":
            where = self.directory / "checkpoints"
            while process.poll() is None and max(checkpoint.steps(where), default=0) <= newest:
                time.sleep(0.01)
            began, wait = time.monotonic(), rng.uniform(0.0, 0.4) * training
        while process.poll() is None and time.monotonic() < began + wait:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)

    def _judge(self, newest: int) -> dict[str, Any]:
        """Compares what is left with the checkpoint and the records of the reference at the same iteration."""
        known = self.reference
        damaged: list[str] = []
        where = self.directory / "checkpoints"
        restored = checkpoint.restore(where, known.template, damaged.append) if where.is_dir() else None
        iteration = 0 if restored is None else restored.iteration
        found: dict[str, Any] = {
            "iteration": None if restored is None else iteration,
            "lost": max(0, _recorded(self.directory) - iteration),
            "damaged": len(damaged),
            "identical": not damaged,
            "complete": iteration == known.task.iterations,
        }
        if restored is None:
            # Nothing to compare is right only where there was no checkpoint yet.
            found["identical"] &= newest == 0
            return found
        rows = [row for row in _rows(self.directory) if row["iteration"] <= iteration]
        found["identical"] &= _hash(restored.tree) == known.digests[iteration]
        found["identical"] &= rows == known.rows[: iteration + 1]
        return found


def _system(task: Task) -> Any:
    return maac.make(maac.presets[task.preset], envs.make(task.env))


def _start(task: Task, out: Path, cache: Path, fault: str, number: str, *, resume: bool) -> subprocess.Popen:
    options = {
        "preset": task.preset,
        "env": task.env,
        "out": out,
        "iterations": task.iterations,
        "checkpoint-every": 1,
        "keep-last": task.iterations + 1 if out.name == "whole" else 2,
        "eval-every": 10,
        "compile-cache": cache,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    flags += ["--no-tensorboard", "--no-progress", "--quiet", *(["--resume"] if resume else [])]
    arguments = [sys.executable, "-m", "benchmarks._kill_points.child", fault, number, *flags]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _refused(err: str) -> bool:
    """Whether a run ended with one line that says why, and no traceback."""
    return len([line for line in err.splitlines() if "error:" in line]) == 1 and "Traceback" not in err


def _rows(directory: Path) -> list[dict[str, Any]]:
    """The whole records without what the clock says."""
    rows = []
    for line in _lines(directory):
        rows.append({name: value for name, value in json.loads(line).items() if not name.startswith("time/")})
    return rows


def _lines(directory: Path) -> list[bytes]:
    path = directory / records.METRICS
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _recorded(directory: Path) -> int:
    """The last iteration that has a record."""
    return len(_lines(directory)) - 1


def _digest(directory: Path, iteration: int, template: PyTree) -> str:
    """Digest of one step, read alone."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as alone:
        shutil.copytree(directory / f"{iteration:08d}", Path(alone) / f"{iteration:08d}")
        restored = checkpoint.restore(Path(alone), template, _unexpected)
        assert restored is not None
        return _hash(restored.tree)


def _unexpected(what: str) -> None:
    raise InputError(f"the reference is damaged: {what}")


def _hash(tree: PyTree) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()
