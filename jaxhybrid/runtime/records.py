"""The directory of a run: what was run, what came out, and the refusal to overwrite either.

::

    manifest.json      study, config, options, versions, hardware, revision, reproducibility level, command lines
    metrics.jsonl      one record a line; NaN is null; with several seeds a metric is a list, one entry per seed
    checkpoints/       see `jaxhybrid.runtime.checkpoint`
    tensorboard/       the same metrics, averaged over seeds
    curve.png          evaluation return against real environment steps
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxhybrid.errors import InputError

__all__ = [
    "METRICS",
    "Silence",
    "Writer",
    "default_directory",
    "differences",
    "identity",
    "jsonable",
    "open_run",
    "read",
]

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
_FORMAT = 1
_PACKAGES = ("jaxhybrid", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "brax", "mujoco", "gymnasium")


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
      InputError: the directory cannot be written, is a file, holds something else, holds a run and ``resume`` is
        False, or holds a run with another identity; every difference is named. Nothing was written then.
    """
    path = directory / MANIFEST
    session = _session(options)
    if resume:
        manifest = _manifest(directory)
        changed = differences(manifest["identity"], jsonable(identity))
        if changed:
            raise InputError(
                f"out={str(directory)!r} is a run with other numbers, so it cannot be resumed: {'; '.join(changed)}."
            )
        manifest["sessions"].append(session)
    else:
        _check_free(directory)
        manifest = {"format": _FORMAT, "identity": jsonable(identity), "sessions": [session]}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as reason:
        raise InputError(f"out={str(directory)!r} cannot be written: {reason.strerror}.") from None


def _check_free(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"out={str(directory)!r} cannot be created: {str(existing)!r} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"out={str(directory)!r} cannot be written: no permission in {str(existing)!r}.")
    if existing == directory and any(directory.iterdir()):
        is_run = (directory / MANIFEST).exists()
        fix = "continue it with --resume or name another directory" if is_run else "name another directory"
        held = "holds a run" if is_run else "is not empty and holds no run"
        raise InputError(f"out={str(directory)!r} {held}: {fix}.")


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        if manifest["format"] == _FORMAT and isinstance(manifest["identity"], dict) and manifest["sessions"]:
            return manifest
    except FileNotFoundError:
        raise InputError(f"out={str(directory)!r} holds no run to resume: leave out --resume to start one.") from None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"out={str(directory)!r} has a {MANIFEST} that is not one of a run: name another directory.")


def identity(directory: Path) -> dict[str, Any]:
    """Returns what decides the numbers of a run: study, environment, config, seeds, as its manifest says.

    Raises:
      InputError: there is no readable manifest.
    """
    return _manifest(directory)["identity"]


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


def read(directory: Path) -> list[dict[str, Any]]:
    """Returns the records of a run; null is NaN again.

    Raises:
      InputError: there are none, or a line is not a record.
    """
    path = Path(directory) / METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{str(path)!r} cannot be read: name the directory of a run.") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(f"{str(path)!r}, line {number}, is not a record.")
        records.append({name: _restored(value) for name, value in record.items()})
    return records


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
        path = directory / METRICS
        path.touch()
        os.truncate(path, position)
        self._file = path.open("a", encoding="utf-8")
        self._events = None
        if tensorboard:
            import tensorboardX

            self._events = tensorboardX.SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record; it is on disk, as far as the operating system is concerned, when this returns."""
        self._file.write(json.dumps(jsonable(record), allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            step = int(np.max(record["env/steps"]))
            for name, value in record.items():
                seeds = np.asarray(value, np.float64)
                if name not in ("iteration", "env/steps") and np.any(np.isfinite(seeds)):
                    self._events.add_scalar(name, float(np.mean(seeds[np.isfinite(seeds)])), step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()

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


def _session(options: Mapping[str, Any]) -> dict[str, Any]:
    level, meaning = _reproducibility()
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "options": jsonable(options),
        "versions": {"python": platform.python_version(), **versions},
        "revision": _revision(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        },
        "reproducibility": {"level": level, "meaning": meaning},
    }


def _reproducibility() -> tuple[str, str]:
    same = "on the same machine, versions, devices and number of seeds; so is a resumed run"
    backend = jax.default_backend()
    if backend == "cpu":
        return "R3", f"bit-exact {same}"
    exact = jax.config.values["jax_default_matmul_precision"] in ("highest", "float32")
    if backend == "gpu" and exact and "--xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", ""):
        return "R3", f"bit-exact {same}"
    if backend == "gpu":
        return "R2", "first gradients within 1e-5; curves statistically alike; not bit-exact without deterministic ops"
    return "R0", f"unverified on {backend}"


def _revision() -> str | None:
    """The git revision of the source this package runs from, with ``+`` if it was changed; None when there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip() + ("+" if changes.stdout.strip() else "")
