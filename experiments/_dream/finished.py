"""Finished runs of DREAM: the agents of every seed, what they were made of, and the codes of their tasks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich.console
import rich.table
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import outputs

__all__ = ["Arguments", "Finished", "Row", "codes_of", "named", "read", "show"]

Row = dict[str, Any]
"""What is known of one seed of a run, by the name of its column: words, numbers, or None."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is read, and where it goes."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of finished runs."""
    out: str | None = None
    """File to write the tables to as well, as JSON; an existing one is not touched. By default none is written."""


class Finished(NamedTuple):
    """One seed of a run, of a sweep with one of its numbers.

    Attributes:
      seed: its number, and the swept numbers.
      parts: of its system, from `systems.dream_parts`.
      params: of its agents, by name.
    """

    seed: str
    parts: Any
    params: Any


def named(argv: Sequence[str], *, study: str, description: str | None) -> Arguments:
    """Returns the finished runs that a command line names.

    Raises:
      InputError: it names none, or an ``out`` that exists or cannot be written.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m experiments {study}", description=description)
    if not arguments.runs:
        raise InputError("runs is empty: name at least one.")
    if arguments.out is not None:
        outputs.new_file(arguments.out)
    return arguments


def read(run: str) -> list[Finished]:
    """Returns the seeds of a finished run of ``python -m experiments dream``.

    Raises:
      InputError: a directory without a policy, or one whose agents have no codes of tasks.
    """
    from jaxhybrid.runtime import policies

    return [_finished(run, member) for member in policies.members(policies.of_run(run))]


def _finished(run: str, saved: Any) -> Finished:
    from jaxhybrid.envs import city
    from jaxhybrid.runtime import settings
    from jaxhybrid.systems import dream_parts

    _, config = settings.rebuilt({"study": saved.study, "env": saved.spec["name"], "config": saved.config})
    if saved.study != "dream" or config.method != "dream":
        raise InputError(f"run={run!r} has no codes of tasks: name a run of python -m experiments dream.")
    town = city.make(saved.spec["name"].removeprefix("city/"), split=config.split, hidden_goal=config.hidden_goal)
    swept = (f"{name}={value}" for name, value in saved.facts["numbers"][0].items())
    return Finished(" ".join([str(saved.seeds[0]), *swept]), dream_parts.make_parts(config, town), saved.params)


def codes_of(parts: Any, params: Any, ids: np.ndarray) -> np.ndarray:
    """Returns the codes of tasks, without noise, ``[N, CODE]``."""
    return np.asarray(parts.nets.problem.apply(params["execution"]["problem"], ids))


def show(tables: Mapping[str, Sequence[Row]], arguments: Arguments) -> None:
    """Prints tables, and writes them if that is asked for.

    Args:
      tables: rows by title, all rows of a table with the same columns, of which the first is the run.
      arguments: from `named`.
    """
    for title, rows in tables.items():
        shown = rich.table.Table(title=title)
        first, *others = rows[0]
        shown.add_column(first, overflow="fold")
        for name in others:
            shown.add_column(name.replace(", ", "\n"), justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(*map(_cell, row.values()))
        rich.console.Console(width=140).print(shown)
    if arguments.out is not None:
        content = json.dumps(tables, indent=1, allow_nan=False) + "\n"
        outputs.write(outputs.new_file(arguments.out), content.encode())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
