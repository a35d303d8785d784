"""Files that commands write: refused before any work is done if they could not be written, or would replace one."""

from __future__ import annotations

import os
from pathlib import Path

from jaxhybrid.errors import InputError

__all__ = ["new_file"]


def new_file(name: str, *, field: str = "out") -> Path:
    """Returns the path of a file that does not exist, in a directory that can be written.

    Args:
      name: as the user gave it.
      field: which argument it was.

    Raises:
      InputError: it exists, or its directory does not exist or cannot be written.
    """
    path = Path(name).expanduser()
    if not name.strip():
        raise InputError(f"{field} is empty: name a file.")
    if path.exists():
        raise InputError(f"{field}={name!r} exists: name another file.")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{field}={name!r} cannot be written: {str(path.parent)!r} is no directory.")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError(f"{field}={name!r} cannot be written: no permission in {str(path.parent)!r}.")
    return path
