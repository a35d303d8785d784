"""The one error that bad input raises, and the sentence that names the nearest valid choice."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable

__all__ = ["InputError", "check_choices", "unknown"]


class InputError(ValueError):
    """Input was refused. The message is one line that says what, why and the fix, and names the field."""


def unknown(field: str, value: object, valid: Iterable[str]) -> InputError:
    """Returns the error for a name that is none of ``valid``, with the nearest valid names first.

    Args:
      field: what was named, for instance ``"env"``.
      value: the name that was given.
      valid: the names that would have been accepted.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"choose one of {', '.join(names)}."
    return InputError(f"{field}={value!r} is unknown: {fix}")


def check_choices(record: object) -> None:
    """Refuses a record of numbers and choices if a field declared as a ``Literal`` holds none of its values.

    Args:
      record: a dataclass. A field that is declared as anything else, an optional choice too, is not looked at.

    Raises:
      InputError: names the field, and the nearest of its choices.
    """
    for name, declared in typing.get_type_hints(type(record)).items():
        choices = typing.get_args(declared)
        if typing.get_origin(declared) is typing.Literal and getattr(record, name) not in choices:
            raise unknown(name, getattr(record, name), choices)
