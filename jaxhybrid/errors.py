"""The one error that bad input raises, and the sentence that names the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["InputError", "unknown"]


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
