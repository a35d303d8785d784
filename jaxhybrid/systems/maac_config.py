"""The numbers of MAAC: one documented record, and the presets that differ from each other by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, check_choices, unknown
from jaxhybrid.estimators.signal import check_parts
from jaxhybrid.networks import ACTIVATIONS, check_widths
from jaxhybrid.types import Array, EnvSpec

__all__ = ["Config", "RolloutSchedule", "checked", "presets"]


@dataclasses.dataclass(frozen=True)
class RolloutSchedule:
    """Length of model roll-outs over iterations, linear between two of them and constant outside."""

    first: int = 20
    """Iteration up to which roll-outs are shortest."""
    last: int = 100
    """Iteration from which roll-outs are longest."""
    shortest: int = 1
    """Steps at first."""
    longest: int = 1
    """Steps at last."""

    def length(self, iteration: Array) -> Array:
        """Returns the length at an iteration, integer ``[]``, rounded down."""
        progress = (iteration - self.first) / max(self.last - self.first, 1)
        return (self.shortest + jnp.clip(progress, 0.0, 1.0) * (self.longest - self.shortest)).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of MAAC and its ablations. Defaults are those of the paper's half cheetah, read correctly."""

    env: str = ""
    """Environment the numbers are meant for; empty: any."""
    iterations: int = 205
    """Iterations of the main loop: collect, fit, update. Those that explore are counted too."""

    num_envs: int = 1
    """Environments that collect side by side."""
    steps_per_iteration: int = 1000
    """Real steps per iteration, over all environments together."""
    initial_steps: int = 5000
    """Real steps with random actions before learning starts."""
    real_capacity: int = 1_000_000
    """Real steps that are kept."""
    model_capacity: int = 2_000_000
    """Model steps that are kept."""

    ensemble_size: int = 8
    """Members of the model ensemble, M."""
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    """Hidden layers of each member."""
    model_activation: str = "swish"
    """Activation of the members."""
    model_learning_rate: float = 1e-3
    """Adam step size of the model."""
    model_batch_size: int = 256
    """Rows per gradient step of each member."""
    model_max_epochs: int = 200
    """Most epochs of one fit."""
    validation_fraction: float = 0.2
    """Share of real steps that a member validates on, drawn for each member on its own."""
    early_stopping: Literal["rolling", "patience"] = "rolling"
    """When a member stops: "rolling" mean of its validation loss rises, or "patience" epochs without improvement."""
    persistency: float = 0.9
    """Weight of the past in the rolling mean."""
    patience: int = 5
    """Epochs without 1 % improvement."""
    restore_best: bool = True
    """Whether a fit ends with each member's best parameters instead of its last."""
    model_weights: Literal["uniform", "own_score"] = "uniform"
    """Weights of real steps in the model's likelihood: one each, or gradient-aware ones, by the norm of each step's own
    score under the current policy times its truncated ratio to the policy that took it (`rollout_values.score_weights`:
    a replay does not keep the past that the cumulated weights sum over)."""
    model_max_ratio: float = 10.0
    """Bound of that ratio."""
    trajectory_sampling: Literal["ts1", "tsinf"] = "ts1"
    """Whether a path draws a member at every step (ts1) or keeps one (tsinf)."""
    obs_limit: float = 100.0
    """Bound on predicted observations."""
    model_refreshes: int = 4
    """Times per iteration that model data is renewed, at equal spacing among the updates."""
    model_rollouts: int = 100_000
    """Model roll-outs per refresh."""
    rollout_schedule: RolloutSchedule = RolloutSchedule()
    """Length of these roll-outs over iterations."""

    updates_per_iteration: int = 8000
    """Gradient updates per iteration."""
    batch_size: int = 256
    """States per update."""
    real_ratio: float = 0.05
    """Share of real steps in a batch; 1 uses no model data."""
    horizon: int = 4
    """Model steps before the terminal critic in the actor's objective, H; 0 is model-free."""
    num_paths: int = 5
    """Model paths from each state in the actor's objective."""
    num_terminal_actions: int = 1
    """Actions over which the terminal critic is averaged at the end of each path."""
    steve_horizon: int = 2
    """Depth of the value expansion in the critic's targets; 0 is the one-step target."""
    steve_floor: float = 1e-4
    """Variance floor of the expansion, relative to the variance of the one-step targets over the batch."""
    gamma: float = 0.99
    """Discount factor."""
    learning_rate: float = 3e-4
    """Adam step size of actor, critics and temperature."""
    target_rate: float = 5e-3
    """Rate at which the slow critics follow."""
    target_update_interval: int = 1
    """Updates between two moves of the slow critics."""
    initial_temperature: float = 1.0
    """Entropy temperature at the start."""
    target_entropy: float | None = None
    """Entropy that the temperature holds, in nats; None: minus the action dimension."""
    policy_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of the policy."""
    policy_activation: str = "relu"
    """Activation of the policy."""
    critic_hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of each critic."""
    critic_activation: str = "relu"
    """Activation of the critics."""

    released_steve: bool = False
    """As released: expansion weights collapse onto the one-step target, rewards go on after a terminal step."""
    noise_exp_log_variance: bool = False
    """As released: model noise is scaled by the variance where the standard deviation belongs."""
    model_reward_on: Literal["env", "released"] = "env"
    """Reward inside the model: the environment's own; as released (MBBL only) one read off the state after a step."""
    one_step_rollouts: bool = False
    """As released: a roll-out of n steps is n single steps from real states."""
    delayed_replay: bool = False
    """As released: updates do not yet draw on the real steps of their own iteration (the model does)."""
    stochastic_evaluation: bool = False
    """As released: evaluation samples actions instead of taking the mode."""

    diagnose_parts: int = 0
    """Parts of each batch whose gradients are compared for the signal-to-noise ratio of actor and critic; 0: none."""

    @property
    def real_batch_size(self) -> int:
        """Real rows in a batch, rounded down as released."""
        return int(self.batch_size * self.real_ratio)

    @property
    def uses_model_data(self) -> bool:
        """Whether batches hold model steps."""
        return self.real_batch_size < self.batch_size

    @property
    def needs_model(self) -> bool:
        """Whether any ingredient needs a fitted model."""
        return self.uses_model_data or self.horizon > 0 or self.steve_horizon > 0


