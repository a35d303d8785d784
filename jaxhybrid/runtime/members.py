"""The members of a run: one for every seed and every combination of swept numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime.options import RunOptions, seeds
from jaxhybrid.types import PyTree

__all__ = ["Member", "configured", "members", "named", "stacked", "swept"]

ConfigT = TypeVar("ConfigT")


class Member(NamedTuple):
    """One training run among those that run side by side.

    Attributes:
      seed: its seed.
      numbers: the swept numbers of its config, by field.
    """

    seed: int
    numbers: dict[str, float]

    @property
    def label(self) -> str:
        """Name of the member among its siblings, such as ``gamma=0.9-seed-3``."""
        return "-".join([*named(self.numbers), f"seed-{self.seed}"])


def named(numbers: Mapping[str, float]) -> list[str]:
    """Returns swept numbers as texts such as ``gamma=0.9``, in as few digits as tell the number from every other."""
    return [
        f"{name}={value:g}" if float(f"{value:g}") == value else f"{name}={value!r}" for name, value in numbers.items()
    ]


def swept(options: RunOptions, config: Any) -> dict[str, list[float]]:
    """Returns the values of every swept field.

    Raises:
      InputError: text that is no ``field=value,value``, a field that the config lacks or that is no float, a value
        that is not finite, or a field or value given twice.
    """
    floats = {f.name for f in dataclasses.fields(config) if type(getattr(config, f.name)) is float}
    found: dict[str, list[float]] = {}
    for text in options.sweep:
        name, equals, listed = text.partition("=")
        name = name.strip().removeprefix("config.").replace("-", "_")
        if not equals:
            raise InputError(f"sweep={text!r} must read field=value,value, such as gamma=0.9,0.99.")
        if name not in floats:
            raise unknown("sweep", name, floats)
        try:
            values = [float(value) for value in listed.split(",")]
        except ValueError:
            raise InputError(f"sweep={text!r}: {listed!r} is not a list of numbers such as 0.9,0.99.") from None
        if name in found or len(set(values)) < len(values) or not all(map(math.isfinite, values)):
            raise InputError(f"sweep={text!r}: a field or a value is there twice, or a value is not finite.")
        found[name] = values
    return found


def members(options: RunOptions, config: Any) -> list[Member]:
    """Returns the members of a run, the seed changing fastest.

    Raises:
      InputError: as `swept` and `jaxhybrid.runtime.options.seeds`.
    """
    fields = swept(options, config)
    combinations = [dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values())]
    return [Member(seed, numbers) for numbers in combinations for seed in seeds(options)]


def configured(config: ConfigT, numbers: Mapping[str, Any]) -> ConfigT:
    """Returns the config with some numbers replaced; they may be traced."""
    return dataclasses.replace(config, **numbers) if numbers else config  # type: ignore[type-var]


def stacked(group: Sequence[Member]) -> tuple[np.ndarray, PyTree]:
    """Returns the seeds ``[S]`` and the swept numbers, each ``[S]``, of members that run in one program."""
    numbers = {name: np.array([member.numbers[name] for member in group], np.float32) for name in group[0].numbers}
    return np.array([member.seed for member in group], np.uint32), numbers
