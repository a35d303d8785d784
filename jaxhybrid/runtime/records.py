"""The directory of a run: what was run, what came out, and the refusal to overwrite either.

::

    manifest.json      study, config, options, versions, hardware, revision, reproducibility level, command lines
    metrics.jsonl      one record a line; NaN is null; with several seeds a metric is a list, one entry per seed
    checkpoints/       see `jaxhybrid.runtime.checkpoint`
    tensorboard/       the same metrics, averaged over seeds
    curve.png          evaluation return against real environment steps, or iterations
    lock               see `jaxhybrid.runtime.lock`
"""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import console, lock, sessions, strict_json

__all__ = [
    "METRICS",
    "Silence",
    "Writer",
    "default_directory",
    "differences",
    "identity",
    "iterations",
    "jsonable",
    "open_run",
    "parse",
    "read",
]

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
_PARTIAL = "manifest.partial"
_FORMAT = 1
_TOP = {"format": int, "identity": dict, "sessions": list}


def default_directory(study: str, env: str, preset: str, seed: int) -> Path:
    """Returns ``runs/<study>-<env>-<preset>-<seed>-<time>``."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / "-".join((study, env, preset, str(seed), now)).replace("/", "_")


def open_run(directory: Path, identity: Mapping[str, Any], options: Mapping[str, Any], *, resume: bool) -> None:
    """Creates the directory of a run and its manifest, or enters an existing one to resume it.

    Args:
      directory: of the run.
      identity: what decides the numbers of the run: study, environment, config, seeds. A resumed run must agree in it.
      options: what does not.
      resume: whether the run exists.

    Raises:
      InputError: a number of the identity is NaN; or the directory cannot be written, is a file, holds something else,
        holds a run and ``resume`` is False, holds a run with another identity, of which every difference is named, or
        is in use by another process. Nothing was written then.
    """
    for name, value in identity.items():
        _check_numbers(name, value)
    try:
        _manifest(directory) if resume else _check_free(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(directory)
        try:
            session = jsonable(sessions.facts(options))
            _write_manifest(directory, _entered(directory, jsonable(identity), session, resume))
        except BaseException:
            lock.release(directory)
            raise
    except OSError as reason:
        raise InputError(f"out={str(directory)!r} cannot be written: {reason.strerror}.") from None


def _check_numbers(name: str, value: Any) -> None:
    """Refuses NaN, which a manifest could not tell from None, so that a run without the number counted as the same."""
    if isinstance(value, Mapping):
        for field, item in value.items():
            _check_numbers(f"{name}.{field}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_numbers(name, item)
    elif isinstance(value, float | np.floating) and np.isnan(value):
        raise InputError(f"{name}=nan is no number: give one, or leave it at its default.")


def _entered(directory: Path, identity: dict[str, Any], session: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The manifest with one more session; looked up again, because only now nobody else can change it."""
    if not resume:
        _check_free(directory)
        return {"format": _FORMAT, "identity": identity, "sessions": [session]}
    manifest = _manifest(directory)
    changed = differences(manifest["identity"], identity)
    if changed:
        # Of another study nearly every number is another, which says no more than that.
        told = [change for change in changed if change.startswith("study was")] or changed
        raise InputError(
            f"out={str(directory)!r} is a run with other numbers, so it cannot be resumed: {'; '.join(told)}. Repeat "
            "the arguments of its first session, or name another directory."
        )
    return manifest | {"sessions": [*manifest["sessions"], session]}


def _write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    partial = directory / _PARTIAL
    # A link in its place is not followed.
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(descriptor)
    partial.replace(directory / MANIFEST)


