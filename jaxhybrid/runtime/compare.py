"""Compares runs: a table of means, interquartile means and probabilities of improvement, and one figure.

``python -m jaxhybrid compare maac=runs/a,runs/b sac=runs/c --out curves.png``: each argument is the directory of a run,
or a label and the directories of runs that differ in the seed. Several seeds, of one run or of several, are one group.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, inputs
from jaxhybrid.runtime.outputs import new_figure

__all__ = ["Group", "groups", "main"]

# Below it the bootstrap has so few different resamples that its intervals are known to be too narrow.
_FEW_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is compared."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Directory of a run, or label=directory[,directory ...]; each is a group, and the first is the reference."""
    metric: str = "eval/return"
    """Which metric; more is better."""
    threshold: float | None = None
    """Also say after how many environment steps, or iterations of runs that collect nothing, the metric reached it."""
    out: str | None = None
    """File to draw the curves in, such as curves.png; an existing one is not touched. By default none is drawn."""


class Group(NamedTuple):
    """Runs that differ in the seed.

    Attributes:
      label: how the table calls them.
      directories: of the runs.
      identities: what each run says of itself, see `records.identity`.
      columns: which members of each run belong to the group: all, or those of one combination of a sweep.
    """

    label: str
    directories: list[Path]
    identities: list[Mapping[str, Any]]
    columns: slice = slice(None)


