"""Files that commands write: refused before any work is done if they could not be written, or would replace one."""

from __future__ import annotations

import os
from pathlib import Path

from jaxhybrid.errors import InputError

__all__ = ["new_figure", "new_file", "write"]


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


def new_figure(name: str, *, field: str = "out") -> Path:
    """Returns the path of a figure that does not exist, with an ending that says how to draw it.

    Args:
      name: as the user gave it.
      field: which argument it was.

    Raises:
      InputError: the ending is missing or nothing that Matplotlib draws; or as for `new_file`.
    """
    from matplotlib.backend_bases import FigureCanvasBase  # Heavy, and commands without a figure do without it.

    path = new_file(name, field=field)
    # Matplotlib would append an ending to a name without one, and draw over a file that nobody has looked for.
    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"{field}={name!r} must end in the kind of figure to draw, such as .png, .pdf or .svg.")
    return path


def write(path: Path, content: bytes, *, field: str = "out") -> None:
    """Writes a new file.

    Args:
      path: from `new_file`.
      content: of the file.
      field: which argument it was.

    Raises:
      InputError: a file of this name has appeared since; it is not touched.
    """
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise InputError(f"{field}={str(path)!r} was written by somebody else meanwhile: name another file.") from None
