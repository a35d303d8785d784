"""What a report says about a run, section by section. A part that is missing is named, and the rest still shown."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, console, curves, inputs, page, records, report_figures
from jaxhybrid.runtime.curves import Curve, Records

__all__ = ["of_run"]

_MISSING = "not recorded"
_WIDE, _SMALL = (8.0, 3.4), (3.8, 2.4)
_RETURNS = ("eval/return", "collect/episode_return")
_MODEL = ("model/validation_loss", "model/train_loss")
# Axes and clocks, which other parts of the page show.
_NOT_DRAWN = ("iteration", "env/steps", "train/updates", *_RETURNS, *_MODEL)
_SECTIONS = {
    "actor/": "Actor",
    "critic/": "Critic",
    "model/": "Model",
    "gradient/": "Gradient",
    "guard/": "Guard",
    "": "Other",
}


def of_run(directory: Path, *, episode: bool) -> tuple[str, list[str]]:
    """Returns the title of the page and its parts.

    Args:
      directory: of the run.
      episode: whether to play and film an episode of the final policy.

    Raises:
      InputError: the manifest or the records cannot be read.
    """
    identity = records.identity(directory, field="run")
    sessions = json.loads((directory / "manifest.json").read_bytes())["sessions"]
    rows = records.read(directory)
    title = f"{identity.get('study')} on {identity.get('env')}"
    filmed = _episode(directory) if episode else page.paragraph("No episode was asked for.", soft=True)
    return title, [
        page.heading(title, str(directory)),
        _summary(identity, rows),
        _returns(rows),
        page.section("The final policy", [filmed]),
        *_diagnostics(rows),
        _speed(rows),
        _checkpoints(directory),
        _provenance(identity, [session for session in sessions if isinstance(session, Mapping)]),
    ]


def _summary(identity: Mapping[str, Any], rows: Records) -> str:
    seeds, sweep = identity.get("seeds") or [], identity.get("sweep") or {}
    values = [("seeds", str(len(seeds))), *((f"values of {name}", str(len(each))) for name, each in sweep.items())]
    values.append(("iterations", _number(_last(rows, "iteration"))))
    values.append(("environment steps", _number(_last(rows, "env/steps"))))
    final = _last(rows, "eval/return")
    if final is not None:
        each = np.atleast_1d(final)
        spread = f" ± {each.std(ddof=1):,.1f}" if each.size > 1 and np.all(np.isfinite(each)) else ""
        over = "mean ± std over all runs" if each.size > 1 else "1 seed"
        values.append((f"final evaluation return, {over}", _number(final) + spread))
    values.append(("training time", _duration(_last(rows, "time/elapsed"))))
    refused = _last(rows, "guard/nonfinite")
    values.append(("updates refused, not finite", _number(None if refused is None else np.sum(refused))))
    return page.tiles(values)


def _returns(rows: Records) -> str:
    drawn = _figures(rows, [_RETURNS], _WIDE)
    if not drawn:
        drawn = [page.paragraph("No return is recorded yet.", soft=True)]
    return page.section("Learning curve", drawn)


def _diagnostics(rows: Records) -> list[str]:
    names = [name for name in curves.metric_names(rows) if name not in _NOT_DRAWN and not name.startswith("time/")]
    sections = []
    for prefix, title in _SECTIONS.items():
        chosen = [name for name in names if name.startswith(prefix)]
        names = [name for name in names if name not in chosen]
        wide = _figures(rows, [_MODEL], _WIDE) if prefix == "model/" else []
        small = _figures(rows, [[name] for name in chosen], _SMALL)
        if wide or small:
            sections.append(page.section(title, [*wide, page.figures(small)]))
    return sections


def _figures(rows: Records, wanted: Sequence[Sequence[str]], size: tuple[float, float]) -> list[str]:
    parts = []
    for names in wanted:
        drawn = {name: curve for name in names if (curve := _curve(rows, name)) is not None}
        if not drawn:
            continue
        seeds = max(curve.values.shape[1] for curve in drawn.values())
        over = f" (mean of {seeds} seeds, band: 95 % t interval)" if seeds > 1 and size == _WIDE else ""
        parts.append(page.figure(*report_figures.lines(drawn, size=size), ", ".join(drawn) + over))
    return parts


def _speed(rows: Records) -> str:
    facts = [
        ("compilation", _duration(_last(rows, "time/compile"))),
        ("training", _duration(_last(rows, "time/elapsed"))),
        ("one evaluation", _duration(_last(rows, "time/evaluation"))),
    ]
    axis = curves.axis_of(rows)
    counter = curves.COUNTERS[axis]
    steps, speeds = [], []
    for before, row in itertools.pairwise(rows):
        try:
            taken = np.subtract(row[counter], before[counter], dtype=np.float64)
            # Seeds in one program share a clock, and those in processes have one each.
            seconds = np.broadcast_to(np.asarray(row["time/iteration"], np.float64), np.shape(row["env/steps"]))
        except (KeyError, TypeError, ValueError):
            continue
        if np.all(seconds > 0) and np.all(np.isfinite(taken)) and np.all(taken >= 0):
            steps.append(float(np.max(row[counter])))
            speeds.append([float(np.sum(taken / seconds))])
    drawn = []
    if steps:
        figure = report_figures.lines(
            {f"{axis} per second": Curve(np.asarray(steps), np.asarray(speeds), axis)}, size=_WIDE
        )
        what = f"{axis} per second of each iteration, all seeds together, evaluation not counted"
        drawn = [page.figure(*figure, what)]
    return page.section("Speed", [page.facts(facts), *drawn])


def _checkpoints(directory: Path) -> str:
    parts = inputs.parts(directory)
    header, rows = ["iteration", "size", ""], _kept(directory)
    if parts:
        header, rows = ["part", *header], [[part.name, *row] for part in parts for row in _kept(part)]
    if not rows:
        return page.section("Checkpoints", [page.paragraph("There are none.", soft=True)])
    return page.section("Checkpoints", [page.table(header, rows)])


def _kept(directory: Path) -> list[list[str]]:
    """What a directory has to go back to: iteration, size and remark of each."""
    rows = []
    folder = directory / "checkpoints"
    for iteration in checkpoint.steps(folder):
        size = sum(path.stat().st_size for path in (folder / f"{iteration:08d}").rglob("*") if path.is_file())
        rows.append([f"{iteration:,}", f"{size / 2**20:.2f} MiB", ""])
    rows += [[path.name.split(".")[0], "", "damaged, set aside"] for path in sorted(folder.glob("*.damaged"))]
    rows += [[path.name, "", "from before a failure"] for path in sorted(directory.glob("capsule-*"))]
    return rows


def _provenance(identity: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> str:
    rest = {name: value for name, value in identity.items() if name != "config"}
    parts = [page.facts(_flat(rest)), page.section("Config", [page.facts(_flat(identity.get("config")))], folded=True)]
    for session in sessions:
        parts.append(page.section(f"Session of {session.get('started')}", [page.facts(_flat(session))], folded=True))
    return page.section("What was run", parts)


def _episode(directory: Path) -> str:
    """An animation of the policy, or why there is none; a page must not fail for it."""
    try:
        return _filmed(directory)
    except InputError as reason:
        return page.paragraph(f"No episode: {reason}", soft=True)


def _filmed(directory: Path) -> str:
    # The graphics library is chosen before an environment loads MuJoCo.
    from jaxhybrid.runtime import films, play, policies, programs

    policy = policies.of_seed(policies.of_run(directory))
    act = policies.act_fn(policy)
    backend = films.backend_for(policy.spec["name"])
    env = play.compatible_env("", policy, 1)
    console.say(f"playing {env.spec.name} ...")
    episode = films.record(
        env, lambda o, k: act(o, k, deterministic=True), programs.evaluation_key(policy.seeds[0]), num_episodes=1
    )
    said = f"One episode of seed {policy.seeds[0]}: return {_number(episode.total)}, {episode.length:,} steps."
    film = films.film(env, episode, backend)
    if not film.content:
        return page.paragraph(said) + page.paragraph(f"No picture: {film.reason}", soft=True)
    return page.animation(film.content, f"{said} Shown are {film.shows}.")


def _curve(rows: Records, name: str) -> Any:
    """The curve of a metric, or None where it has no finite number."""
    try:
        return curves.of_records(rows, name, "run")
    except InputError:
        return None


def _last(rows: Records, name: str) -> Any:
    """The newest value of a metric that is a number for every seed, finite or not, or None."""
    for row in reversed(rows):
        try:
            return np.asarray(row[name], np.float64)
        except (KeyError, TypeError, ValueError):
            continue
    return None


def _flat(record: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(record, Mapping):
        return [pair for name, value in record.items() for pair in _flat(value, f"{prefix}.{name}" if prefix else name)]
    text = ", ".join(map(str, record)) if isinstance(record, list) else str(record)
    return [(prefix, "none" if record is None else text)]


def _number(value: Any) -> str:
    if value is None:
        return _MISSING
    if not np.all(np.isfinite(value)):
        return "not finite"
    mean = float(np.mean(value))
    return f"{mean:,.0f}" if mean == round(mean) else f"{mean:,.1f}" if abs(mean) >= 10 else f"{mean:.3g}"


def _duration(seconds: Any) -> str:
    if seconds is None:
        return _MISSING
    whole = float(np.mean(seconds))
    if whole < 120:
        return f"{whole:.1f} s"
    return f"{whole / 60:.1f} min" if whole < 7200 else f"{whole / 3600:.1f} h"
