"""Looks at this installation: dependencies, devices, precision, compile cache, graphics; says what to do.

``python -m jaxhybrid doctor`` exits with 1 when something is broken, and with 0 when there is nothing or a note.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from jaxhybrid.runtime import cli, graphics, known_problems
from jaxhybrid.runtime.options import RunOptions, cache_directory

__all__ = ["Finding", "cache", "dependencies", "main", "precision"]

_LEAST_PYTHON = (3, 11)
# Float32 products of this size err by about 1e-7 times the root of their length; TF32 and bfloat16 by 1e-3 and more.
_SIZE, _TOLERANCE = 256, 1e-5


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Nothing needs to be said."""


class Finding(NamedTuple):
    """One line of the answer, and what to do about it unless it is fine."""

    state: Literal["ok", "note", "broken"]
    text: str
    fix: str = ""


def main(argv: Sequence[str]) -> int:
    """Prints the findings; returns 1 when something is broken, else 0.

    Args:
      argv: see ``--help``.
    """
    tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid doctor", description=__doc__)
    broken = notes = 0
    for finding in _findings():
        broken, notes = broken + (finding.state == "broken"), notes + (finding.state == "note")
        sys.stdout.write(f"{finding.state:<7} {finding.text}\n")
        if finding.fix:
            sys.stdout.write(f"{'':<7} -> {finding.fix}\n")
    sys.stdout.write(f"{broken} broken, {notes} to note\n")
    return 1 if broken else 0


def _findings() -> Iterable[Finding]:
    python = sys.version_info[:2] >= _LEAST_PYTHON
    yield Finding(
        "ok" if python else "broken",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "" if python else f"install Python {'.'.join(map(str, _LEAST_PYTHON))} or newer",
    )
    installed: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # The first of several is the one that is imported.
        installed.setdefault(str(distribution.metadata["Name"]).lower(), distribution.version)
    yield from dependencies(installed)
    for problem in known_problems.met(installed):
        pair = ", ".join(f"{name} {installed[name]}" for name in problem.packages)
        yield Finding(problem.severity, f"{pair}: {problem.what}", problem.fix)
    # What follows needs JAX, so it comes after the line that says whether there is one.
    yield from _devices()
    yield cache(cache_directory(RunOptions()))
    backend = graphics.choose()
    if backend.name is None:
        yield Finding("note", "pictures: none of simulated robots, the rest works", backend.reason)
    else:
        yield Finding("ok", f"pictures: MuJoCo draws with MUJOCO_GL={backend.name}")


def dependencies(installed: dict[str, str]) -> Iterable[Finding]:
    """Compares what is installed with what this package requires.

    Args:
      installed: name in lower case to version.
    """
    try:
        required = importlib.metadata.requires("jaxhybrid") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("broken", "jaxhybrid is not installed", "pip install -e . in its directory")
        return
    for line in required:
        found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?\s*>=\s*([\w.]+)\s*$", line)
        # Lines with a condition belong to extras.
        if found is None:
            continue
        name, least = found[1].lower(), found[2]
        version = installed.get(name) or installed.get(name.replace("-", "_"))
        fix = f'pip install --upgrade "{line}"'
        if version is None:
            yield Finding("broken", f"{name} is not installed, needed is {least}", fix)
        elif known_problems.release(version) < known_problems.release(least):
            yield Finding("broken", f"{name} {version} is older than {least}", fix)
        else:
            yield Finding("ok", f"{name} {version}")
    if "flatbuffers" not in installed:
        yield Finding(
            "note", "flatbuffers is not installed, without which policies cannot be exported", "pip install flatbuffers"
        )


def _devices() -> Iterable[Finding]:
    try:
        import jax

        devices = jax.devices()
    except Exception as reason:  # JAX and its plugins raise whatever their drivers do.
        text = " ".join(str(reason).split())[:300]
        yield Finding("broken", f"JAX finds no device: {text}", "reinstall jax and jaxlib in the same version")
        return
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    yield Finding("ok", f"devices: {len(devices)} x {', '.join(kinds)}")
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        yield Finding("note", "JAX uses the CPU although there is an NVIDIA driver", 'pip install -e ".[cuda]"')
    if jax.default_backend() == "gpu" and "--xla_gpu_deterministic_ops=true" not in os.environ.get("XLA_FLAGS", ""):
        yield Finding("note", "runs are not bit-exact on this GPU", "set XLA_FLAGS=--xla_gpu_deterministic_ops=true")
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, _SIZE, _SIZE)).astype(np.float32)
    product = np.asarray(jax.jit(jax.numpy.matmul)(a, b))
    yield precision(a, b, product, str(jax.config.values["jax_default_matmul_precision"]))


def precision(a: np.ndarray, b: np.ndarray, product: np.ndarray, setting: str) -> Finding:
    """Says whether a matrix product is one of float32.

    Args:
      a: float32 ``[N, N]``.
      b: float32 ``[N, N]``.
      product: what the device made of ``a @ b``.
      setting: JAX's own name for the precision.
    """
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = float(np.max(np.abs(product - exact)) / np.max(np.abs(exact)))
    text = f"matrix products: relative error {error:.1e} (precision {setting})"
    if error < _TOLERANCE:
        return Finding("ok", text)
    fix = "set JAX_DEFAULT_MATMUL_PRECISION=highest for float32, at some cost of speed"
    return Finding("note", f"{text}, coarser than float32", fix)


def cache(directory: Path | None) -> Finding:
    """Describes the cache of compiled programs.

    Args:
      directory: where it is; None where there is none.
    """
    if directory is None:
        return Finding("note", "compile cache: off", "leave --compile-cache at its default")
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        fix = "make it writable, or set XDG_CACHE_HOME to a directory that is"
        return Finding("note", f"compile cache: {directory} cannot be written, programs are compiled in every run", fix)
    files = [entry for entry in os.scandir(directory) if entry.is_file()] if directory.exists() else []
    size = sum(entry.stat().st_size for entry in files)
    return Finding("ok", f"compile cache: {directory}, {len(files)} files, {size / 2**20:,.0f} MiB, writable")


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
