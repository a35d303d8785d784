"""Where the table and the predictions are written, with a picture beside each."""

from __future__ import annotations

from pathlib import Path

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import outputs

__all__ = ["new_pair"]


def new_pair(out: str | None, directory: Path, record: str, picture: str) -> tuple[Path, Path]:
    """Returns the paths of a record and of its picture, neither of which exists.

    Args:
      out: file of the record, as the user gave it; its picture has the same name and ends in .png. None: both names
        that follow, in ``directory``.
      directory: of what was read.
      record: name of the record there.
      picture: name of the picture there.

    Raises:
      InputError: one of them exists, or cannot be written, or both are the same.
    """
    if out is None:
        return outputs.new_file(str(directory / record)), outputs.new_file(str(directory / picture))
    if Path(out).suffix == ".png":
        raise InputError(f"out={out!r} names the picture, which is drawn beside the record: end it in .json.")
    path = outputs.new_file(out)
    return path, outputs.new_file(str(path.with_suffix(".png")))
