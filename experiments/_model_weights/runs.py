"""Runs with both kinds of weights, side by side, and what their returns say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxhybrid.envs import episodes, pendulum
from jaxhybrid.systems import maac
from jaxhybrid.systems.maac_config import checked
from jaxhybrid.types import Array, Key

if TYPE_CHECKING:
    from experiments.model_weights import Config

__all__ = ["check", "compare", "draw"]

_KINDS = {"uniform": ("every step alike", "#D55E00"), "own_score": ("gradient-aware", "#009E73")}
_EPISODES = 10


def check(config: Config) -> None:
    """Refuses numbers that make no run.

    Raises:
      InputError: names the field.
    """
    for width in config.widths:
        checked(_numbers(config, width, "uniform"), pendulum.make().spec)


def compare(config: Config, first_seed: int) -> list[dict[str, Any]]:
    """Returns the returns over iterations of every width, ``[S, K]`` per kind of weights, and their differences.

    ``p`` is two-sided, by the paired t-test over seeds.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + config.seeds))
    rows = []
    for width in config.widths:
        found = {
            kind: np.asarray(jax.jit(jax.vmap(partial(_run, _numbers(config, width, kind))))(keys), np.float64)
            for kind in _KINDS
        }
        by_seed = {
            "mean": found["own_score"].mean(axis=1) - found["uniform"].mean(axis=1),
            "final": found["own_score"][:, -1] - found["uniform"][:, -1],
        }
        difference = {
            "mean_over_iterations": by_seed["mean"].mean(),
            "final": by_seed["final"].mean(),
            "p_mean": scipy.stats.ttest_1samp(by_seed["mean"], 0.0).pvalue,
            "p_final": scipy.stats.ttest_1samp(by_seed["final"], 0.0).pvalue,
        }
        rows.append({"width": width, "returns": found, "own_score_minus_uniform": difference})
    return rows


def _numbers(config: Config, width: int, kind: Any) -> maac.Config:
    return dataclasses.replace(
        maac.presets["smoke"],
        iterations=config.iterations,
        steps_per_iteration=config.steps_per_iteration,
        initial_steps=2 * config.steps_per_iteration,
        real_capacity=config.iterations * config.steps_per_iteration,
        updates_per_iteration=config.updates_per_iteration,
        ensemble_size=2,
        model_hidden=(width,),
        model_max_epochs=20,
        model_weights=kind,
        batch_size=64,
        # The actor alone meets the model: batches are real and the critic's targets one step deep.
        real_ratio=1.0,
        steve_horizon=0,
        horizon=4,
        num_paths=1,
        policy_hidden=(32, 32),
        critic_hidden=(32, 32),
        gamma=0.95,
        learning_rate=1e-3,
        target_rate=0.02,
    )


def _run(numbers: maac.Config, key: Key) -> Array:
    """Returns of the deterministic policy after every iteration, ``[K]``; one start per episode for all of them."""
    env = pendulum.make(max_episode_steps=100)
    system = maac.make(numbers, env)

    def advance(state: maac.State, _: None) -> tuple[maac.State, Array]:
        state = system.step(state, None)[0]
        act = partial(system.act, state, deterministic=True)
        returns = episodes.episode_returns(env, act, jax.random.key(1), num_episodes=_EPISODES)[0]
        return state, jnp.mean(returns)

    return jax.lax.scan(advance, system.init(key), None, length=numbers.iterations)[1]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the return over iterations, one panel per width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(rows), figsize=(1.2 + 4.0 * len(rows), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    for panel, row in zip(axes[0], rows):
        for kind, (label, colour) in _KINDS.items():
            returns = np.asarray(row["returns"][kind], np.float64)
            mean, error = returns.mean(axis=0), returns.std(axis=0, ddof=1) / np.sqrt(len(returns))
            steps = np.arange(1, returns.shape[1] + 1)
            panel.plot(steps, mean, color=colour, label=label)
            panel.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(f"model with {row['width']} hidden units")
        panel.set_xlabel("iterations")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("return of an episode")
    axes[0, 0].legend(frameon=False)
    seeds = len(rows[0]["returns"]["uniform"])
    figure.suptitle(f"Pendulum: weights of the model's likelihood\nmean of {seeds} seeds, band: standard error")
    figure.savefig(path, dpi=100)
    plt.close(figure)