_POSITIVE = (
    "iterations", "num_envs", "steps_per_iteration", "initial_steps", "real_capacity", "model_capacity",
    "ensemble_size", "model_learning_rate", "model_batch_size", "model_max_epochs", "patience", "obs_limit",
    "model_refreshes", "model_rollouts", "updates_per_iteration", "batch_size", "num_paths", "num_terminal_actions",
    "steve_floor", "learning_rate", "target_rate", "target_update_interval", "initial_temperature", "model_max_ratio",
)  # fmt: skip
_UNIT = ("real_ratio", "gamma", "persistency", "validation_fraction", "target_rate")


def checked(config: Config, spec: EnvSpec) -> Config:
    """Returns ``config`` if it makes sense for an environment.

    Raises:
      InputError: a value out of range, counts that do not divide, or a model where the environment allows none.
    """
    if any(isinstance(value, jax.core.Tracer) for value in vars(config).values()):
        return config  # a sweep, whose every value was checked before it was traced
    check_choices(config)
    for name in _POSITIVE:
        if not (getattr(config, name) > 0 and math.isfinite(getattr(config, name))):
            raise InputError(f"{name}={getattr(config, name)} must be positive.")
    check_parts(config.diagnose_parts, config.batch_size, "batch_size")
    for name in ("horizon", "steve_horizon"):
        if getattr(config, name) < 0:
            raise InputError(f"{name}={getattr(config, name)} must not be negative; 0 uses no model there.")
    for name in _UNIT:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise InputError(f"{name}={getattr(config, name)} must lie in [0, 1].")
    if config.target_entropy is not None and not math.isfinite(config.target_entropy):
        raise InputError(f"target_entropy={config.target_entropy} must be finite, or None.")
    if config.needs_model and not 0.0 < config.validation_fraction < 1.0:
        raise InputError(f"validation_fraction={config.validation_fraction} must lie strictly between 0 and 1.")
    if config.delayed_replay and config.initial_steps <= config.steps_per_iteration:
        raise InputError(
            f"initial_steps={config.initial_steps} must exceed steps_per_iteration={config.steps_per_iteration} with "
            "delayed_replay, or the first updates find an empty replay."
        )
    for name in ("policy_activation", "critic_activation", "model_activation"):
        if getattr(config, name) not in ACTIVATIONS:
            raise unknown(name, getattr(config, name), ACTIVATIONS)
    check_widths(config, "policy_hidden", "critic_hidden", "model_hidden")
    schedule = config.rollout_schedule
    if min(schedule.shortest, schedule.longest) < 1:
        raise InputError(f"rollout_schedule={schedule} has a length below 1; use real_ratio=1 for no model data.")
    divisions = [
        ("steps_per_iteration", config.steps_per_iteration, "num_envs", config.num_envs),
        ("updates_per_iteration", config.updates_per_iteration, "model_refreshes", config.model_refreshes),
    ]
    if config.needs_model:
        members = config.ensemble_size
        divisions += [("model_rollouts", config.model_rollouts, "ensemble_size", members)]
        divisions += [("batch_size", config.batch_size, "ensemble_size", members)]
    if config.diagnose_parts and config.needs_model:
        each = ("ensemble_size x diagnose_parts", config.ensemble_size * config.diagnose_parts)
        divisions += [("batch_size", config.batch_size, *each)]
    for name, value, by, divisor in divisions:
        if value % divisor:
            nearest = max(divisor, round(value / divisor) * divisor)
            raise InputError(f"{name}={value} must be a multiple of {by}={divisor}; the nearest is {nearest}.")
    if max(config.initial_steps, config.steps_per_iteration) > config.real_capacity:
        raise InputError(f"real_capacity={config.real_capacity} must hold initial_steps and steps_per_iteration.")
    _check_env(config, spec)
    return config


