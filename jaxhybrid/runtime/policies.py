"""A trained policy as a directory that explains itself: ``policy.json`` and ``params.npz``, without pickles.

``policy.json`` holds the study, the config, the environment's facts, the shape of every parameter and the SHA-256 of
the arrays; nothing of this library is needed to read either file.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime.records import jsonable
from jaxhybrid.types import EnvSpec, PyTree

__all__ = ["SavedPolicy", "join", "load", "save"]

_FORMAT = 1
_FACTS, _ARRAYS = "policy.json", "params.npz"
_SPEC = ("name", "obs_dim", "action_dim", "action_low", "action_high", "max_episode_steps", "dt", "notes")


class SavedPolicy(NamedTuple):
    """A policy read back.

    Attributes:
      params: nested dict of NumPy arrays; with a leading axis ``S`` when there are several ``seeds``.
      study: the study, which says what network the parameters belong to.
      config: numbers of the system, as JSON.
      spec: facts about the environment, as JSON.
      seeds: training seeds.
      facts: whatever else was saved.
    """

    params: PyTree
    study: str
    config: dict[str, Any]
    spec: dict[str, Any]
    seeds: list[int]
    facts: dict[str, Any]


def save(
    directory: Path | str,
    *,
    params: PyTree,
    study: str,
    config: Mapping[str, Any],
    spec: EnvSpec,
    seeds: list[int],
    **facts: Any,
) -> Path:
    """Writes a policy.

    Args:
      directory: to create; files of an earlier policy in it are replaced.
      params: nested dicts of arrays with string names.
      study: name of the study.
      config: numbers of the system.
      spec: of the environment it was trained on.
      seeds: training seeds.
      **facts: anything else worth keeping that JSON can hold, such as the iteration.

    Returns:
      The directory.

    Raises:
      InputError: ``params`` is not made of dicts and numeric arrays, or is not finite.
    """
    facts_of_spec = {name: jsonable(getattr(spec, name)) for name in _SPEC}
    return _write(Path(directory), params, study, config, facts_of_spec, seeds, facts)


def load(directory: Path | str) -> SavedPolicy:
    """Reads a policy back and verifies it.

    Args:
      directory: from `save`.

    Raises:
      InputError: a file is missing, unreadable, changed, or of another format.
    """
    directory = Path(directory)
    try:
        description = json.loads((directory / _FACTS).read_bytes())
        raw = (directory / _ARRAYS).read_bytes()
    except (OSError, ValueError):
        raise InputError(f"{str(directory)!r} holds no policy: {_FACTS} or {_ARRAYS} cannot be read.") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise InputError(f"{str(directory / _FACTS)!r} has another format than {_FORMAT}.")
    if hashlib.sha256(raw).hexdigest() != description.get("sha256"):
        raise InputError(f"{str(directory / _ARRAYS)!r} was changed after it was saved: its SHA-256 differs.")
    arrays = _arrays(directory / _ARRAYS, raw)
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}
    if shapes != description.get("params"):
        raise InputError(f"{str(directory / _FACTS)!r} describes other parameters than {_ARRAYS} holds.")
    try:
        return SavedPolicy(_nested(arrays), *(description[name] for name in SavedPolicy._fields[1:]))
    except KeyError as missing:
        raise InputError(f"{str(directory / _FACTS)!r} lacks {missing.args[0]!r}.") from None


def join(directory: Path | str, each: Sequence[Path], **facts: Any) -> Path:
    """Writes several policies of one study as one, with a leading axis ``S`` on every parameter for all their seeds.

    Args:
      directory: to create.
      each: directories of policies, of one seed or of several.
      **facts: that replace those of the first policy.

    Returns:
      The directory.

    Raises:
      InputError: a policy cannot be read, or their parameters differ in shape.
    """
    loaded = [load(path) for path in each]
    arrays = [_with_seed_axis(policy) for policy in loaded]
    shapes = [{name: array.shape[1:] for name, array in flat.items()} for flat in arrays]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"{str(directory)!r}: the policies to stack have parameters of different shapes.")
    params = _nested({name: np.concatenate([flat[name] for flat in arrays]) for name in arrays[0]})
    first = loaded[0]
    seeds = [seed for policy in loaded for seed in policy.seeds]
    return _write(Path(directory), params, first.study, first.config, first.spec, seeds, first.facts | facts)


def _with_seed_axis(policy: SavedPolicy) -> dict[str, np.ndarray]:
    flat = _flat(policy.params, "")
    return flat if len(policy.seeds) > 1 else {name: array[None] for name, array in flat.items()}


def _write(
    directory: Path,
    params: PyTree,
    study: str,
    config: Mapping[str, Any],
    spec: Mapping[str, Any],
    seeds: list[int],
    facts: Mapping[str, Any],
) -> Path:
    arrays = _flat(params, "")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    description = {
        "format": _FORMAT,
        "study": study,
        "config": jsonable(config),
        "spec": dict(spec),
        "seeds": seeds,
        "facts": jsonable(facts),
        "params": {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()},
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _ARRAYS).write_bytes(buffer.getvalue())
    (directory / _FACTS).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return directory


def _arrays(path: Path, raw: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            # Arrays are stored as they are; a file that would unfold to more than its own size is not ours.
            if sum(member.file_size for member in archive.zip.infolist()) <= len(raw):
                return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, MemoryError, AttributeError, zipfile.BadZipFile):
        pass
    raise InputError(f"{str(path)!r} is not an archive of plain arrays.")


def _flat(tree: PyTree, prefix: str) -> dict[str, np.ndarray]:
    if isinstance(tree, Mapping):
        found: dict[str, np.ndarray] = {}
        for name, item in tree.items():
            if not isinstance(name, str) or "/" in name or not name:
                raise InputError(f"params has the name {name!r}: names must be strings without a slash.")
            found |= _flat(item, f"{prefix}/{name}" if prefix else name)
        return found
    array = np.asarray(tree)
    if array.dtype.kind not in "fiub" or not prefix:
        raise InputError(f"params{'/' if prefix else ''}{prefix} is a {type(tree).__name__}: give dicts of arrays.")
    if not np.all(np.isfinite(array)):
        raise InputError(f"params/{prefix} is not finite.")
    return {prefix: array}


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = array
    return tree
