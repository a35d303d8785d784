"""Finished runs of DREAM: the agents of every seed, what they were made of, and the codes of their tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import rich.table
import tyro

from jaxhybrid.errors import InputError

__all__ = ["Finished", "codes_of", "named", "read", "table"]


@dataclasses.dataclass(frozen=True)
class _Arguments:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories of finished runs."""


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


def named(argv: Sequence[str], *, study: str, description: str | None) -> tuple[str, ...]:
    """Returns the directories of finished runs that a command line names.

    Raises:
      InputError: it names none.
    """
    arguments = tyro.cli(_Arguments, args=list(argv), prog=f"python -m experiments {study}", description=description)
    if not arguments.runs:
        raise InputError("runs is empty: name at least one.")
    return arguments.runs


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


def table(title: str, *names: str) -> rich.table.Table:
    """Returns a table of numbers of runs and seeds, without rows."""
    made = rich.table.Table(title=title)
    made.add_column("run", overflow="fold")
    for name in ("seed", *names):
        made.add_column(name, justify="right")
    return made