def main(argv: Sequence[str]) -> int:
    """Prints the table and draws the figure; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: a run that is none, runs on different environments or over different axes, an unknown metric, or a
        file that exists; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid compare", description=__doc__)
    if arguments.threshold is not None and not math.isfinite(arguments.threshold):
        raise InputError(f"threshold={arguments.threshold} must be finite.")
    out = None if arguments.out is None else new_figure(arguments.out)
    compared = groups(arguments.runs)
    env = _env(compared)

    from jaxhybrid.runtime import curves, plots

    whole = {
        group.label: curves.of_runs(group.directories, arguments.metric, group.label, group.columns)
        for group in compared
    }
    axis = curves.common_axis(whole)
    end = min(curve.steps[-1] for curve in whole.values())
    common = {label: curves.until(curve, end) for label, curve in whole.items()}
    for label, curve in common.items():
        if not curve.steps.size:
            raise InputError(f"{label!r} has no {arguments.metric!r} within the {end:,.0f} {axis} that all have.")
    title = f"{env}, {arguments.metric} at {end:,.0f} {axis}"
    sys.stdout.write(f"{title}\n\n{_table(common, arguments.threshold)}\n\n")
    for note in [*_differences(compared), *_notes(whole, common, end)]:
        sys.stdout.write(f"{note}\n")
    if out is not None:
        plots.learning_curves(
            common,
            out,
            metric=arguments.metric,
            centre="interquartile mean",
            title=env,
            reference=_random(compared) if arguments.metric == "eval/return" else None,
        )
        console.say(f"drawn in {arguments.out}")
    return 0


def groups(items: Sequence[str]) -> list[Group]:
    """Returns the groups that the arguments name.

    Args:
      items: of the form ``directory`` or ``label=directory[,directory ...]``.

    Raises:
      InputError: an item of another form, a label twice, a directory without a run, or a seed twice in a group.
    """
    from jaxhybrid.runtime import records

    if not items:
        raise InputError("runs is empty: name the directory of at least one run.")
    found: dict[str, Group] = {}
    for item in items:
        label, equals, listed = item.partition("=")
        if not equals or Path(item).expanduser().is_dir():
            path = Path(item).expanduser()
            label, directories = path.name or path.absolute().name, [path]
        else:
            directories = [Path(part).expanduser() for part in listed.split(",") if part]
        if not (label and directories):
            raise InputError(f"runs={item!r} is not of the form directory or label=directory[,directory ...].")
        for directory in directories:
            inputs.check_run(directory, field="runs")
        group = Group(label, directories, [records.identity(each, field="runs") for each in directories])
        _check_seeds(group)
        for part in _swept(group):
            if part.label in found:
                raise InputError(f"runs={item!r} has the label {part.label!r} of another group: write label=directory.")
            found[part.label] = part
    return list(found.values())


def _swept(group: Group) -> list[Group]:
    """Splits a sweep into one group per combination of its numbers."""
    from jaxhybrid.runtime.members import named

    sweeps = [identity.get("sweep") or {} for identity in group.identities]
    if not any(sweeps):
        return [group]
    if len(sweeps) > 1:
        raise InputError(f"{group.label!r} joins a sweep with other runs: name it alone, or name its parts.")
    size = len(group.identities[0]["seeds"])
    labels = [" ".join(named(dict(zip(sweeps[0], values)))) for values in itertools.product(*sweeps[0].values())]
    return [
        group._replace(label=f"{group.label} {label}", columns=slice(i * size, (i + 1) * size))
        for i, label in enumerate(labels)
    ]


def _check_seeds(group: Group) -> None:
    """A seed that is counted twice would make the spread between seeds smaller than it is."""
    for directory, identity in zip(group.directories, group.identities):
        seeds = identity.get("seeds")
        if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
            raise InputError(
                f"runs={str(directory)!r} is no training run: its manifest lists no 'seeds'. Name another directory."
            )
    for one, other in itertools.combinations(group.identities, 2):
        shared = sorted(set(one["seeds"]) & set(other["seeds"]))
        if shared and not _changed(one, other):
            raise InputError(f"{group.label!r} has seed {shared[0]} of the same run twice: leave one out.")


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    from jaxhybrid.runtime import records

    apart = ("seeds", "parallel", "chunk", "eval_every", "eval_episodes")
    before, after = ({name: value for name, value in of.items() if name not in apart} for of in (one, other))
    return records.differences(before, after)


def _env(compared: Sequence[Group]) -> str:
    envs = {str(identity.get("env")): group.label for group in compared for identity in group.identities}
    if len(envs) > 1:
        listed = ", ".join(f"{env!r} ({label})" for env, label in envs.items())
        raise InputError(f"runs are on different environments, {listed}: compare those of one environment at a time.")
    return next(iter(envs))


def _table(common: Mapping[str, Any], threshold: float | None) -> str:
    from jaxhybrid.runtime import statistics

    header = ["group", "seeds", "mean", "IQM", "95 % interval", "P(improvement)"]
    if threshold is not None:
        header.append(f"{next(iter(common.values())).axis} to {threshold:,.10g}")
    reference = next(iter(common.values())).values[-1]
    rows = [header]
    for i, (label, curve) in enumerate(common.items()):
        scores = curve.values[-1]
        interval = statistics.interquartile_interval(scores)
        row = [
            label,
            str(scores.size),
            _number(scores.mean()),
            _number(statistics.interquartile_mean(scores)),
            "none: 1 seed" if interval is None else f"[{', '.join(map(_number, interval))}]",
            "reference" if i == 0 else f"{statistics.probability_of_improvement(scores, reference):.2f}",
        ]
        if threshold is not None:
            steps = statistics.first_steps_at(curve, threshold)
            middle = np.quantile(steps, 0.5, method="higher")
            reached = f"{middle:,.0f}" if np.isfinite(middle) else "not reached"
            row.append(f"{reached} ({np.isfinite(steps).sum()} of {steps.size} seeds)")
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)


def _notes(whole: Mapping[str, Any], common: Mapping[str, Any], end: float) -> list[str]:
    """What a reader must know before the numbers are repeated."""
    axis = next(iter(whole.values())).axis
    notes = [
        "IQM: interquartile mean; its interval: percentile bootstrap over seeds. P(improvement): how probable it is "
        f"that a seed is above one of {next(iter(common))!r}, ties half."
    ]
    counts = [curve.values.shape[1] for curve in common.values()]
    if min(counts) == 1:
        notes.append("One seed has no interval: run more seeds before concluding anything.")
    if any(1 < count < _FEW_SEEDS for count in counts):
        notes.append(f"With fewer than {_FEW_SEEDS} seeds a bootstrap interval is too narrow.")
    longer = [f"{label!r} ({curve.steps[-1]:,.0f})" for label, curve in whole.items() if curve.steps[-1] > end]
    if longer:
        notes.append(f"Compared up to {end:,.0f} {axis}, which all groups have; longer are {', '.join(longer)}.")
    for label, curve in common.items():
        if curve.steps[-1] < end:
            notes.append(f"{label!r} is read at {curve.steps[-1]:,.0f} {axis}, its last record before that.")
    return notes


def _differences(compared: Sequence[Group]) -> list[str]:
    notes = []
    for group in compared:
        changed = {change for identity in group.identities[1:] for change in _changed(group.identities[0], identity)}
        if changed:
            notes.append(f"The runs of {group.label!r} differ in more than the seed: {'; '.join(sorted(changed))}.")
    return notes


def _random(compared: Sequence[Group]) -> tuple[str, float] | None:
    """Mean return of the episodes that ended before learning began, which were acted at random."""
    from jaxhybrid.runtime import records

    total = weight = 0.0
    for directory in (directory for group in compared for directory in group.directories):
        for row in records.read(directory):
            if "collect/episodes" in row and np.all(np.asarray(row.get("train/updates", 1)) == 0):
                returns = np.atleast_1d(np.asarray(row["collect/episode_return"], np.float64))
                ended = np.where(np.isfinite(returns), np.atleast_1d(row["collect/episodes"]), 0)
                total += float(np.sum(np.where(ended > 0, returns, 0.0) * ended))
                weight += float(np.sum(ended))
    return ("random actions", total / weight) if weight else None


def _number(value: Any) -> str:
    return f"{float(value):,.1f}" if abs(float(value)) >= 10 else f"{float(value):.3g}"


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
