"""The numbers of DREAM: one documented record, and the presets that differ from each other by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax

from jaxhybrid.context_layers import CODE
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError, check_choices
from jaxhybrid.estimators.signal import check_parts
from jaxhybrid.planning.tree import tree_size

__all__ = ["VARIANTS", "Config", "checked", "presets", "used"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of DREAM. Defaults are those of the released code, read correctly, over 20,000 trials."""

    env: str = ""
    """Environment the numbers are meant for; empty: any city."""
    trials: int = 20_000
    """Trials of a run."""
    trials_per_iteration: int = 400
    """Trials between two tests, one iteration."""
    parallel_trials: int = 20
    """Trials that are played side by side, with the networks of their start; the updates that they pay for follow."""
    split: Literal["every11", "paper", "helpful", "swapped", "none"] | None = None
    """Which tasks are for training; None as released, see `envs.city.make`."""
    hidden_goal: bool = False
    """As released: a corner that the explorer is not told of ends its episode."""
    task_order: Literal["random", "released"] = "random"
    """Whether every seed meets tasks of its own, or, as released, all the same ones."""

    observation: Literal["integers", "picture"] = "integers"
    """What the agents see: the numbers of an observation, or a small picture of the city, which has to be read. The
    instruction, and what the model predicts whose gradients are read, are numbers in either case."""
    method: Literal["dream", "no_exploration", "rl2"] = "dream"
    """What learns: both agents; the execution agent alone, which is told nothing of the task; or one agent with a
    memory for both episodes, E-RL2."""
    recurrent: bool = False
    """Whether the execution agent has a memory: the second public version of the code, and the published figures."""
    gamma: float = 0.99
    """Discount factor of both agents."""
    learning_rate: float = 1e-4
    """Adam step size."""
    clip_norm: float = 10.0
    """Bound on the length of an agent's gradient."""
    batch_size: int = 32
    """Episodes per update; steps of an execution agent without a memory."""
    update_every: int = 4
    """Steps of an agent between two of its updates."""
    target_interval: int = 5000
    """Steps of an agent between two copies to its slow parameters."""
    init_target: Literal["copy", "random"] = "copy"
    """Whether the slow parameters start as a copy, or, as released, unrelated."""
    dueling_mean: Literal["state", "batch"] = "state"
    """What advantages are centred by: the mean of their state, or, as released, one of the whole batch."""
    target_context: Literal["matched", "id"] = "matched"
    """Context of the slow values: that of the update, or, as released, always the noisy code of the task."""

    epsilon_start: float = 1.0
    """Share of random actions at an agent's first step."""
    epsilon_end: float = 0.01
    """Share of random actions from ``epsilon_steps`` on."""
    epsilon_steps: int = 250_000
    """Steps of an agent over which its share of random actions falls, linearly."""
    capacity: int = 40_000
    """Trials that are kept."""
    exploration_window: int = 16_000
    """Newest trials that the exploration agent, and an execution agent with a memory, learn from."""
    execution_window: int = 100_000
    """Newest steps that an execution agent without a memory learns from."""
    exploration_starts: int = 8000
    """Trials after which the exploration agent starts to learn."""
    execution_starts: int = 500
    """Steps after which an execution agent without a memory starts to learn; trials, for one with a memory."""

    noise: float = 0.1
    """Standard deviation of the noise on the code of a task, rho: 0.1 as released; the paper prints rho^2 = 0.1."""
    bottleneck: float = 1.0
    """Weight of the code's length, lambda."""
    bound: float = 10.0
    """Squared length that a code has for free, K."""
    penalty: float = 0.1
    """Cost of an exploration step, c: 0.1 as released, 0.01 in the paper."""

    gradient: Literal["off", "augment", "replace"] = "off"
    """Whether gradients of a model that is adapted to what was explored are read as well, or in place of the decoder's
    memory."""
    inner_rate: float = 0.1
    """Step size of the adaptation; the first one, where it is learnt."""
    learned_rates: bool = False
    """Whether every tensor of the model learns a step size of its own."""
    order: Literal["second", "first"] = "second"
    """Whether the model learns through its adaptation, or as if the step were a constant."""
    model_learning_rate: float = 1e-3
    """Adam step size of the model that is adapted."""
    surprise: float = 0.0
    """How much more the steps count that the model predicts badly, as an exponent; 0: not at all."""
    reader: Literal["flat", "attention", "low_rank"] = "flat"
    """What reads the gradients; see `gradient_readers`."""
    preprocessing: Literal["sign_log", "rms"] = "sign_log"
    """How gradients of many orders of magnitude are made fit to be read."""
    shared: bool = False
    """Whether the execution policy's embedding of states is also that of a model, which is told the task."""
    plan_depth: int = 0
    """Steps that this model plans ahead when the execution agent acts; 0: none."""
    plan_average: bool = False
    """Whether values of all depths are averaged, as CRAR does."""
    mix: float = 0.0
    """Share of exploration among the steps that this model learns from."""

    diagnose_parts: int = 0
    """Parts of a batch whose gradients are compared to say how much of each agent's is signal; 0: none."""
    test_trials: int = 100
    """Trials of each test, always the same: the released ones of the split."""


