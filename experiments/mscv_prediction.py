"""How far a model of MSCV predicts: open loop along fresh episodes of its policy, figures 2 and 3 of the paper.

From random states of episodes that the model has not seen it is rolled out with the recorded actions. Draws the norms
of the true and the predicted observation, the norm of their difference and their cosine, and the true and the predicted
reward, over the steps ahead. Adds prediction.json and prediction.png to the directory of the run, or writes them where
``--out`` says.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments._mscv.files import new_pair
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, records

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    run: str
    """Directory of a finished run of the study mscv."""
    seed: int = 0
    """Training seed of the run, which also draws the episodes."""
    steps: int = 15
    """Steps ahead."""
    starts: int = 500
    """States that are predicted from."""
    episode_steps: int = 200
    """Steps of fresh experience, from each of the run's environments."""
    out: str | None = None
    """File of the numbers, with the picture as .png beside it; by default prediction.json and prediction.png in the
    directory of the run."""


def main(argv: Sequence[str]) -> int:
    """Measures and draws.

    Args:
      argv: see ``--help``.

    Returns:
      The exit code.

    Raises:
      InputError: no such run, one without a model, or one with predictions already; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments mscv_prediction", description=__doc__)
    for name in ("steps", "starts", "episode_steps"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}={getattr(arguments, name)} must be at least 1.")
    if arguments.steps > arguments.episode_steps:
        raise InputError(f"steps={arguments.steps} is more than episode_steps={arguments.episode_steps}.")
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from experiments._mscv.states import fresh, load

    directory = Path(arguments.run).expanduser()
    run = load(directory, arguments.seed)
    if run.state.learner.model is None:
        raise InputError(f"run={str(directory)!r} has no model: its horizon is 0.")
    out, picture = new_pair(arguments.out, directory, "prediction.json", "prediction.png")
    key = jax.random.key(arguments.seed)
    steps = fresh(run, key, num_steps=arguments.episode_steps, num_envs=run.config.num_envs)
    found = _measure(run, steps, arguments.steps, arguments.starts, arguments.seed)
    asked = {name: value for name, value in dataclasses.asdict(arguments).items() if name != "out"}
    facts = asked | {"iteration": run.iteration, "over_steps_ahead": found}
    text = json.dumps(records.jsonable(facts), indent=1, allow_nan=False)
    out.write_text(text + "\n", encoding="utf-8")
    _draw(found, run.env.spec.name, picture)
    last = {name: values[-1] for name, values in found.items()}
    console.say(
        f"{arguments.steps} steps ahead: cosine {last['cosine']:.3f}, difference {last['difference']:.3g} of "
        f"{last['norm']:.3g}, reward error {last['reward_error']:.3g} of {last['reward_std']:.3g}"
    )
    return 0


def _measure(run: Any, steps: Any, ahead: int, starts: int, seed: int) -> dict[str, list[float]]:
    """Means over the starts, for every number of steps ahead."""
    import jax

    from jaxhybrid.rollout import unroll
    from jaxhybrid.systems.mscv_updates import bound_step

    num_steps, num_envs = steps.reward.shape
    discount = np.asarray(steps.discount)
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, num_steps - ahead + 1, starts)[:, None] + np.arange(ahead)
    columns = np.broadcast_to(rng.integers(0, num_envs, starts)[:, None], rows.shape)
    # Only where the episode goes on: from a reset on there is another one.
    followed = np.all(np.asarray(steps.next_obs)[:-1] == np.asarray(steps.obs)[1:], axis=-1) & (discount[:-1] > 0)
    whole = np.all(followed[rows[:, :-1], columns[:, :-1]], axis=1) if ahead > 1 else np.ones(starts, bool)
    rows, columns = rows[whole], columns[whole]
    window = jax.tree.map(lambda x: np.asarray(x)[rows, columns], steps)
    walk = partial(unroll, act_fn=lambda obs, action: action, step_fn=bound_step(run.parts, run.state.learner))
    path = jax.jit(jax.vmap(lambda obs, actions: walk(obs, (actions, actions))))(window.obs[:, 0], window.action)
    predicted = np.concatenate([np.asarray(path.obs)[:, 1:], np.asarray(path.final_obs)[:, None]], axis=1)
    norm, predicted_norm = np.linalg.norm(window.next_obs, axis=-1), np.linalg.norm(predicted, axis=-1)
    difference = np.linalg.norm(predicted - window.next_obs, axis=-1)
    cosine = np.sum(predicted * window.next_obs, axis=-1) / (norm * predicted_norm)
    reward_error = np.sqrt(np.mean(np.square(np.asarray(path.reward) - window.reward), axis=0))
    means = {"norm": norm, "predicted_norm": predicted_norm, "difference": difference, "cosine": cosine}
    means |= {"reward": window.reward, "predicted_reward": np.asarray(path.reward)}
    found = {name: np.mean(x, axis=0) for name, x in means.items()}
    found |= {"reward_error": reward_error, "reward_std": np.std(window.reward, axis=0)}
    return {name: [float(f"{v:.5g}") for v in x] for name, x in found.items()}


def _draw(found: dict[str, list[float]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    ahead = np.arange(1, len(found["norm"]) + 1)
    shown = (
        ("state prediction", {"true norm": "norm", "predicted norm": "predicted_norm", "difference": "difference"}),
        ("cosine of true and predicted state", {"cosine": "cosine"}),
        ("reward prediction", {"true mean": "reward", "predicted mean": "predicted_reward", "rms error": "reward_error",
                               "deviation of the truth": "reward_std"}),
    )  # fmt: skip
    for panel, (name, lines) in zip(panels, shown, strict=True):
        for style, (label, key) in zip(("-", "--", "-.", ":"), lines.items()):
            panel.plot(ahead, found[key], style, label=label)
        panel.set_title(name)
        panel.set_xlabel("steps ahead")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    panels[1].set_ylim(top=1.0)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
