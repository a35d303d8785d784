"""Checkpoints that are either whole or refused.

Orbax writes and reads the arrays. It does not notice a flipped bit in them, so every step carries a manifest, written
last, with the SHA-256 of each file; nothing is used before all of them agree. Who can write files can also sign them,
so the manifest decides nothing either: shapes and types are those of the tree that is expected, compared before
anything is allocated. No file is ever unpickled, no link followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import devices, records, strict_json
from jaxhybrid.types import PyTree

__all__ = ["NonFiniteError", "Restored", "prune", "restore", "save", "steps"]

_FORMAT = 1
_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
# A machine that is short of files or memory says nothing about what it reads.
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_STEP = re.compile(r"[0-9]{8}")
_TOP = {"format": int, "iteration": int, "facts": dict, "leaves": list, "files": dict, "digest": str}


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

    The processes of a job write it together, each its part of the arrays, so all of them must call this.

    Args:
      directory: holds all steps of a run.
      iteration: names the step.
      tree: arrays of JAX and NumPy, typed keys included.
      facts: what else to keep, as JSON.

    Returns:
      The directory of the step.

    Raises:
      NonFiniteError: a floating-point leaf whose path names ``params`` is not finite.
      InputError: the disk is full, or cannot be written for another reason. Earlier steps are as they were.
    """
    paths, leaves = _flatten(tree)
    raw = [_raw(leaf) for leaf in leaves]
    bad = _nonfinite_params(paths, raw)
    if bad:
        raise NonFiniteError(f"{bad} is not finite at iteration {iteration}: no checkpoint was written.")

    final, partial = directory / f"{iteration:08d}", directory / f".{iteration:08d}.partial"
    try:
        if devices.is_first():
            directory.mkdir(parents=True, exist_ok=True)
            _sweep(directory)
            partial.mkdir()
        devices.barrier("a checkpoint begins")
        # Orbax cannot write an array without elements; its shape in the manifest says all there is to know.
        _save_arrays(partial.absolute() / _ARRAYS, {str(i): array for i, array in enumerate(raw) if array.size})
        if not devices.is_first():
            devices.barrier("a checkpoint is complete")
            return final
        manifest = {
            "format": _FORMAT,
            "iteration": iteration,
            "facts": dict(facts),
            "leaves": [_description(path, leaf) for path, leaf in zip(paths, leaves, strict=True)],
            "files": {name: _sha256(partial / name) for name in _files(partial)},
        }
        _write_last(partial / _MANIFEST, manifest | {"digest": _digest(manifest)})
        _publish(partial, final)
        devices.barrier("a checkpoint is complete")
    except OSError as reason:
        # Leaves the room on a full disk to others.
        shutil.rmtree(partial, ignore_errors=True)
        raise InputError(
            f"checkpoint {final.name} cannot be written to {str(directory)!r} ({reason.strerror or reason}); the ones "
            "before it are untouched: make room and continue with --resume."
        ) from None
    return final


def restore(
    directory: Path,
    template: PyTree,
    on_damage: Callable[[str], None],
    *,
    identity: Mapping[str, Any] | None = None,
) -> Restored | None:
    """Returns the newest step that passes every check, or None where there is no step at all.

    A step that fails is reported and renamed to ``<step>.damaged``, and the one before it is tried.

    Args:
      directory: holds all steps of a run.
      template: the tree that is expected: ``jax.ShapeDtypeStruct`` where a JAX array is wanted, NumPy arrays where a
        NumPy array is wanted.
      on_damage: told in one line about each step that failed.
      identity: what the facts of a step must hold under that name; None takes any.

    Raises:
      InputError: there are steps, and none of them is good; or a good one is of another run, or holds other arrays
        than ``template``; or this machine lacks what it takes to read one, which is not set aside then.
    """
    found = steps(directory)
    for iteration in reversed(found):
        step = directory / f"{iteration:08d}"
        try:
            with _damage_told_from_want(step):
                return _restore_step(step, template, identity)
        except _DamagedError as damage:
            on_damage(f"checkpoint {step.name} is damaged and set aside: {damage}")
            # The processes of a job read the same steps; a second one would delete what the first has set aside.
            if devices.is_first():
                _set_aside(step)
    if found:
        raise InputError(
            f"{str(directory)!r} holds no good checkpoint: bring back a copy of it, or start a new run elsewhere."
        )
    return None


