"""Variance of MSCV's gradient on a policy that a run left: TRPO, k = 1 to 5, best coefficients, Q-Prop, SVG.

Independent whole episodes of the frozen policy; every estimator sees the same ones. Total variance, that of each
parameter tensor, and signal-to-noise ratios, all for a batch of one episode: a batch of n episodes has 1 / n of the
variance and n times the ratio, since episodes are independent. Coefficients are found on the other half of the
episodes. Writes manifest.json, results.json and variance.png. The linear-quadratic rows are in
``benchmarks gradient_variance``.
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
import rich.table
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    run: str
    """Directory of a finished run of the study mscv, with a model."""
    seed: int = 0
    """Training seed of the run, which also draws the episodes."""
    episodes: int = 200
    """Independent episodes."""
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
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from benchmarks._mscv.estimators import HORIZONS, episode_gradients, with_coefficient
    from experiments._mscv.states import fresh, load

    directory = Path(arguments.run).expanduser()
    run = load(directory, arguments.seed, arguments.num_envs)
    if run.state.learner.model is None:
        raise InputError(f"run={str(directory)!r} has no model: its horizon is 0.")
    env = run.env.spec.name
    length = arguments.steps or run.env.spec.max_episode_steps
    out = Path(arguments.out or records.default_directory(name, env, str(run.iteration), arguments.seed))
    facts = dataclasses.asdict(arguments) | {"env": env, "iteration": run.iteration, "steps": length}
    records.open_run(out, {"study": name} | facts, dataclasses.asdict(arguments), resume=False)
    gradients: dict[str, Any] = {}
    for key in jax.random.split(jax.random.key(arguments.seed), arguments.episodes // arguments.num_envs):
        steps = fresh(run, key, num_steps=length, num_envs=arguments.num_envs)
        for row, found in episode_gradients(run, steps, key).items():
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
    summary = {row: _statistics(joined[row], joined["TRPO"]) for row in order}
    text = json.dumps(
        records.jsonable(facts | {"rows": summary, "coefficients": coefficients}), indent=1, allow_nan=False
    )
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    title = f"{env}, policy of iteration {run.iteration}: {arguments.episodes} episodes of {length} steps"
    rich.console.Console(width=120).print(_table(summary, title))
    _draw(summary, title, out / "variance.png")
    console.say(f"results in {out}")
    return 0


def _statistics(tree: Any, base: Any) -> dict[str, Any]:
    """Total variance and signal-to-noise of one row, whole and by tensor, and its mean's distance from TRPO's.

    The signal is ``|mean|^2`` less the variance that the mean itself has, ``V / E``: what is left estimates the square
    of the true gradient without bias, and may be negative where the gradient drowns.
    """
    import jax

    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    blocks = {}
    for name, leaf in named.items():
        flat = np.asarray(leaf, np.float64).reshape(len(leaf), -1)
        variance = float(flat.var(axis=0, ddof=1).sum())
        signal = float(np.sum(flat.mean(axis=0) ** 2)) - variance / len(flat)
        blocks[name] = {"variance": variance, "signal": signal, "snr": signal / variance if variance else 0.0}
    variance, signal = (sum(block[what] for block in blocks.values()) for what in ("variance", "signal"))
    gap = np.concatenate(
        [
            (np.asarray(x, np.float64) - np.asarray(y, np.float64)).reshape(len(x), -1)
            for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(base), strict=True)
        ],
        axis=1,
    )
    error = gap.std(axis=0, ddof=1) / np.sqrt(len(gap))
    z = np.abs(gap.mean(axis=0)) / np.where(error > 0, error, np.inf)
    return {
        "variance": variance,
        "signal": signal,
        "snr": signal / variance,
        "blocks": blocks,
        "largest_z": float(z.max()),
    }


def _table(rows: Mapping[str, Mapping[str, Any]], title: str) -> rich.table.Table:
    base = rows["TRPO"]["variance"]
    shown = rich.table.Table(title=title)
    for name in ("estimator", "total variance", "of TRPO's", "SNR, one episode", "largest z of the mean against TRPO"):
        shown.add_column(name, justify="left" if name == "estimator" else "right")
    for name, row in rows.items():
        cells = (
            f"{row['variance']:.3g}",
            f"{row['variance'] / base:.3f}",
            f"{row['snr']:.3g}",
            f"{row['largest_z']:.1f}",
        )
        shown.add_row(name, *cells)
    return shown


def _draw(rows: Mapping[str, Mapping[str, Any]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    positions = np.arange(len(rows))[::-1]
    base = rows["TRPO"]["variance"]
    colours = ["#009E73" if "best" in name else "#0072B2" for name in rows]
    bars = axes.barh(positions, [row["variance"] / base for row in rows.values()], color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(positions, list(rows))
    axes.axvline(1.0, color="0.4", linestyle="--")
    axes.set_xlim(right=1.15 * max(1.0, *(row["variance"] / base for row in rows.values())))
    axes.set_xlabel("total variance of the gradient over TRPO's, same episodes")
    axes.set_title(title, fontsize=10)
    axes.grid(True, axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
