"""A data set of steps as one file that says which environment it is from: arrays and facts, without pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import strict_json
from jaxhybrid.runtime.records import jsonable
from jaxhybrid.types import EnvSpec, Transition

__all__ = ["load", "save"]

_FACTS = ("name", "obs_dim", "obs_shape", "action_dim", "num_actions")


def save(path: Path | str, data: Transition, spec: EnvSpec) -> Path:
    """Writes steps ``[N, ...]`` to an ``.npz`` file, compressed.

    Args:
      path: of the file; one that exists is not touched.
      data: the steps.
      spec: of the environment that they are from.

    Returns:
      The path.

    Raises:
      InputError: the file exists, or the steps are not the environment's.
    """
    path = Path(path)
    _check_shapes(str(path), data, spec)
    facts = json.dumps(_facts(spec))
    try:
        with path.open("xb") as file:
            arrays: dict[str, Any] = {name: np.asarray(value) for name, value in data._asdict().items()}
            np.savez_compressed(file, facts=np.array(facts), **arrays)
    except FileExistsError:
        raise InputError(f"{str(path)!r} exists: choose another name.") from None
    return path


def load(path: Path | str, spec: EnvSpec) -> Transition:
    """Reads steps back.

    Args:
      path: from `save`.
      spec: of the environment that they are to be used for.

    Raises:
      InputError: no such file, not a data set, or one of another environment; says which.
    """
    name = str(path)
    try:
        # NumPy leaves a file that it opens itself open when the archive in it is damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            facts = strict_json.parse(str(archive["facts"]).encode())
            data = Transition(*(archive[field] for field in Transition._fields))
    except Exception:  # The parsers of archives, of their compression and of arrays raise whatever they like.
        raise InputError(f"data={name!r} is no data set: write one with jaxhybrid.runtime.tuples.save.") from None
    for field, value in _facts(spec).items():
        if facts.get(field) != value:
            raise InputError(
                f"data={name!r} is of another environment: its {field} is {facts.get(field)!r}, that of {spec.name!r} "
                f"is {value!r}."
            )
    _check_shapes(name, data, spec)
    return data


def _facts(spec: EnvSpec) -> dict:
    return {field: jsonable(getattr(spec, field)) for field in _FACTS}


def _check_shapes(name: str, data: Transition, spec: EnvSpec) -> None:
    count = len(data.reward)
    obs = spec.obs_shape or (spec.obs_dim,)
    action = (spec.action_dim,) if spec.num_actions is None else ()
    inner = {"obs": obs, "action": action, "next_obs": obs}
    for field, value in data._asdict().items():
        shape = (count, *inner.get(field, ()))
        if np.shape(value) != shape:
            raise InputError(f"data={name!r} has {field} of shape {np.shape(value)}, expected {shape}.")
