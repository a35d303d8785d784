"""Values of a fitted model by roll-outs of several lengths, with and without a terminal value, against the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import pendulum
from jaxhybrid.ops import trees
from jaxhybrid.policies import linear_gaussian
from jaxhybrid.rollout_values import batch_rollout_values
from jaxhybrid.systems import gamps
from jaxhybrid.types import Array, Key

if TYPE_CHECKING:
    from experiments.gamps_horizons import Config

__all__ = ["compare", "draw"]

_STEPS, _GAMMA, _STD = 50, 0.95, 0.6
# The part of a value behind so many steps is below 0.95^150 = 5e-4 of the largest value.
_TRUE_STEPS = 150
_AWAY = 0.02  # standard deviation by which the policy differs from the one that collected
_LABELS = {"none": ("roll-outs alone", "#D55E00"), "least_squares": ("with a terminal value", "#009E73")}


def compare(config: Config, first_seed: int) -> list[dict[str, Any]]:
    """Returns, by number of trajectories, horizon and terminal value, means and standard errors over the seeds.

    ``q_error`` is the root mean squared error of the values over the visited pairs, relative to the standard deviation
    of the true ones; ``cosine`` that of the model-value gradient with the one that true values give on the same data.
    """
    keys = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + config.seeds))
    settings = [(h, kind) for h in config.horizons for kind in _LABELS]
    rows = []
    for count in config.trajectories:
        found = np.asarray(jax.jit(jax.vmap(lambda k, n=count: _one(config, n, settings, k)))(keys), np.float64)
        for i, (horizon, kind) in enumerate(settings):
            mean, error = found[:, i].mean(axis=0), found[:, i].std(axis=0, ddof=1) / np.sqrt(config.seeds)
            rows.append(
                {
                    "trajectories": count,
                    "horizon": horizon,
                    "terminal_value": kind,
                    "q_error": mean[0],
                    "q_error_standard_error": error[0],
                    "cosine": mean[1],
                    "cosine_standard_error": error[1],
                }
            )
    return rows


def _one(config: Config, count: int, settings: Sequence[tuple[int, Any]], key: Key) -> Array:
    """Error of the values and cosine of the gradient in every setting, from one data set, ``[settings, 2]``."""
    base = dataclasses.replace(
        gamps.presets["swimmer"],
        trajectories=count,
        episode_steps=_STEPS,
        gamma=_GAMMA,
        model_steps=config.fit_steps,
        model_learning_rate=3e-3,
        rollouts=config.rollouts,
        behaviour_std=_STD,
        policy_std=_STD,
    )
    env = pendulum.make(max_torque=1.0, friction=0.5, max_episode_steps=_STEPS)
    task = gamps.make_task(base, env)
    policy_key, away_key, data_key, model_key, true_key, value_key = jax.random.split(key, 6)
    behaviour = task.init_policy(policy_key)
    away = _AWAY * jax.random.normal(away_key, behaviour["gain"].shape)
    params = behaviour | {"gain": behaviour["gain"] + away}
    data = task.collect(behaviour, data_key, count, True)
    weights = gamps.step_weights(base, task, params, data)
    model_params, _ = task.fit(task.init_model(model_key), data, weights)

    policy = linear_gaussian(env.spec.obs_dim, env.spec.action_dim, log_std=float(np.log(_STD)))

    def true_step(obs: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
        del noise  # the transition is deterministic
        state = pendulum.PendulumState(jnp.arctan2(obs[1], obs[0]), obs[2], jnp.zeros((), jnp.int32))
        after = env.step(state, action, key)[1]
        return after.obs, after.reward, jnp.ones(())

    def gradient(q: Array, chosen: gamps.Config) -> Array:
        known = task._replace(q_values=lambda *_: q)
        return gamps.policy_gradient(chosen, known, params, model_params, data, key)

    true = batch_rollout_values(
        data.obs.reshape(-1, env.spec.obs_dim),
        data.action.reshape(-1, env.spec.action_dim),
        true_key,
        act_fn=lambda s, e: policy.apply(params, s).reparameterise(e),
        step_fn=true_step,
        num_rollouts=config.true_rollouts,
        horizon=_TRUE_STEPS,
        gamma=_GAMMA,
    ).reshape(data.mask.shape)
    reference, rows = gradient(true, base), []
    for horizon, kind in settings:
        chosen = dataclasses.replace(base, model_horizon=horizon, terminal_value=kind)
        q = gamps.make_task(chosen, env).q_values(model_params, params, data, value_key)
        error = jnp.sqrt(jnp.mean(jnp.square(q - true))) / jnp.std(true)
        rows.append(jnp.stack([error, trees.cosine(gradient(q, chosen), reference)]))
    return jnp.stack(rows)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws error and cosine over the horizon, one line per number of trajectories and terminal value."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    counts = sorted({row["trajectories"] for row in rows})
    horizons = sorted({row["horizon"] for row in rows})
    for count, dash in zip(counts, ("--", "-", ":", "-.")):
        for kind, (label, colour) in _LABELS.items():
            members = [row for row in rows if (row["trajectories"], row["terminal_value"]) == (count, kind)]
            for panel, of in zip(panels, ("q_error", "cosine")):
                panel.errorbar(
                    [row["horizon"] for row in members],
                    [row[of] for row in members],
                    yerr=[row[f"{of}_standard_error"] for row in members],
                    color=colour,
                    linestyle=dash,
                    marker="o",
                    markersize=4,
                    capsize=3,
                    label=f"{label}, N = {count}",
                )
    panels[0].set_ylabel("error of the values / their standard deviation")
    panels[0].set_yscale("log")
    panels[1].set_ylabel("cosine with the gradient of true values")
    for panel in panels:
        panel.set_xscale("log")
        panel.set_xticks(horizons, [str(h) for h in horizons])
        panel.minorticks_off()
        panel.set_xlabel("steps of a model roll-out")
        panel.grid(True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=2)
    figure.suptitle("Pendulum: values of a learned model, mean and standard error over data sets")
    figure.savefig(path, dpi=100)
    plt.close(figure)