_POSITIVE = (
    "trials", "trials_per_iteration", "parallel_trials", "learning_rate", "clip_norm", "batch_size", "update_every",
    "target_interval", "epsilon_steps", "capacity", "exploration_window", "execution_window", "test_trials",
    "inner_rate", "model_learning_rate",
)  # fmt: skip
_NOT_NEGATIVE = (
    "exploration_starts",
    "execution_starts",
    "noise",
    "bottleneck",
    "bound",
    "penalty",
    "plan_depth",
    "surprise",
)
_MEMORY = 2**31
"""Bytes that planned states may take."""
_UNIT = ("gamma", "epsilon_start", "epsilon_end", "mix")


def checked(config: Config, env: str) -> Config:
    """Returns ``config`` if it makes sense for an environment.

    Raises:
      InputError: a value out of range, an unknown choice, numbers of trials that do not divide each other, or an
        environment that is no city.
    """
    if any(isinstance(value, jax.core.Tracer) for value in vars(config).values()):
        return config  # a sweep, whose every value was checked before it was traced
    if not env.startswith("city/") or env.removeprefix("city/") not in city.TASKS:
        cities = ", ".join(f"city/{task}" for task in city.TASKS)
        raise InputError(f"env={env!r} has no trials: choose one of {cities}.")
    if config.method == "rl2" and not config.recurrent:
        raise InputError("method='rl2' is a memory over both episodes: it needs recurrent=True.")
    check_choices(config)
    for name in _POSITIVE:
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name}={getattr(config, name)} must be positive and finite.")
    for name in _NOT_NEGATIVE:
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}={getattr(config, name)} must be 0 or more, and finite.")
    for name in _UNIT:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise InputError(f"{name}={getattr(config, name)} must lie in [0, 1].")
    _check_extensions(config)
    for whole, part in (("trials", "trials_per_iteration"), ("trials_per_iteration", "parallel_trials")):
        total, count = getattr(config, whole), getattr(config, part)
        if total % count:
            near = count * max(1, round(total / count))
            raise InputError(f"{whole}={total} must be a multiple of {part}={count}: {near} is the nearest.")
    check_parts(config.diagnose_parts, config.batch_size, "batch_size")
    if config.parallel_trials > config.capacity:
        raise InputError(f"parallel_trials={config.parallel_trials} must not exceed capacity={config.capacity}.")
    return config


def used(number: jax.Array | float) -> bool:
    """Whether a number is anything but zero; one that is swept is not known while it is traced, and so is used."""
    return isinstance(number, jax.core.Tracer) or bool(number > 0)


def _check_extensions(config: Config) -> None:
    extended = config.gradient != "off" or config.shared or config.plan_depth > 0
    if extended and config.method != "dream":
        raise InputError(f"method={config.method!r} has no context to extend: use method='dream'.")
    if config.observation == "picture" and config.method == "rl2":
        raise InputError("observation='picture' does not show all that method='rl2' has to see: use 'integers'.")
    if config.plan_depth > 0 and not config.shared:
        raise InputError(f"plan_depth={config.plan_depth} plans without a model: add shared=True.")
    if config.shared and config.recurrent:
        raise InputError("shared=True is for an execution policy without a memory: use recurrent=False.")
    if config.mix > 0.0 and not config.shared:
        raise InputError(f"mix={config.mix} mixes the steps of a model that is not there: add shared=True.")
    if config.plan_depth > 0 and config.dueling_mean == "batch":
        raise InputError(
            f"plan_depth={config.plan_depth} compares values of different states, whose advantages "
            "dueling_mean='batch' does not centre: use dueling_mean='state'."
        )
    _check_plans(config)


