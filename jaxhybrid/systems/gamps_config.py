"""The numbers of gradient-aware model-based policy search: one documented record, and the presets by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxhybrid.errors import InputError, check_choices
from jaxhybrid.estimators.signal import check_parts

__all__ = ["Config", "checked", "presets"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of the algorithm and of its baselines. Defaults are those of the gridworld."""

    domain: Literal["gridworld", "minigolf", "swimmer"] = "gridworld"
    """What is solved; decides policy, model class and data."""
    topology: Literal["two_areas", "literal"] = "two_areas"
    """Geometry of the gridworld; see `envs.gridworld.layout`."""
    far_friction: float = 0.19
    """Friction of minigolf's far area: 0.19 in the line of earlier versions, 0.5 or 1.0 for sand."""
    physics: Literal["mujoco", "generalized"] = "mujoco"
    """Simulator of the swimmer: MuJoCo on the host, or Brax's only back-end for it, inside the compiled step."""
    iterations: int = 100
    """Iterations of fit, evaluation and improvement."""
    trajectories: int = 1000
    """Recorded trajectories, N."""
    episode_steps: int = 50
    """Steps after which a recording ends, T."""
    fresh_trajectories: int = 0
    """Trajectories of the current policy that replace the oldest ones at every iteration; 0 is the batch setting."""
    gamma: float = 0.95
    """Discount factor."""

    model_weights: Literal["gradient_aware", "own_score", "uniform"] = "gradient_aware"
    """Weights of the model's likelihood: as derived, with the step's own score norm only, or maximum likelihood."""
    gradient: Literal["model_value", "per_decision", "reinforce", "exact"] = "model_value"
    """Values of the gradient: the model's, the returns to go, whole returns, or no sample at all (finite problems)."""
    score_order: float = 2.0
    """Norm of the score, q: 1, 2 or infinity."""
    ratios: Literal["plain", "self_normalised", "truncated"] = "plain"
    """Importance ratios; the last two are biased and vary less."""
    max_ratio: float = 10.0
    """Bound of truncated ratios, and of those of the terminal value."""
    ess_fraction: float = 0.0
    """Stop improving when the effective number of trajectories falls below this share; 0 stops when it is one."""

    model_steps: int = 20
    """Steps of one model fit, from the optimum of the previous one: of expectation-maximisation, or of Adam."""
    model_learning_rate: float = 0.02
    """Step size of Adam in the model fit."""
    rollouts: int = 20
    """Model roll-outs per visited pair, M; finite problems solve for the values instead."""
    antithetic: bool = False
    """Whether half of the roll-outs mirror the noise of the others: as unbiased, faster, and of smaller variance."""
    model_horizon: int = 20
    """Steps of each roll-out."""
    terminal_value: Literal["none", "least_squares"] = "none"
    """What follows the last step of a roll-out: nothing, or the current policy's value, fitted to the recordings by
    least-squares temporal differences with ratios up to max_ratio; short roll-outs compound less model error."""
    value_ridge: float = 1e-3
    """Ridge of that fit, relative to the squares of the features."""
    ascent_steps: int = 1
    """Policy steps per fitted model."""
    learning_rate: float = 0.1
    """Step size of Adam on the policy."""

    behaviour_std: float = 0.5
    """Standard deviation of the exploring policy (continuous domains)."""
    policy_std: float = 0.5
    """Standard deviation of the policy that is improved (continuous domains)."""
    eval_episodes: int = 100
    """Episodes per evaluation; finite problems are evaluated exactly."""
    diagnose_parts: int = 0
    """Parts of the data set whose gradients are compared to say how much of the policy gradient is signal; 0: none."""

    @property
    def env(self) -> str:
        """Name of the environment that the domain is played in."""
        return f"mbbl/swimmer/{self.physics}" if self.domain == "swimmer" else self.domain


