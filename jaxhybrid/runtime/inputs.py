"""Directories of runs that commands read."""

from __future__ import annotations

from pathlib import Path

from jaxhybrid.errors import InputError

__all__ = ["check_run", "parts"]

# As in `records`, which loads JAX; what is no run is refused without.
_MANIFEST, _METRICS = "manifest.json", "metrics.jsonl"


def check_run(directory: Path, *, field: str) -> None:
    """Refuses what is no run, or one without records.

    Args:
      directory: of the run.
      field: which argument named it.

    Raises:
      InputError: there are no records; says where those of its members are, if they run in processes.
    """
    if (directory / _METRICS).is_file():
        return
    name = f"{field}={str(directory)!r}"
    if not (directory / _MANIFEST).is_file():
        raise InputError(f"{name} is no run: it has no {_METRICS}.")
    begun = [part for part in parts(directory) if (part / _METRICS).is_file()]
    if begun:
        raise InputError(f"{name} has members that have not ended: name one of its parts, such as {str(begun[0])!r}.")
    raise InputError(f"{name} has no records yet: let the run begin first.")


def parts(directory: Path) -> list[Path]:
    """Returns the directories of the members of a run in processes, seeds ascending; none of another run."""
    found = [manifest.parent for manifest in directory.glob(f"*seed-*/{_MANIFEST}")]
    return sorted(found, key=lambda path: (path.name.rpartition("-")[0], len(path.name), path.name))
