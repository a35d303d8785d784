"""One process at a time in the directory of a run.

The lock is the operating system's: it ends with the process that holds it, however that ends. The file stays; it says
which process held the lock last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import console

__all__ = ["NAME", "acquire", "release"]

NAME = "lock"

# A lock belongs to a process, and so does the record of those that it holds.
_held: dict[Path, int] = {}


def acquire(directory: Path) -> bool:
    """Takes the lock of a run; a process that holds it already keeps it.

    Args:
      directory: of the run; must exist.

    Returns:
      Whether it was taken now, so that whoever took it gives it back.

    Raises:
      InputError: another process holds the lock; the message names it.
      OSError: the file of the lock cannot be written.
    """
    place = directory.resolve()
    if place in _held:
        return False
    descriptor = os.open(place / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as reason:
        holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        if reason.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(f"out={str(directory)!r} is in use by process {holder}: wait for it or stop it.") from None
        console.warn(f"{str(directory)!r} cannot be locked ({reason.strerror}): start no second process in it.")
        return False
    _held[place] = descriptor
    # A full disk is no reason not to read a run.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return True


def release(directory: Path) -> None:
    """Gives the lock of a run back, if this process holds it."""
    descriptor = _held.pop(directory.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
