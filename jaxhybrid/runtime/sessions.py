"""What the manifest of a run says of one session: command, options, versions, hardware, level of reproducibility."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

__all__ = ["facts"]

_PACKAGES = ("jaxhybrid", "jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "brax", "mujoco", "gymnasium")


def facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns when, how, from what and on what a session was started, and which level of reproducibility holds."""
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
        "options": options,
        "versions": {"python": platform.python_version(), **versions},
        "revision": _revision(),
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
        },
        "compiled_in_haste": bool(jax.config.values["jax_disable_most_optimizations"]),
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