def _check_free(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"out={str(directory)!r} cannot be created: {str(existing)!r} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"out={str(directory)!r} cannot be written: no permission in {str(existing)!r}.")
    # A start that was killed leaves these two at most.
    if existing == directory and any(path.name not in (lock.NAME, _PARTIAL) for path in directory.iterdir()):
        raise InputError(f"out={str(directory)!r} {_in_the_way(directory)} name another directory.")


def _in_the_way(directory: Path) -> str:
    """What a directory holds, and what else to do than name another."""
    if not (directory / MANIFEST).exists():
        return "is not empty and holds no run:"
    if any(_is_result(path) for path in directory.rglob("*")):
        return "holds a run: continue it with --resume or"
    # One that compiles at this moment has nothing either, and names its process.
    lock.acquire(directory)
    lock.release(directory)
    return "holds a run that failed before its first checkpoint: delete it or"


def _is_result(path: Path) -> bool:
    """Whether a run that failed before its first record would not have left this file."""
    started = path.name in (MANIFEST, _PARTIAL, lock.NAME) or path.suffix == ".log" or path.parent.name == "tensorboard"
    return path.is_file() and path.stat().st_size > 0 and not started


def _manifest(directory: Path, field: str = "out") -> dict[str, Any]:
    if not os.path.lexists(directory / MANIFEST):
        fix = (
            "to resume: leave out --resume to start one"
            if field == "out"
            else "with a manifest: name another directory"
        )
        raise InputError(f"{field}={str(directory)!r} holds no run {fix}.")
    try:
        manifest = strict_json.record(strict_json.read(directory / MANIFEST), _TOP, "manifest")
        if manifest["format"] != _FORMAT or not manifest["sessions"]:
            raise ValueError(f"has another format than {_FORMAT}, or no session")
        return manifest
    except ValueError as reason:
        raise InputError(
            f"{field}={str(directory)!r} has a {MANIFEST} that is not one of a run: it {reason}. Name another "
            "directory."
        ) from None


def identity(directory: Path, *, field: str = "out") -> dict[str, Any]:
    """Returns what decides the numbers of a run: study, environment, config, seeds, as its manifest says.

    Args:
      directory: of the run.
      field: which argument named it.

    Raises:
      InputError: there is no readable manifest.
    """
    return _manifest(directory, field)["identity"]


def iterations(directory: Path) -> int | None:
    """Returns what the last session of a run was told of its iterations; None if nothing.

    Raises:
      InputError: there is no readable manifest.
    """
    session = _manifest(directory)["sessions"][-1]
    options = session.get("options") if isinstance(session, dict) else None
    told = options.get("iterations") if isinstance(options, dict) else None
    return told if type(told) is int else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns one phrase per field in which two nested records of JSON values differ."""
    found: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {json.dumps(before)} and is now {json.dumps(after)}")
    return found


def read(directory: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """Returns the records of a run; null is NaN again.

    Half a line at the end, where a run was killed or is writing, is left out with a warning.

    Args:
      directory: of the run.
      mend: whether any damaged end is left out with a warning instead of refused.

    Raises:
      InputError: there are none, or a line is not a record.
    """
    path = Path(directory) / METRICS
    try:
        content = path.read_bytes()
    except OSError:
        raise InputError(f"{str(path)!r} cannot be read: name the directory of a run.") from None
    content = content[: _whole(content, path, 0 if mend else content.rfind(b"\n") + 1)]
    records = []
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else [], start=1):
        try:
            records.append(parse(line))
        except ValueError as reason:
            raise InputError(f"{str(path)!r}, line {number}, is not a record: it {reason}.") from None
    return records


def parse(line: bytes) -> dict[str, Any]:
    """Returns the record in a line, null as NaN and infinities as numbers; raises as `strict_json.parse`."""
    return {name: _restored(value) for name, value in strict_json.parse(line).items()}


def _whole(content: bytes, path: Path, good: int = 0) -> int:
    """Where the last whole record ends, looking back as far as ``good``; says so when that is not the end."""
    end = len(content)
    while end > good:
        start = content.rfind(b"\n", 0, end - 1) + 1
        try:
            strict_json.parse(content[start:end])
            break
        except ValueError:
            end = start
    if end < len(content):
        console.warn(f"{str(path)!r} is damaged: its last {len(content) - end} bytes are no record and are left out.")
    return end


class Writer:
    """Appends records to ``metrics.jsonl`` and, averaged over seeds, to TensorBoard."""

    def __init__(self, directory: Path, *, position: int, tensorboard: bool, purge_step: int | None = None):
        """Opens the files of a run and drops what was written after a checkpoint.

        Args:
          directory: of the run.
          position: bytes of ``metrics.jsonl`` that stay.
          tensorboard: whether to write events too.
          purge_step: environment steps from which earlier events are void.
        """
        self._directory = directory
        try:
            self._locked = lock.acquire(directory)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            # Unbuffered: what could not be written is not tried again when the file is closed.
            self._file = os.fdopen(os.open(directory / METRICS, flags, 0o644), "r+b", buffering=0)
            self._reopen(position)
        except OSError as reason:
            raise self._unwritable(reason) from None
        self._events = None
        if tensorboard:
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.seek(0, os.SEEK_END)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is on disk, as far as the operating system is concerned, when this returns.

        Raises:
          InputError: the disk is full, or cannot be written for another reason.
        """
        self._append((json.dumps(jsonable(record), allow_nan=False) + "\n").encode())
        if self._events is not None:
            step = int(np.max(record["env/steps"]))
            for name, value in record.items():
                seeds = np.asarray(value, np.float64)
                if name not in ("iteration", "env/steps") and np.any(np.isfinite(seeds)):
                    self._events.add_scalar(name, float(np.mean(seeds[np.isfinite(seeds)])), step)

    def sync(self) -> None:
        """Returns when the records would survive a crash of the machine; a checkpoint that counts on them comes after.

        Raises:
          InputError: the disk cannot be written.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as reason:
            raise self._unwritable(reason) from None

    def close(self) -> None:
        """Closes the files, and lets other processes into the directory unless somebody else keeps them out."""
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._locked:
            lock.release(self._directory)

    def _reopen(self, position: int) -> None:
        """Drops what lies after ``position``, and a damaged end before it."""
        content = (self._file.read() or b"")[: max(position, 0)]
        if len(content) < position:
            console.warn(
                f"{str(self._directory / METRICS)!r} is damaged: it has {len(content)} bytes, and {position} when the "
                "checkpoint was written; the records in between are lost."
            )
        whole = _whole(content, self._directory / METRICS)
        self._file.truncate(whole)
        if whole and content[whole - 1 : whole] != b"\n":
            self._append(b"\n")

    def _append(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as reason:
            raise self._unwritable(reason) from None

    def _unwritable(self, reason: OSError) -> InputError:
        return InputError(
            f"{str(self._directory / METRICS)!r} cannot be written ({reason.strerror}): make room and continue with "
            "--resume."
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Silence(Writer):
    """The writer of a process that keeps nothing, because another one does."""

    def __init__(self) -> None:
        """Opens nothing."""

    @property
    def position(self) -> int:
        """Nothing is written."""
        return 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def jsonable(value: Any) -> Any:
    """Returns ``value`` as JSON knows it: arrays as lists, NaN as None, infinities as strings."""
    if isinstance(value, Mapping):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | jax.Array) and value.ndim > 0:
        return [jsonable(item) for item in np.asarray(value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        scalar = np.asarray(value)[()]
        # The shortest text that gives the same 32-bit number, instead of all digits of its 64-bit copy.
        value = float(str(scalar)) if isinstance(scalar, np.float32) else scalar.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if value in ("inf", "-inf"):
        return float(value)
    return math.nan if value is None else value
