"""The files of a saved policy, read as if a stranger had written them.

Nothing is unpickled or executed, no size in a file is believed before the file is known to be that long, and each
refusal is one line that names the file and the field.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.networks import ACTIVATIONS
from jaxhybrid.types import PyTree

__all__ = [
    "ARRAYS",
    "FACTS",
    "FORMAT",
    "SPEC",
    "check_network",
    "check_normaliser",
    "digest",
    "flat",
    "leaves",
    "nested",
    "read",
    "refused",
    "write",
]

FORMAT = 2
FACTS, ARRAYS = "policy.json", "params.npz"
NETWORKS = {
    "gaussian": ("hidden", "activation", "squash"),
    "filtered_gaussian": ("hidden", "activation", "limit"),
}
"""Kinds of networks that can be built from their description, and what it says."""
SPEC = ("name", "obs_dim", "action_dim", "action_low", "action_high", "max_episode_steps", "dt", "notes")

_FIELDS = {
    "format": int,
    "study": str,
    "config": dict,
    "spec": dict,
    "seeds": list,
    "facts": dict,
    "params": dict,
    "sha256": str,
}
# The first format had no network, no normaliser, no versions and no digest.
_ADDED = {"network": dict | None, "normaliser": dict | None, "versions": dict, "digest": str}
_MOST_FACTS, _MOST_ARRAYS = 2**20, 2**30
_MOST_SEEDS, _MOST_PARAMS, _MOST_LAYERS, _MOST_DIM = 10_000, 1_000, 64, 10**6
_DTYPES = ("float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "bool")


def refused(path: Path, field: str, what: str) -> InputError:
    """Returns the error for a field of a file."""
    return InputError(f"{str(path)!r}, field {field!r}: {what}.")


def digest(description: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a description without its own digest."""
    rest = {name: value for name, value in description.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the description of a policy and its arrays by path, both checked.

    Args:
      directory: of `policies.save`.

    Raises:
      InputError: a file is missing, too large, changed, or says something impossible.
    """
    path = directory / FACTS
    description = _description(path, _bytes(path, _MOST_FACTS))
    _check_spec(path, description["spec"])
    check_network(path, description.setdefault("network", None), description["spec"]["action_dim"])
    check_normaliser(path, description.setdefault("normaliser", None), description["spec"]["obs_dim"])
    description.setdefault("versions", {})
    seeds = description["seeds"]
    if not (0 < len(seeds) <= _MOST_SEEDS and all(_whole(seed, 0, 2**31) for seed in seeds)):
        raise refused(path, "seeds", "must be a list of whole numbers")
    arrays_path = directory / ARRAYS
    raw = _bytes(arrays_path, _MOST_ARRAYS)
    _check_params(path, description["params"], len(raw))
    if hashlib.sha256(raw).hexdigest() != description["sha256"]:
        raise refused(arrays_path, "sha256", f"differs from that in {FACTS}, so the file was changed")
    return description, _arrays(arrays_path, raw, description["params"])


def write(directory: Path, description: Mapping[str, Any], arrays: bytes) -> None:
    """Writes both files of a policy, in the place of those of an earlier one.

    Raises:
      InputError: the disk cannot be written.
    """
    facts = json.dumps(description, indent=1, allow_nan=False) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ARRAYS).write_bytes(arrays)
        (directory / FACTS).write_text(facts, encoding="utf-8")
    except OSError as reason:
        raise InputError(f"policy={str(directory)!r} cannot be written ({reason.strerror}).") from None


def _bytes(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError:
        raise InputError(f"{str(path.parent)!r} holds no policy: {path.name} cannot be read.") from None
    if len(raw) > most:
        raise InputError(f"{str(path)!r} is larger than {most:,} bytes, so it is not of a policy.")
    return raw


def _description(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        description = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InputError(f"{str(path)!r} is not JSON.") from None
    if not isinstance(description, dict) or description.get("format") not in (1, FORMAT):
        raise refused(path, "format", f"must be {FORMAT}")
    fields = _FIELDS | (_ADDED if description["format"] == FORMAT else {})
    for name in sorted(fields.keys() ^ description.keys()):
        raise refused(path, name, "is missing" if name in fields else "is unknown")
    for name, kind in fields.items():
        if not isinstance(description[name], kind):
            raise refused(path, name, f"is a {type(description[name]).__name__}")
    if description["format"] == FORMAT and description["digest"] != digest(description):
        raise refused(path, "digest", "does not belong to the rest, so the file was changed")
    return description


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value < high


def _numbers(value: Any, count: int, *, infinite: bool = False) -> bool:
    """Whether ``value`` is a list of so many finite numbers; infinities are strings in these files."""
    if not (isinstance(value, list) and len(value) == count):
        return False
    allowed = ("inf", "-inf") if infinite else ()
    return all((type(item) in (int, float) and abs(item) < 1e30) or item in allowed for item in value)


def _check_spec(path: Path, spec: dict[str, Any]) -> None:
    for name in sorted(set(SPEC) ^ spec.keys()):
        raise refused(path, f"spec.{name}", "is missing" if name in SPEC else "is unknown")
    for name in ("name", "notes"):
        if not isinstance(spec[name], str):
            raise refused(path, f"spec.{name}", "must be text")
    # Discrete actions have no dimension.
    ranges = {"obs_dim": (1, _MOST_DIM), "action_dim": (0, _MOST_DIM), "max_episode_steps": (1, 2**31)}
    for name, (least, most) in ranges.items():
        if not _whole(spec[name], least, most):
            raise refused(path, f"spec.{name}", f"must be a whole number from {least} to {most}")
    for name in ("action_low", "action_high"):
        if not _numbers(spec[name], spec["action_dim"], infinite=True):
            raise refused(path, f"spec.{name}", f"must be {spec['action_dim']} numbers")
    if not _numbers([spec["dt"]], 1) or spec["dt"] <= 0:
        raise refused(path, "spec.dt", "must be a positive number")


def check_network(path: Path, network: Mapping[str, Any] | None, action_dim: int) -> None:
    """Refuses a network that cannot be built; a limit on its size comes before any array of it."""
    if network is None:
        return
    kind = network.get("kind")
    fields = NETWORKS.get(kind) if isinstance(kind, str) else None
    if fields is None or network.keys() != {"kind", *fields}:
        known = "; ".join(f"{kind!r} with {', '.join(names)}" for kind, names in NETWORKS.items())
        raise refused(path, "network", f"must be of one of these kinds: {known}")
    if action_dim < 1:
        raise refused(path, "spec.action_dim", "must be at least 1 for a network of real-valued actions")
    hidden = network["hidden"]
    if not (isinstance(hidden, list) and len(hidden) <= _MOST_LAYERS and all(_whole(w, 1, _MOST_DIM) for w in hidden)):
        raise refused(path, "network.hidden", f"must be a list of up to {_MOST_LAYERS} widths")
    if network["activation"] not in list(ACTIVATIONS):
        raise refused(path, "network.activation", f"must be one of {', '.join(ACTIVATIONS)}")
    if not isinstance(network.get("squash", False), bool):
        raise refused(path, "network.squash", "must be true or false")
    if not (_numbers([network.get("limit", 1.0)], 1) and network.get("limit", 1.0) > 0):
        raise refused(path, "network.limit", "must be a positive number")


def check_normaliser(path: Path, normaliser: Mapping[str, Any] | None, obs_dim: int) -> None:
    """Refuses a normaliser that is not a finite mean and a positive standard deviation per observation."""
    if normaliser is None:
        return
    if normaliser.keys() != {"mean", "std"}:
        raise refused(path, "normaliser", "must have mean and std")
    for name in ("mean", "std"):
        if not _numbers(normaliser[name], obs_dim):
            raise refused(path, f"normaliser.{name}", f"must be {obs_dim} finite numbers")
    if min(normaliser["std"]) <= 0:
        raise refused(path, "normaliser.std", "must be positive")


def _check_params(path: Path, params: dict[str, Any], size: int) -> None:
    """The shapes must fit into the file before any array of such a shape is made."""
    if not 0 < len(params) <= _MOST_PARAMS:
        raise refused(path, "params", f"must have 1 to {_MOST_PARAMS} entries")
    total = 0
    for name, described in params.items():
        field = f"params.{name}"
        if not all(name.split("/")) or any(other.startswith(f"{name}/") for other in params):
            raise refused(path, field, "is no path of names with slashes between them")
        if not (isinstance(described, dict) and described.keys() == {"shape", "dtype"}):
            raise refused(path, field, "must have shape and dtype")
        shape = described["shape"]
        if not (isinstance(shape, list) and len(shape) <= 32 and all(_whole(n, 1, 2**40) for n in shape)):
            raise refused(path, f"{field}.shape", "must be a list of whole numbers")
        if described["dtype"] not in _DTYPES:
            raise refused(path, f"{field}.dtype", f"must be one of {', '.join(_DTYPES)}")
        total += math.prod(shape) * np.dtype(described["dtype"]).itemsize
        if total > size:
            raise refused(path, f"{field}.shape", f"needs more bytes than {ARRAYS} has")


def _arrays(path: Path, raw: bytes, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in params):
                raise refused(path, "names", f"are not those in {FACTS}")
            # Stored as they are: nothing can unfold to more than the file's own size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise refused(path, "compression", "must be none")
            contents = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, NotImplementedError) as reason:
        if isinstance(reason, InputError):
            raise
        raise InputError(f"{str(path)!r} is not an archive of plain arrays.") from None
    return {name: _array(path, name, contents[name], described) for name, described in params.items()}


def _array(path: Path, name: str, content: bytes, described: Mapping[str, Any]) -> np.ndarray:
    stream = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception:  # NumPy raises whatever the parsers of Python raise.
        raise refused(path, name, "is not a plain array") from None
    data = stream.read()
    if (list(shape), str(dtype)) != (described["shape"], described["dtype"]):
        raise refused(path, name, f"has another shape or dtype than {FACTS} says")
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise refused(path, name, "is not as long as its shape")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C").copy()
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise refused(path, name, "is not finite")
    return array


def leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns the leaves of nested dicts with their paths; a leaf may be the shape of one."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(str(part.key) for part in where), leaf) for where, leaf in pairs]


def flat(tree: PyTree, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of nested dicts by their paths, names with slashes between them.

    Raises:
      InputError: something is no dict of numeric arrays, has a name that is none, or is not finite.
    """
    if isinstance(tree, Mapping):
        found: dict[str, np.ndarray] = {}
        for name, item in tree.items():
            if not isinstance(name, str) or "/" in name or not name:
                raise InputError(f"params has the name {name!r}: names must be strings without a slash.")
            found |= flat(item, f"{prefix}/{name}" if prefix else name)
        return found
    array = np.asarray(tree, order="C")
    if array.dtype.kind not in "fiub" or not prefix:
        raise InputError(f"params{'/' if prefix else ''}{prefix} is a {type(tree).__name__}: give dicts of arrays.")
    if not np.all(np.isfinite(array)):
        raise InputError(f"params/{prefix} is not finite.")
    return {prefix: array}


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the nested dicts of which `flat` made the arrays."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = array
    return tree