def prune(directory: Path, keep_last: int, keep_every: int | None = None) -> None:
    """Deletes all but the newest steps, and those at regular intervals.

    Args:
      directory: holds all steps of a run.
      keep_last: how many of the newest stay.
      keep_every: the steps of iterations that are multiples of this stay too; None: none do.
    """
    for iteration in steps(directory)[:-keep_last]:
        if keep_every is None or iteration % keep_every:
            step = directory / f"{iteration:08d}"
            # Renamed first, so that a kill in between leaves nothing that looks like a step.
            step.rename(directory / f".{step.name}.partial")
    _sweep(directory)


@contextlib.contextmanager
def _damage_told_from_want(step: Path) -> Iterator[None]:
    """What cannot be read counts as damaged, unless it is this machine that lacks what it takes."""
    try:
        yield
    except (MemoryError, ImportError, OSError) as reason:
        said = getattr(reason, "strerror", None) or f"{type(reason).__name__}: {reason}".removesuffix(": ")
        if isinstance(reason, OSError) and reason.errno not in _SHORT:
            raise _DamagedError(f"it cannot be read ({said})") from None
        raise InputError(
            f"checkpoint {step.name} in {str(step.parent)!r} could not be read here ({said}), which is no fault of its "
            "own, and was left as it is: put that right and try again."
        ) from None


def _restore_step(step: Path, template: PyTree, identity: Mapping[str, Any] | None) -> Restored:
    manifest = _verified_manifest(step)
    if identity is not None:
        other = records.differences(_mapping(manifest["facts"].get("identity")), records.jsonable(identity))
        if other:
            raise InputError(
                f"checkpoint {step.name} is of another run: {'; '.join(other)}. Remove it from {str(step.parent)!r}."
            )
    paths, wanted = _flatten(template)
    want = [_description(path, leaf) for path, leaf in zip(paths, wanted, strict=True)]
    if manifest["leaves"] != want:
        pairs = zip(manifest["leaves"], want)
        first = next((w["path"] for h, w in pairs if h != w), "their number")
        raise InputError(f"checkpoint {step.name} was written by another program: the arrays differ, first {first}.")
    expected = {
        str(i): np.empty(leaf["raw_shape"], _dtype(leaf["raw_dtype"]))
        for i, leaf in enumerate(want)
        if 0 not in leaf["raw_shape"]
    }
    arrays = _load_arrays(step.absolute() / _ARRAYS, expected)
    raw = [arrays.get(str(i), np.empty(leaf["raw_shape"], _dtype(leaf["raw_dtype"]))) for i, leaf in enumerate(want)]
    bad = _nonfinite_params(paths, raw)
    if bad:
        raise _DamagedError(f"{bad} is not finite")
    leaves = [_cooked(array, leaf["key_impl"], target) for array, leaf, target in zip(raw, want, wanted, strict=True)]
    tree = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return Restored(manifest["iteration"], tree, manifest["facts"])


def _verified_manifest(step: Path) -> dict[str, Any]:
    for path in (step, *_below(step)):
        if not (stat.S_ISDIR(path.lstat().st_mode) or stat.S_ISREG(path.lstat().st_mode)):
            raise _DamagedError(f"{path.relative_to(step.parent)} is a link or no file")
    try:
        manifest = strict_json.record(strict_json.read(step / _MANIFEST), _TOP, "manifest")
    except ValueError as reason:
        raise _DamagedError(f"{_MANIFEST} {reason}") from None
    if manifest.pop("digest") != _digest(manifest):
        raise _DamagedError(f"{_MANIFEST} was changed")
    if manifest["format"] != _FORMAT or f"{manifest['iteration']:08d}" != step.name:
        raise _DamagedError(f"{_MANIFEST} belongs to another step or format")
    names = [name for name in _files(step) if name != _MANIFEST]
    odd = sorted(set(names) ^ set(manifest["files"])) or [n for n in names if not n.startswith(f"{_ARRAYS}/")]
    if odd:
        raise _DamagedError(f"{odd[0][:80]!r} is missing or was added")
    for name, digest in manifest["files"].items():
        if _sha256(step / name) != digest:
            raise _DamagedError(f"{name} was changed")
    return manifest