def _check_env(config: Config, spec: EnvSpec) -> None:
    if spec.num_actions is not None:
        raise InputError(
            f"env={spec.name!r} has discrete actions: MAAC and its ablations differentiate through continuous ones, as "
            "those of 'pendulum'."
        )
    if config.model_reward_on == "released" and not spec.name.startswith("mbbl/"):
        raise InputError(
            f"model_reward_on='released' exists for mbbl/ environments only, not for {spec.name!r}: use 'env'."
        )
    if config.needs_model and not spec.observable_termination:
        raise InputError(
            f"env={spec.name!r} ends episodes in a way that its observation does not tell, so no model can know when: "
            "use a model-free preset such as 'sac', or an environment without termination such as 'mbbl/halfcheetah'."
        )


_PAPER = Config(env="mbbl/halfcheetah")
_BASES = {
    "paper": _PAPER,
    "paper-ant": dataclasses.replace(
        _PAPER, env="mbbl/ant", policy_activation="tanh", rollout_schedule=RolloutSchedule(longest=25)
    ),
    "paper-hopper": dataclasses.replace(
        _PAPER,
        env="mbbl/hopper",
        policy_activation="tanh",
        critic_activation="tanh",
        rollout_schedule=RolloutSchedule(longest=15),
    ),
    "paper-walker2d": dataclasses.replace(
        _PAPER, env="mbbl/walker2d", policy_activation="tanh", critic_activation="tanh", horizon=2
    ),
    "released": dataclasses.replace(
        _PAPER,
        num_paths=1,
        num_terminal_actions=5,
        restore_best=False,
        released_steve=True,
        noise_exp_log_variance=True,
        model_reward_on="released",
        one_step_rollouts=True,
        delayed_replay=True,
        stochastic_evaluation=True,
    ),
    # Small enough to learn within minutes on two CPU cores.
    "demo": Config(
        env="brax/inverted_double_pendulum/generalized",
        iterations=60,
        num_envs=4,
        steps_per_iteration=200,
        initial_steps=1000,
        real_capacity=20_000,
        model_capacity=20_000,
        ensemble_size=4,
        model_hidden=(128, 128),
        model_max_epochs=6,
        model_refreshes=1,
        model_rollouts=4000,
        updates_per_iteration=400,
        batch_size=128,
        real_ratio=0.25,
        horizon=4,
        num_paths=1,
        steve_horizon=1,
        gamma=0.98,
        target_entropy=-2.5,
        policy_hidden=(128, 128),
        critic_hidden=(128, 128),
        learning_rate=1e-3,
    ),
    "smoke": Config(
        iterations=3,
        num_envs=2,
        steps_per_iteration=64,
        initial_steps=128,
        real_capacity=1024,
        model_capacity=1024,
        ensemble_size=2,
        model_hidden=(16, 16),
        model_batch_size=32,
        model_max_epochs=2,
        model_refreshes=1,
        model_rollouts=64,
        updates_per_iteration=8,
        batch_size=16,
        real_ratio=0.25,
        horizon=2,
        num_paths=2,
        steve_horizon=1,
        policy_hidden=(16, 16),
        critic_hidden=(16, 16),
    ),
}

# A baseline is the same step with ingredients removed.
_ABLATIONS: dict[str, dict] = {
    "sac": {"horizon": 0, "num_paths": 1, "steve_horizon": 0, "real_ratio": 1.0},
    "mbpo": {"horizon": 0, "num_paths": 1, "steve_horizon": 0},
    "steve": {"horizon": 0, "num_paths": 1, "real_ratio": 1.0},
    "maac-h0": {"horizon": 0},
    "maac-single-path": {"num_paths": 1},
    "maac-td": {"steve_horizon": 0},
}

presets: dict[str, Config] = dict(_BASES)
"""Every preset by name. ``sac`` alone is the demo's SAC; ``paper-ant/sac`` that of another base."""
for _name, _changes in _ABLATIONS.items():
    presets[_name] = dataclasses.replace(_BASES["demo"], **_changes)
    presets |= {f"{base}/{_name}": dataclasses.replace(config, **_changes) for base, config in _BASES.items()}
