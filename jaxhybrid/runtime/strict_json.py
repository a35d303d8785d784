"""JSON read as if a stranger had written it: bounded in size and depth, every name once, no NaN, no links."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["parse", "read", "record"]

_MOST_BYTES = 64 * 2**20
_MOST_DEPTH = 64


def read(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      path: a regular file; a link is not followed.

    Raises:
      ValueError: the file is missing, a link, too large, or holds anything but one plain object; the message is a
        phrase that follows the name of the file.
    """
    try:
        # Neither follows a link nor waits for the other end of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except OSError as reason:
        raise ValueError("is a link" if path.is_symlink() else f"cannot be read ({reason.strerror})") from None
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("is not a regular file")
        if facts.st_size > _MOST_BYTES:
            raise ValueError(f"has {facts.st_size} bytes, more than {_MOST_BYTES}")
        return parse(file.read())


def parse(text: bytes) -> dict[str, Any]:
    """Returns the JSON object in ``text``.

    Raises:
      ValueError: anything but one plain object; the message is a phrase that follows the name of the file.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except _RefusedError:
        raise
    except (ValueError, RecursionError) as reason:
        what = "nests too deeply" if isinstance(reason, RecursionError) else "is not JSON"
        raise ValueError(what) from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    if not _shallow(value, _MOST_DEPTH):
        raise ValueError(f"nests deeper than {_MOST_DEPTH}")
    return value


def record(value: Any, types: Mapping[str, type | tuple[type, ...]], name: str) -> dict[str, Any]:
    """Returns ``value`` if it is an object with exactly these fields, each of its type; a boolean is no number.

    Args:
      value: parsed JSON.
      types: type, or several, of every field.
      name: of the object, for the message.

    Raises:
      ValueError: names the first field that is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"has {name}, which is not an object")
    for field in types.keys() ^ value.keys():
        raise ValueError(f"{'lacks' if field in types else 'has the unknown field'} {name}.{_short(field)}")
    for field, expected in types.items():
        kinds = expected if isinstance(expected, tuple) else (expected,)
        if type(value[field]) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"has {name}.{field} of type {type(value[field]).__name__}, which must be {wanted}")
    return value


class _RefusedError(ValueError):
    """JSON that the parser would take and this library does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RefusedError(f"names {_short(twice)} twice")
    return found


def _refuse(constant: str) -> Any:
    raise _RefusedError(f"holds {constant}")


def _shallow(value: Any, left: int) -> bool:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return left > 0 and all(_shallow(item, left - 1) for item in items)
    return True


def _short(name: str) -> str:
    return ascii(name if len(name) <= 40 else f"{name[:37]}...")[1:-1]
