"""Checkpoints that are either whole or refused.

Orbax writes and reads the arrays. It does not notice a flipped bit in them, so every step carries a manifest, written
last, with the SHA-256 of each file; nothing is used before all of them agree. No file is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import PyTree

__all__ = ["NonFiniteError", "Restored", "prune", "restore", "save", "steps"]

_FORMAT = 1
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_STEP = re.compile(r"\d{8}")


class NonFiniteError(RuntimeError):
    """Parameters were not finite, so no checkpoint was written."""


class Restored(NamedTuple):
    """A verified checkpoint: its iteration, its tree, and the facts that were saved with it."""

    iteration: int
    tree: PyTree
    facts: dict[str, Any]


class _DamagedError(Exception):
    """Why a step cannot be used."""


def steps(directory: Path) -> list[int]:
    """Returns the iterations that have a checkpoint, good or damaged, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.is_dir() and _STEP.fullmatch(path.name))


def save(directory: Path, iteration: int, tree: PyTree, facts: Mapping[str, Any]) -> Path:
    """Writes one step. Whoever looks at ``directory`` sees the whole step or none of it.

    Args:
      directory: holds all steps of a run.
      iteration: names the step.
      tree: arrays of JAX and NumPy, typed keys included.
      facts: what else to keep, as JSON.

    Returns:
      The directory of the step.

    Raises:
      NonFiniteError: a floating-point leaf whose path names ``params`` is not finite.
    """
    paths, leaves = _flatten(tree)
    raw = [_raw(leaf) for leaf in leaves]
    for path, array in zip(paths, raw, strict=True):
        if "params" in path and jnp.issubdtype(array.dtype, jnp.inexact) and not np.all(np.isfinite(array)):
            raise NonFiniteError(f"{path} is not finite at iteration {iteration}: no checkpoint was written.")

    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(".*.partial"):
        shutil.rmtree(leftover)
    final, partial = directory / f"{iteration:08d}", directory / f".{iteration:08d}.partial"
    partial.mkdir()
    # Orbax cannot write an array without elements; its shape in the manifest says all there is to know.
    with _by_this_process():
        _orbax().save(partial.absolute() / _ARRAYS, {str(i): array for i, array in enumerate(raw) if array.size})
    manifest = {
        "format": _FORMAT,
        "iteration": iteration,
        "facts": dict(facts),
        "leaves": [_description(path, leaf, array) for path, leaf, array in zip(paths, leaves, raw, strict=True)],
        "files": {name: _sha256(partial / name) for name in _files(partial)},
    }
    _write_last(partial / _MANIFEST, manifest | {"digest": _digest(manifest)})
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    return final


def restore(directory: Path, template: PyTree, on_damage: Callable[[str], None]) -> Restored | None:
    """Returns the newest step that passes every check, or None where there is no step at all.

    A step that fails is reported and renamed to ``<step>.damaged``, and the one before it is tried.

    Args:
      directory: holds all steps of a run.
      template: the tree that is expected: ``jax.ShapeDtypeStruct`` where a JAX array is wanted, NumPy arrays where a
        NumPy array is wanted.
      on_damage: told in one line about each step that failed.

    Raises:
      InputError: there are steps, and none of them is good; or a good one holds other arrays than ``template``.
    """
    found = steps(directory)
    for iteration in reversed(found):
        step = directory / f"{iteration:08d}"
        try:
            return _restore_step(step, template)
        except _DamagedError as damage:
            on_damage(f"checkpoint {step.name} is damaged and set aside: {damage}")
            shutil.rmtree(step.with_suffix(".damaged"), ignore_errors=True)
            step.rename(step.with_suffix(".damaged"))
    if found:
        raise InputError(
            f"out={str(directory.parent)!r} holds no good checkpoint: start a new run in another directory."
        )
    return None


def prune(directory: Path, keep_last: int) -> None:
    """Deletes all but the newest ``keep_last`` steps."""
    for iteration in steps(directory)[:-keep_last]:
        shutil.rmtree(directory / f"{iteration:08d}")


def _restore_step(step: Path, template: PyTree) -> Restored:
    manifest = _verified_manifest(step)
    paths, wanted = _flatten(template)
    saved = manifest["leaves"]
    have = [(leaf["path"], tuple(leaf["shape"]), leaf["dtype"]) for leaf in saved]
    want = [(path, tuple(leaf.shape), str(leaf.dtype)) for path, leaf in zip(paths, wanted, strict=True)]
    if have != want:
        first = next((str(h[0]) for h, w in zip(have, want) if h != w), "their number")
        raise InputError(f"checkpoint {step.name} was written by another program: the arrays differ, first {first}.")
    expected = {
        str(i): np.empty(leaf["raw_shape"], _dtype(leaf["raw_dtype"]))
        for i, leaf in enumerate(saved)
        if 0 not in leaf["raw_shape"]
    }
    try:
        with _by_this_process():
            arrays = _orbax().load(step.absolute() / _ARRAYS, expected)
    except Exception as reason:  # Orbax raises whatever its storage layers raise.
        raise _DamagedError(f"its arrays cannot be read ({type(reason).__name__})") from None
    leaves = [
        _cooked(arrays.get(str(i), np.empty(leaf["raw_shape"], _dtype(leaf["raw_dtype"]))), leaf["key_impl"], target)
        for i, (leaf, target) in enumerate(zip(saved, wanted, strict=True))
    ]
    tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return Restored(manifest["iteration"], tree, manifest["facts"])


def _verified_manifest(step: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((step / _MANIFEST).read_bytes())
    except (OSError, ValueError):
        raise _DamagedError(f"{_MANIFEST} is missing or unreadable") from None
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != _digest(manifest):
        raise _DamagedError(f"{_MANIFEST} was changed")
    if manifest["format"] != _FORMAT or f"{manifest['iteration']:08d}" != step.name:
        raise _DamagedError(f"{_MANIFEST} belongs to another step or format")
    names = [name for name in _files(step) if name != _MANIFEST]
    if names != sorted(manifest["files"]):
        odd = sorted(set(names) ^ set(manifest["files"]))
        raise _DamagedError(f"{odd[0]} is missing or was added")
    for name, digest in manifest["files"].items():
        if _sha256(step / name) != digest:
            raise _DamagedError(f"{name} was changed")
    return manifest


def _flatten(tree: PyTree) -> tuple[list[str], list[Any]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in pairs], [leaf for _, leaf in pairs]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _description(path: str, leaf: Any, raw: np.ndarray) -> dict[str, Any]:
    return {
        "path": path,
        "shape": list(np.shape(leaf)),
        "dtype": str(leaf.dtype),
        "raw_shape": list(raw.shape),
        "raw_dtype": str(raw.dtype),
        "key_impl": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
    }


def _cooked(raw: np.ndarray, key_impl: str | None, target: Any) -> Any:
    if not isinstance(target, jax.ShapeDtypeStruct):
        return raw
    # Copied, because a donated buffer must belong to JAX alone.
    array = jnp.array(raw, copy=True)
    return array if key_impl is None else jax.random.wrap_key_data(array, impl=key_impl)


def _dtype(name: str) -> np.dtype:
    return np.dtype(jnp.dtype(name))


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_last(path: Path, manifest: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _by_this_process() -> Any:
    """Keeps Orbax from waiting for other processes of a job: whoever saves has all of the state."""
    index = jax.process_index()
    options = _orbax().options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process-{index}"
    )
    return _orbax().Context(multiprocessing_options=options if jax.process_count() > 1 else None)


def _orbax() -> Any:
    # Takes more than a second to import, which `--help` should not cost.
    from orbax.checkpoint import v1

    return v1
