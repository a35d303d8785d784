"""How many tasks of training it takes for the best exploration of them to be right about new ones; no learning.

In the city of distracting buses three rides on helpful ones tell where all of these lead. Of a few tasks useless buses
tell it as well, and some of those are nearer: the shortest plan for the tasks of training rides them, and is wrong
about others. It is found by enumeration (`envs.city_oracle.shortest_exploration`), for the split of the release, for
two of as many tasks as the paper names, and for random sets of tasks. Writes manifest.json, results.json and tasks.png.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table

from jaxhybrid.envs import city, city_oracle
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, studies
from jaxhybrid.runtime.statistics import mean_interval

__all__ = ["PRESETS", "Config", "main", "outcome"]

_SPLITS: tuple[tuple[city.Split, str], ...] = (
    ("every11", "released split"),
    ("paper", "every order once"),
    ("helpful", "one order of useless buses"),
)
_PARTS = ("steps", "right", "wrong", "lost")


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the study."""

    counts: tuple[int, ...] = (24, 53, 100, 150, 200, 300)
    """Numbers of tasks of training."""
    subsets: int = 8
    """Random sets of tasks for each."""


PRESETS = {"all": Config(), "smoke": Config(counts=(8, 24), subsets=2)}


def main(argv: Sequence[str]) -> int:
    """Runs the study.

    Args:
      argv: without the name of the study.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="experiments dream_tasks",
        description=__doc__,
        presets=PRESETS,
        where="distraction",
        least={"counts": 1, "subsets": 2},
    )
    config, town = study.config, city.make("distraction", split="none")
    if max(config.counts) >= town.num_ids:
        raise InputError(f"counts={config.counts} must be below {town.num_ids}, so that some tasks are new.")
    study.open()
    named = {label: outcome(town, city.make("distraction", split=split).train_ids) for split, label in _SPLITS}
    drawn = _random_sets(town, config, study.seed)
    rich.console.Console(width=120).print(_table(named, drawn))
    _draw(named, drawn, study.out / "tasks.png")
    study.write({"splits": named, "random": drawn})
    return 0


def outcome(town: city.City, ids: np.ndarray) -> dict[str, Any]:
    """What the shortest exploration of some tasks comes to.

    Args:
      town: with all tasks.
      ids: the tasks of training.

    Returns:
      ``tasks``, how many; ``steps`` that the plan takes in the mean over them; and the shares of all other tasks where
      it is ``right`` about helpful buses, ``wrong``, or ``lost``, seeing what it would see in none of them.
    """
    steps, concluded = city_oracle.shortest_exploration(town, ids=ids)
    new = np.setdiff1d(np.arange(town.num_ids), ids)
    right, lost = float(np.mean(concluded[new] == new % city.ORDERS)), float(np.mean(concluded[new] < 0))
    return {"tasks": len(ids), "steps": steps, "right": right, "wrong": 1.0 - right - lost, "lost": lost}


def _random_sets(town: city.City, config: Config, seed: int) -> dict[str, list[Any]]:
    """Outcomes of random sets: numbers of tasks, and for each of them a list of every value."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {"tasks": list(config.counts), **{part: [] for part in _PARTS}}
    disable = not console.CONSOLE.is_terminal
    with rich.progress.Progress(console=console.CONSOLE, transient=True, disable=disable) as progress:
        bar = progress.add_task("random sets of tasks", total=len(config.counts) * config.subsets)
        for count in config.counts:
            each = []
            for _ in range(config.subsets):
                each.append(outcome(town, np.sort(rng.choice(town.num_ids, count, replace=False))))
                progress.advance(bar)
            for part in _PARTS:
                found[part].append([one[part] for one in each])
    return found


def _table(named: dict[str, dict[str, Any]], drawn: dict[str, list[Any]]) -> rich.table.Table:
    table = rich.table.Table(title="Shortest exploration of the tasks of training, and what it concludes in new ones")
    for name in ("tasks of training", "steps", "right", "wrong", "lost"):
        table.add_column(name, justify="left" if name == "tasks of training" else "right", no_wrap=True)
    for label, one in named.items():
        table.add_row(f"{one['tasks']}, {label}", *(f"{one[part]:.2f}" for part in _PARTS))
    for i, count in enumerate(drawn["tasks"]):
        intervals = [mean_interval(np.array(drawn[part][i])[None]) for part in _PARTS]
        shown = ("{:.2f} [{:.2f}, {:.2f}]".format(*(float(x[0]) for x in interval)) for interval in intervals)
        table.add_row(f"{count}, random", *shown)
    return table


def _draw(named: dict[str, dict[str, Any]], drawn: dict[str, list[Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    counts, subsets = np.array(drawn["tasks"]), len(drawn["right"][0])
    for axis, part, title in ((axes[0], "right", "share of new tasks it is right about"), (axes[1], "steps", "steps")):
        order = np.argsort(counts)
        values = np.array(drawn[part])[order]
        middle, low, high = mean_interval(values)
        axis.plot(counts[order], middle, "o-", color="#0072B2", label=f"{subsets} random sets of tasks")
        axis.fill_between(counts[order], low, high, color="#0072B2", alpha=0.2, linewidth=0)
        for (label, one), marker in zip(named.items(), ("s", "^", "D")):
            axis.plot(one["tasks"], one[part], marker, color="#D55E00", label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("tasks of training, of 576")
        axis.grid(True, alpha=0.3)
    axes[0].set_ylim(0.0, 1.05)
    axes[1].axhline(10.0, color="0.5", linestyle="--", linewidth=1, label="three helpful buses")
    handles, labels = axes[1].get_legend_handles_labels()
    title = "shortest exploration of the tasks of training; bands are 95 % t intervals of the mean over sets"
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, title=title, title_fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
