"""Variance of MSCV's gradient on policies that runs left: TRPO, k = 1 to 5, best coefficients, Q-Prop, SVG.

Each run is one stage of training. Independent whole episodes of its frozen policy; every estimator sees the same ones.
Total variance of the gradient of one episode and of batches of several, that of each parameter tensor, and
signal-to-noise ratios. Coefficients are found on the other half of the episodes; intervals are bootstrapped over
episodes. Writes manifest.json, results.json and variance.png. The linear-quadratic rows are in ``benchmarks
gradient_variance``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress
import rich.table
import scipy.stats
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    runs: tuple[str, ...]
    """Directories of finished runs of the study mscv with a model, in one environment: the stages."""
    seed: int = 0
    """Training seed of the runs, which also draws the episodes."""
    episodes: int = 200
    """Independent episodes of each stage."""
    batch_episodes: tuple[int, ...] = (1, 5, 25)
    """Episodes in a batch; the variance of batches is measured where the episodes make two or more."""
    num_envs: int = 20
    """Episodes that are collected side by side."""
    steps: int | None = None
    """Steps of an episode that are recorded; by default all of it."""
    out: str | None = None
    """Directory of the results; by default runs/mscv_variance-<env>-<iteration>-<seed>-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark.

    Args:
      argv: without the name of the benchmark.

    Returns:
      The exit code.

    Raises:
      InputError: bad arguments, no such run, or a directory that cannot be used; nothing was written then.
    """
    name = "mscv_variance"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m benchmarks {name}", description=__doc__)
    if arguments.num_envs < 1 or arguments.episodes < 4 or arguments.episodes % arguments.num_envs:
        raise InputError(
            f"episodes={arguments.episodes} must be 4 or more and a multiple of num_envs={arguments.num_envs}."
        )
    if min(arguments.batch_episodes, default=1) < 1:
        raise InputError(f"batch_episodes={arguments.batch_episodes} must be at least 1.")
    if arguments.steps is not None and arguments.steps < 1:
        raise InputError(f"steps={arguments.steps} must be at least 1; leave it out for whole episodes.")
    if not arguments.runs:
        raise InputError("runs is empty: name the directory of a run of the study mscv.")
    # Imported here, so that a refused argument needs no JAX.
    from experiments._mscv.states import load

    runs = [load(Path(each).expanduser(), arguments.seed, arguments.num_envs) for each in arguments.runs]
    for directory, run in zip(arguments.runs, runs, strict=True):
        if run.state.learner.model is None:
            raise InputError(f"runs={directory!r} has no model: its horizon is 0.")
        if run.env.spec.name != runs[0].env.spec.name:
            raise InputError(f"runs={arguments.runs} are in several environments: name runs in one.")
    spec = runs[0].env.spec
    length = arguments.steps or spec.max_episode_steps
    iterations = [run.iteration for run in runs]
    label = "+".join(map(str, iterations))
    out = Path(arguments.out or records.default_directory(name, spec.name, label, arguments.seed)).expanduser()
    facts = dataclasses.asdict(arguments) | {"env": spec.name, "iterations": iterations, "steps": length}
    records.open_run(out, {"study": name} | facts, dataclasses.asdict(arguments), resume=False)
    stages = []
    for run in runs:
        rows, coefficients = _stage(run, arguments, length)
        stages.append({"iteration": run.iteration, "rows": rows, "coefficients": coefficients})
        title = f"{spec.name}, policy of iteration {run.iteration}: {arguments.episodes} episodes of {length} steps"
        rich.console.Console(width=120).print(_table(rows, title))
    text = json.dumps(records.jsonable(facts | {"stages": stages}), indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    _draw(stages, f"{spec.name}: {arguments.episodes} episodes of {length} steps each", out / "variance.png")
    console.say(f"results in {out}")
    return 0


def _stage(run: Any, arguments: Arguments, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics of every row for one frozen policy, and the best coefficients."""
    import jax

    from benchmarks._mscv.estimators import HORIZONS, episode_gradients, with_coefficient
    from experiments._mscv.states import fresh

    gradients: dict[str, Any] = {}
    gradients_of = episode_gradients(run)
    keys = jax.random.split(jax.random.key(arguments.seed), arguments.episodes // arguments.num_envs)
    for key in rich.progress.track(keys, f"iteration {run.iteration}", console=console.CONSOLE, transient=True):
        steps = fresh(run, key, num_steps=length, num_envs=arguments.num_envs)
        for row, found in gradients_of(steps, key).items():
            gradients.setdefault(row, []).append(found)
    joined = {row: jax.tree.map(lambda *x: np.concatenate(x), *found) for row, found in gradients.items()}
    coefficients = {}
    for k in HORIZONS:
        row = f"MSCV, k = {k}"
        for label, per_tensor in (("best eta", False), ("best eta per tensor", True)):
            joined[f"{row}, {label}"], coefficients[f"{row}, {label}"] = with_coefficient(
                joined["TRPO"], joined[row], per_tensor=per_tensor
            )
    order = sorted(joined, key=lambda row: row != "TRPO")
    return {row: _statistics(joined[row], joined["TRPO"], arguments.batch_episodes) for row in order}, coefficients


def _statistics(tree: Any, base: Any, batches: Sequence[int]) -> dict[str, Any]:
    """Total variance and signal-to-noise of one row, whole and by tensor, and its mean's distance from TRPO's.

    The signal is ``|mean|^2`` less the variance that the mean itself has, ``V / E``: what is left estimates the square
    of the true gradient without bias, and may be negative where the gradient drowns.
    """
    import jax

    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    blocks = {}
    for name, leaf in named.items():
        flat = np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        variance = _variance(flat)
        signal = float(np.sum(flat.mean(axis=0) ** 2)) - variance / len(flat)
        blocks[name] = {"variance": variance, "signal": signal, "snr": signal / variance if variance else 0.0}
    variance, signal = (sum(block[what] for block in blocks.values()) for what in ("variance", "signal"))
    own, other = _flat(tree), _flat(base)
    gap = own - other
    error = gap.std(axis=0, ddof=1) / np.sqrt(len(gap))
    z = np.abs(gap.mean(axis=0)) / np.where(error > 0, error, np.inf)
    means = {n: own[: len(own) // n * n].reshape(-1, n, own.shape[1]).mean(axis=1) for n in batches}
    return {
        "variance": variance,
        "ratio": variance / _variance(other),
        "ratio_interval": _ratio_interval(own, other),
        "signal": signal,
        "snr": signal / variance,
        "blocks": blocks,
        "batches": {n: {"count": len(x), "variance": _variance(x)} for n, x in means.items() if len(x) > 1},
        "largest_z": float(z.max()),
    }


def _flat(tree: Any) -> np.ndarray:
    import jax

    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)


def _variance(flat: np.ndarray) -> float:
    """Total variance, the trace of the covariance of rows ``[N, P]``."""
    return float(flat.var(axis=0, ddof=1).sum())


def _ratio_interval(own: np.ndarray, other: np.ndarray) -> list[float] | None:
    """95 % interval of the ratio of total variances, by resampling episodes; None where both are the same numbers."""
    squares = [np.square(x - x.mean(axis=0)).sum(axis=1) for x in (own, other)]
    if np.array_equal(*squares):
        return None

    def ratio(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis=axis) / b.sum(axis=axis)

    found = scipy.stats.bootstrap(squares, ratio, paired=True, method="percentile", rng=np.random.default_rng(0))
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def _table(rows: Mapping[str, Mapping[str, Any]], title: str) -> rich.table.Table:
    shown = rich.table.Table(title=title)
    sizes = list(rows["TRPO"]["batches"])
    heads = [f"variance, batch of {n} (of {rows['TRPO']['batches'][n]['count']})" for n in sizes]
    names = ("estimator", *heads, "of TRPO's", "95 %", "SNR, one episode", "largest z of the mean against TRPO")
    for name in names:
        shown.add_column(name, justify="left" if name == "estimator" else "right")
    for name, row in rows.items():
        interval = "" if row["ratio_interval"] is None else "{:.3f} - {:.3f}".format(*row["ratio_interval"])
        variances = [f"{row['batches'][n]['variance']:.3g}" for n in sizes]
        shown.add_row(name, *variances, f"{row['ratio']:.3f}", interval, f"{row['snr']:.3g}", f"{row['largest_z']:.1f}")
    return shown


def _draw(stages: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(stages), figsize=(4.5 + 3.5 * len(stages), 5.5), layout="constrained", sharey=True, squeeze=False
    )
    names = list(stages[0]["rows"])
    positions = np.arange(len(names))[::-1]
    colours = ["#009E73" if "best" in name else "#0072B2" for name in names]
    for axes, stage in zip(panels[0], stages, strict=True):
        rows = [stage["rows"][name] for name in names]
        ratios = np.array([row["ratio"] for row in rows])
        ends = np.array([row["ratio_interval"] or [row["ratio"]] * 2 for row in rows])
        axes.barh(positions, ratios, color=colours)
        axes.errorbar(ratios, positions, xerr=np.abs(ends - ratios[:, None]).T, fmt="none", ecolor="0.2", capsize=2)
        for ratio, end, position in zip(ratios, ends[:, 1], positions, strict=True):
            inside = ratio > 0.3
            at, colour = (ratio / 2, "white") if inside else (end + 0.02, "black")
            where = {"ha": "center" if inside else "left", "va": "center"}
            axes.text(at, position, f"{ratio:.3f}", color=colour, fontsize=8, **where)
        axes.set_yticks(positions, names)
        axes.axvline(1.0, color="0.4", linestyle="--")
        axes.set_xlim(left=0.0, right=1.1 * max(1.0, ends.max()))
        axes.set_title(f"policy of iteration {stage['iteration']}", fontsize=10)
        axes.grid(True, axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("total variance of the gradient over TRPO's, same episodes; 95 % bootstrap intervals", fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
