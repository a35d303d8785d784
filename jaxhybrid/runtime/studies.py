"""Studies and benchmarks that are no training run: numbers by name, arguments that change them, a directory of results.

A study declares its numbers as a frozen dataclass and a few named ones; every field is an option of the command line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, console, records

__all__ = ["Study", "check_directory", "check_least", "check_seeds", "parse"]

_SEEDS = 2**31

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Study(Generic[ConfigT]):
    """A study as it was asked for.

    Attributes:
      name: of the study.
      config: its numbers.
      preset: what they started from.
      seed: the first one.
      out: directory of the results.
    """

    name: str
    config: ConfigT
    preset: str
    seed: int
    out: Path

    def open(self, **facts: Any) -> None:
        """Creates the directory and its manifest.

        Args:
          **facts: whatever else belongs to the identity of the study, such as the environment.

        Raises:
          InputError: it cannot be used; nothing was written then.
        """
        numbers = dataclasses.asdict(self.config)  # type: ignore[call-overload]  # it is a dataclass
        identity = {"study": self.name, "config": numbers, "seed": self.seed, **facts}
        records.open_run(self.out, identity, {"preset": self.preset, "out": str(self.out)}, resume=False)

    def write(self, results: Any) -> None:
        """Writes ``results.json`` and says where; what is not finite becomes null."""
        text = json.dumps(records.jsonable(results), indent=1, allow_nan=False)
        (self.out / "results.json").write_text(text + "\n", encoding="utf-8")
        console.say(f"results in {self.out}")


@dataclasses.dataclass(frozen=True)
class _Arguments(Generic[ConfigT]):
    preset: str
    """Named numbers, which the other options change."""
    seed: int
    """Seed of all draws, or of the first run."""
    out: str | None
    """Directory of the results; by default one in runs that is named after the study and the time."""
    config: Annotated[ConfigT, tyro.conf.arg(name="")]


def parse(
    argv: Sequence[str],
    *,
    module: str,
    description: str | None,
    presets: Mapping[str, ConfigT],
    where: str,
    least: Mapping[str, float],
) -> Study[ConfigT]:
    """Parses the arguments of a study: ``--preset``, ``--seed``, ``--out`` and every field of its numbers.

    Args:
      argv: without the name of the study.
      module: what follows ``python -m`` to start it, such as ``experiments gamps_theory``.
      description: docstring of the study.
      presets: frozen dataclasses of numbers by name; the first one is the default.
      where: on what it runs, for the name of the directory.
      least: smallest value of fields; of a tuple, of each of its values.

    Raises:
      InputError: an unknown preset, or a number or a directory that makes no sense.
    """
    prog, name = f"python -m {module}", module.rpartition(" ")[2]
    chosen = cli.named_preset(argv, prog, default=next(iter(presets)))
    if chosen not in presets:
        raise unknown("preset", chosen, presets)
    config: Any = presets[chosen]
    form: Any = _Arguments[type(config)]  # type: ignore[misc]
    text = f"{description or ''}\n\nPresets: {', '.join(presets)}."
    given = tyro.cli(form, args=list(argv), default=_Arguments(chosen, 0, None, config), prog=prog, description=text)
    check_least(given.config, least)
    check_seeds(given.seed, getattr(given.config, "seeds", 1))
    check_directory(given.out)
    out = Path(given.out or records.default_directory(name, where, chosen, given.seed)).expanduser()
    return Study(name, given.config, chosen, given.seed, out)


def check_least(config: Any, least: Mapping[str, float]) -> None:
    """Refuses a number below the least that makes sense, and a tuple that is empty or holds one.

    Raises:
      InputError: names the field.
    """
    for field, bound in least.items():
        value = getattr(config, field)
        if value == () or min(value if isinstance(value, tuple) else (value,)) < bound:
            raise InputError(f"{field}={value} must be at least {bound}.")


def check_seeds(seed: int, count: int) -> None:
    """Refuses seeds that a key cannot be made of.

    Raises:
      InputError: names the field.
    """
    if seed < 0 or seed + count > _SEEDS:
        raise InputError(f"seed={seed} with seeds={count} must stay within 0 and {_SEEDS - 1}.")


def check_directory(out: str | None) -> None:
    """Refuses an empty name of a directory.

    Raises:
      InputError: says so.
    """
    if out is not None and not out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