def _check_plans(config: Config) -> None:
    """Refuses plans that do not fit into the memory, of all trials that are played side by side."""
    trials, num_actions = max(config.parallel_trials, 2 * config.test_trials), len(city.ACTIONS)

    def size(depth: int) -> int:
        return trials * tree_size(num_actions, num_actions, depth) * CODE * 4  # bytes of a float32

    if size(config.plan_depth) > _MEMORY:
        fits = max(depth for depth in range(config.plan_depth) if size(depth) <= _MEMORY)
        raise InputError(
            f"plan_depth={config.plan_depth} makes {size(config.plan_depth) / 2**30:,.1f} GiB of states for {trials} "
            f"trials side by side, and {_MEMORY / 2**30:.0f} GiB are allowed: use {fits} or less."
        )


VARIANTS: dict[str, dict[str, object]] = {
    "dream": {},
    "gradient": {"gradient": "augment"},
    "shared": {"shared": True},
    "planning": {"shared": True, "plan_depth": 1},
    "planning-mixed": {"shared": True, "plan_depth": 1, "mix": 0.5},
}
"""The extensions of the paper as changes of any preset; "dream" is the baseline."""

_DREAM = Config()
_PUBLISHED = dataclasses.replace(_DREAM, trials=80_000, trials_per_iteration=2000, recurrent=True)
_QUIRKS: dict[str, Any] = {
    "hidden_goal": True,
    "init_target": "random",
    "dueling_mean": "batch",
    "target_context": "id",
}
# A baseline is the same step with ingredients removed.
_BASELINES: dict[str, dict[str, Any]] = {
    "no-bottleneck": {"bottleneck": 0.0},
    "no-exploration": {"method": "no_exploration"},
    "erl2": {"method": "rl2", "recurrent": True, "epsilon_steps": 500_000, "execution_starts": 800},
}

presets = {
    "dream": _DREAM,
    "fast": dataclasses.replace(_DREAM, parallel_trials=100),
    "released": dataclasses.replace(
        _DREAM,
        trials_per_iteration=200,
        parallel_trials=1,
        task_order="released",
        **_QUIRKS,
    ),
    "published": _PUBLISHED,
    "published/released": dataclasses.replace(_PUBLISHED, **_QUIRKS),
    "published/paper": dataclasses.replace(_PUBLISHED, noise=0.316, penalty=0.01),
    "pictures": dataclasses.replace(_DREAM, observation="picture"),
    # Nobody acts by what is known, so that variants differ in how well they read the same explorations.
    "random-exploration": dataclasses.replace(
        _DREAM, trials=1000, trials_per_iteration=100, exploration_starts=10**9, epsilon_end=1.0
    ),
    # Everything ten times as soon: what there is to see in minutes, and no figure of a paper.
    "demo": dataclasses.replace(
        _DREAM,
        trials=4000,
        learning_rate=1e-3,
        target_interval=500,
        epsilon_steps=25_000,
        exploration_starts=800,
    ),
    "smoke": dataclasses.replace(
        _DREAM,
        trials=16,
        trials_per_iteration=8,
        parallel_trials=4,
        batch_size=4,
        update_every=16,
        target_interval=32,
        epsilon_steps=100,
        capacity=8,
        exploration_starts=4,
        execution_starts=8,
        test_trials=4,
    ),
}
"""Every preset by name. ``fast`` plays more trials side by side at the same ratio of updates; ``released`` has one
trial at a time and the original's quirks; ``published`` is its second version, over about a million steps,
``published/released`` with these quirks, and ``published/paper`` with the noise and the cost of a step that the paper
prints. ``erl2`` alone has the 20,000 trials of ``dream``; ``published/erl2`` those of the published figure."""
for _name, _changes in _BASELINES.items():
    presets[_name] = dataclasses.replace(_DREAM, **_changes)
    presets[f"published/{_name}"] = dataclasses.replace(_PUBLISHED, **_changes)
