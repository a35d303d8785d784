"""The abstract states of the simple maze, in the plane: a picture that can be checked by eye, and how right they are.

Trains two-dimensional abstract states on random moves, or takes a run of ``python -m experiments gmas --env
simple_maze``. Draws the encoding of every cell, and from each where the model thinks that the four moves lead. Writes
abstract_space.png and abstract_space.json into the directory of the run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from experiments import gmas
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

# One optimiser and 16 steps per update: a CPU encodes a picture in a quarter of a millisecond.
_SHORT = ("--config.loss-mode", "joint", "--config.batch-size", "16", "--eval-every", "1000")
_RUNS = {
    "full": ("--preset", "simple_maze"),
    "short": ("--preset", "simple_maze", *_SHORT, "--config.updates-per-iteration", "500", "--iterations", "10"),
    "smoke": (
        *("--preset", "smoke", "--env", "simple_maze", "--config.abstract-size", "2", "--config.test-depths"),
        *("--config.alpha", "0"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    preset: Literal["full", "short", "smoke"] = "short"
    """Numbers of the run to train: the released ones, minutes on a CPU, or less than a minute."""
    run: str | None = None
    """Directory of a finished run; by default a new one is trained."""
    seed: int = 0
    """Seed to train, or to draw."""
    out: str | None = None
    """Directory of the run to train."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run of the simple maze with two numbers to a state, one that was drawn already, or an argument
        that makes no sense; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments abstract_space", description=__doc__)
    if arguments.run is not None and arguments.out is not None:
        raise InputError("run and out are both given: --out names a run to train, --run a finished one.")
    default = records.default_directory("gmas", "simple_maze", arguments.preset, arguments.seed)
    directory = Path(arguments.run or arguments.out or default).expanduser()
    record, picture = directory / "abstract_space.json", directory / "abstract_space.png"
    for path in (record, picture):
        if path.exists():
            raise InputError(f"run={str(directory)!r} has an {path.name} already: move it elsewhere.")
    if arguments.run is None:
        options = [*_RUNS[arguments.preset], "--seed", str(arguments.seed), "--out", str(directory)]
        code = gmas.main([*options, "--no-tensorboard"])
        if code:
            return code
    cells, z, predicted = _encoded(directory, arguments.seed)
    facts = _facts(cells, z, predicted)
    record.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _draw(picture, cells, z, predicted, facts)
    console.say(", ".join(f"{name} {value:.3g}" for name, value in facts.items()))
    console.say(f"drawn in {picture}")
    return 0


def _encoded(directory: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Free cells ``[N, 2]``, their abstract states ``[N, 2]`` and the predicted next ones ``[N, A, 2]``."""
    import jax
    import jax.numpy as jnp

    from experiments._gmas import trained
    from jaxhybrid.envs import simple_maze

    agent = trained.load(directory, seed)
    kind = (agent.test_env.spec.name, agent.config.abstract, agent.config.abstract_size)
    if kind != ("simple_maze", "vector", 2):
        raise InputError(f"run={str(directory)!r} has abstract states {kind}, expected ('simple_maze', 'vector', 2).")
    cells = np.argwhere(~simple_maze.walls())
    nets = agent.parts.nets
    pictures = jax.vmap(simple_maze.picture)(jnp.asarray(cells))
    z = jax.vmap(lambda picture: nets.encoder.apply(agent.params["encoder"], picture))(pictures)
    moves = jnp.arange(len(simple_maze.MOVES))
    predict = jax.vmap(lambda x, a: nets.dynamics.apply(agent.params["dynamics"], x, a), (None, 0))
    return cells, np.asarray(z), np.asarray(jax.vmap(predict, (0, None))(z, moves))


def _facts(cells: np.ndarray, z: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """How often the cell that is nearest to a predicted state is the right one, and the sizes behind it."""
    truth = _targets(cells)
    nearest = np.linalg.norm(predicted[:, :, None] - z[None, None], axis=-1).argmin(-1)
    moves = truth != np.arange(len(cells))[:, None]
    errors = np.linalg.norm(predicted - z[truth], axis=-1)
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1) + 1e9 * np.eye(len(z))
    return {
        "right moves": float((nearest == truth)[moves].mean()),
        "right at walls": float((nearest == truth)[~moves].mean()),
        "mean error": float(errors.mean()),
        "mean distance to the nearest other cell": float(apart.min(axis=1).mean()),
    }


def _targets(cells: np.ndarray) -> np.ndarray:
    """Index of the cell that each move leads to, ``[N, A]``."""
    from jaxhybrid.envs import simple_maze

    index = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
    ahead = cells[:, None] + np.array(simple_maze.MOVES)[None]
    return np.array([[index.get(tuple(to), i) for to in row] for i, row in enumerate(ahead.tolist())])


def _draw(path: Path, cells: np.ndarray, z: np.ndarray, predicted: np.ndarray, facts: dict[str, float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    shades: Any = plt.get_cmap("viridis")(np.linspace(0.0, 0.95, predicted.shape[1]))
    for move, (shade, label) in enumerate(zip(shades, ("row - 1", "row + 1", "column - 1", "column + 1"), strict=True)):
        lines = axes.plot(*np.moveaxis(np.stack([z, predicted[:, move]]), -1, 0), color=shade, linewidth=0.8)
        lines[0].set_label(label)
    rooms = {"left room": cells[:, 1] < 4, "door": cells[:, 1] == 4, "right room": cells[:, 1] > 4}
    for (room, there), colour in zip(rooms.items(), ("#0072B2", "#000000", "#D55E00"), strict=True):
        axes.scatter(z[there, 0], z[there, 1], s=28, color=colour, zorder=3, label=room)
    axes.set_title(f"{facts['right moves']:.0%} of the moves end nearest to the right cell", fontsize=10)
    axes.set_xlabel("first number of the abstract state")
    axes.set_ylabel("second")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