def _set_aside(step: Path) -> None:
    aside = step.with_suffix(".damaged")
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    # Where even this is not allowed, the step is only passed over.
    with contextlib.suppress(OSError):
        step.rename(aside)


def _sweep(directory: Path) -> None:
    """Removes what a killed `save` or `prune` left."""
    for leftover in directory.glob(".*.partial"):
        shutil.rmtree(leftover)


def _publish(partial: Path, final: Path) -> None:
    """Gives a complete step its name. What a crash of the machine may lose is lost before that."""
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        _sync_directory(folder)
    if final.exists():
        final.rename(final.with_name(f".{final.name}.replaced.partial"))
    partial.rename(final)
    _sync_directory(final.parent)
    _sweep(final.parent)


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    try:
        _orbax().save(path, dict(arrays))
    except OSError as reason:
        raise OSError(reason.errno, reason.strerror) from reason
    except Exception as reason:  # Orbax raises whatever its storage layers raise.
        said = str(reason).partition("\n")[0][:200]
        raise OSError(f"{type(reason).__name__}: {said}") from reason


def _load_arrays(path: Path, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reads arrays whose shapes and types are known; Orbax would take those of its files instead."""
    try:
        held = {name: (leaf.shape, leaf.dtype) for name, leaf in _orbax().metadata(path).metadata.items()}
        if held != {name: (array.shape, array.dtype) for name, array in expected.items()}:
            raise _DamagedError(f"{_ARRAYS} holds other arrays than its manifest says")
        return _orbax().load(path, dict(expected))
    except (_DamagedError, MemoryError, ImportError, OSError):
        raise
    except Exception as reason:  # Orbax raises whatever its storage layers raise.
        raise _DamagedError(f"its arrays cannot be read ({type(reason).__name__})") from None


def _nonfinite_params(paths: list[str], raw: list[np.ndarray]) -> str:
    """The path of the first parameter that is not finite, or nothing."""
    for path, array in zip(paths, raw, strict=True):
        if "params" in path and jnp.issubdtype(array.dtype, jnp.inexact):
            library: Any = jnp if isinstance(array, jax.Array) else np
            if not library.all(library.isfinite(array)):
                return path
    return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flatten(tree: PyTree) -> tuple[list[str], list[Any]]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in pairs], [leaf for _, leaf in pairs]


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    """The numbers of a leaf; they stay where they are if the processes of a job hold a part of them each."""
    numbers = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    divided = isinstance(numbers, jax.Array) and not numbers.is_fully_addressable
    return numbers if divided else np.asarray(numbers)


def _description(path: str, leaf: Any) -> dict[str, Any]:
    """What the manifest says of an array, and what is expected of it: known from shape and type alone."""
    raw, impl = leaf, None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raw, impl = jax.eval_shape(jax.random.key_data, leaf), leaf.dtype._impl.name
    return {
        "path": path,
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "raw_shape": list(raw.shape),
        "raw_dtype": str(raw.dtype),
        "key_impl": impl,
    }


def _cooked(raw: np.ndarray, key_impl: str | None, target: Any) -> Any:
    if not isinstance(target, jax.ShapeDtypeStruct):
        return raw
    # Copied, because a donated buffer must belong to JAX alone.
    array = jnp.array(raw, copy=True)
    return devices.placed(
        array if key_impl is None else jax.random.wrap_key_data(array, impl=key_impl), target.sharding
    )


def _dtype(name: str) -> np.dtype:
    return np.dtype(jnp.dtype(name))


def _below(root: Path) -> Iterator[Path]:
    """Everything in a directory; unlike ``rglob`` it passes over nothing that cannot be read, and follows no link."""
    for path in root.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in _below(root) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_last(path: Path, manifest: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _orbax() -> Any:
    # Takes more than a second to import, which `--help` should not cost.
    from orbax.checkpoint import v1

    return v1
