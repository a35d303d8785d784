"""Records of numbers read back from JSON: every field of its declared type, no field unknown."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxhybrid.errors import InputError, unknown

__all__ = ["from_json"]

RecordT = TypeVar("RecordT")


def from_json(cls: type[RecordT], value: Any, name: str) -> RecordT:
    """Builds a frozen dataclass from parsed JSON.

    Args:
      cls: a dataclass of numbers, texts, booleans, tuples, literals, optional ones of these, and other such records.
      value: parsed JSON: an object with some of its fields; the others have their defaults.
      name: what the value is called in messages.

    Raises:
      InputError: a field that ``cls`` does not have, one that is missing and has no default, or one of another type.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{name} must be an object with the fields of {cls.__name__}, not {_short(value)}.")
    declared = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # it is a dataclass
    for field in value:
        if field not in fields:
            raise unknown(f"{name} field", field, fields)
    for field in fields.values():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in value:
            raise InputError(f"{name}.{field.name} is missing.")
    return cls(**{field: _typed(declared[field], item, f"{name}.{field}") for field, item in value.items()})


def _typed(declared: Any, value: Any, name: str) -> Any:
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (each for each in arguments if each is not type(None))
        return None if value is None else _typed(inner, value, name)
    if origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
        raise unknown(name, value, map(str, arguments))
    if origin is tuple and isinstance(value, list):
        if arguments[1:] == (...,):
            return tuple(_typed(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            return tuple(_typed(a, item, f"{name}[{i}]") for i, (a, item) in enumerate(zip(arguments, value)))
    if dataclasses.is_dataclass(declared) and isinstance(declared, type):
        return from_json(declared, value, name)
    # JSON has no infinity, so `records.jsonable` wrote its name.
    if declared is float and value in ("inf", "-inf"):
        return float(value)
    # A boolean is no number, and a whole number is a floating-point one too.
    if type(value) is declared or (declared is float and type(value) is int):
        return declared(value)
    raise InputError(f"{name} must be {getattr(declared, '__name__', declared)}, not {_short(value)}.")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