_POSITIVE = (
    "far_friction",
    "iterations",
    "trajectories",
    "episode_steps",
    "model_steps",
    "model_learning_rate",
    "rollouts",
    "model_horizon",
    "ascent_steps",
    "learning_rate",
    "behaviour_std",
    "policy_std",
    "eval_episodes",
    "max_ratio",
    "value_ridge",
)


def checked(config: Config) -> Config:
    """Returns ``config`` if every field makes sense.

    Raises:
      InputError: names the field, the value and what it must be.
    """
    check_choices(config)
    for name in _POSITIVE:
        value = getattr(config, name)
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name}={value} must be positive.")
    if config.trajectories < 2:
        raise InputError(f"trajectories={config.trajectories} must be at least 2: one says nothing of its variance.")
    if not 0.0 <= config.gamma < 1.0:
        raise InputError(
            f"gamma={config.gamma} must lie in [0, 1): the discounted visits have no distribution otherwise."
        )
    if config.score_order not in (1, 2, math.inf):
        raise InputError(f"score_order={config.score_order} must be 1, 2 or inf.")
    if not 0.0 <= config.ess_fraction < 1.0:
        raise InputError(f"ess_fraction={config.ess_fraction} must lie in [0, 1).")
    if not 0 <= config.fresh_trajectories <= config.trajectories:
        raise InputError(
            f"fresh_trajectories={config.fresh_trajectories} must lie between 0 and trajectories={config.trajectories}."
        )
    if config.gradient == "exact" and config.domain != "gridworld":
        raise InputError(f"gradient='exact' needs a finite problem, and domain={config.domain!r} is none.")
    check_parts(config.diagnose_parts, config.trajectories, "trajectories")
    if config.diagnose_parts and config.gradient == "exact":
        raise InputError("diagnose_parts: gradient='exact' has no noise; leave the diagnosis out.")
    if config.antithetic and config.rollouts % 2:
        raise InputError(f"rollouts={config.rollouts} must be even with antithetic noise: one half mirrors the other.")
    if config.terminal_value != "none" and config.domain == "gridworld":
        raise InputError(
            f"terminal_value={config.terminal_value!r} needs roll-outs, and the gridworld solves for its values: use "
            "'none'."
        )
    return config


_BASES = {
    "gridworld": Config(),
    "minigolf": Config(
        domain="minigolf",
        iterations=30,
        trajectories=50,
        episode_steps=20,
        gamma=0.99,
        model_steps=200,
        rollouts=20,
        model_horizon=20,
        learning_rate=0.01,
        eval_episodes=500,
    ),
    "swimmer": Config(
        domain="swimmer",
        iterations=20,
        trajectories=100,
        episode_steps=100,
        gamma=0.99,
        model_steps=200,
        model_learning_rate=1e-3,
        rollouts=10,
        model_horizon=25,
        learning_rate=0.008,
        behaviour_std=0.6,
        policy_std=0.6,
        eval_episodes=20,
    ),
    "smoke": Config(iterations=5, trajectories=20, episode_steps=20, model_steps=5),
}

# A baseline is the same step with an ingredient exchanged.
_BASELINES: dict[str, dict] = {
    "ml": {"model_weights": "uniform"},
    "own-score": {"model_weights": "own_score"},
    "pgt": {"gradient": "per_decision"},
    "reinforce": {"gradient": "reinforce"},
    "exact": {"gradient": "exact"},
}

presets: dict[str, Config] = {"paper": _BASES["gridworld"]} | _BASES
"""Every preset by name. ``ml`` alone is the gridworld's; ``minigolf/ml`` that of another base."""
for _name, _changes in _BASELINES.items():
    presets[_name] = dataclasses.replace(_BASES["gridworld"], **_changes)
    for _base, _config in _BASES.items():
        if _name != "exact" or _config.domain == "gridworld":
            presets[f"{_base}/{_name}"] = dataclasses.replace(_config, **_changes)
