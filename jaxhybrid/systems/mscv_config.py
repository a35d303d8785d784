"""The numbers of MSCV: one documented record, and the presets that differ from each other by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax

from jaxhybrid.errors import InputError, check_choices, unknown
from jaxhybrid.estimators.signal import check_parts
from jaxhybrid.networks import ACTIVATIONS, check_widths
from jaxhybrid.types import EnvSpec

__all__ = ["Config", "checked", "presets"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of MSCV and of what it is compared with. Defaults are the paper's, read so that nothing is biased."""

    env: str = ""
    """Environment the numbers are meant for; empty: any."""
    iterations: int = 100
    """Iterations of the main loop: collect, one policy step, fit."""

    num_envs: int = 5
    """Environments that collect side by side."""
    steps_per_iteration: int = 5000
    """Steps of a batch, over all environments together."""
    gamma: float = 0.995
    """Discount factor."""
    return_lambda: float = 1.0
    """1: the return itself. Less trusts the value function more: less variance, and its bias (0.97 in the code that the
    paper's numbers come from)."""
    time_limit_ends: bool = False
    """Whether nothing is earned after the time limit; else its value is bootstrapped, as after the end of a batch."""

    estimator: Literal["mscv", "qprop", "svg"] = "mscv"
    """What the policy gradient is: control variate and correction, the critic's tangent, or the slope alone."""
    horizon: int = 2
    """Model steps k of the control variate, the most of them if a rule chooses; 0 uses no model."""
    eta: float = 1.0
    """Coefficient of the control variate."""
    eta_rule: Literal["fixed", "optimal", "per_tensor"] = "fixed"
    """"optimal" takes Cov(A, A_hat) / Var(A_hat) in the place of eta. "per_tensor" gives every tensor of the policy a
    coefficient of its own, from the gradients of groups of steps; the line search goes by the optimal one."""
    horizon_rule: Literal["fixed", "cov", "corr"] = "fixed"
    """"cov": the longest horizon up to k whose advantages correlate positively; "corr": the best correlated one."""
    choose_on: Literal["past", "batch"] = "past"
    """What the rules look at: the batch before this one, or this one, which is biased."""
    qprop_reading: Literal["unbiased", "released"] = "unbiased"
    """As released, Q-Prop is biased twice; see `losses.control_variate.qprop_loss`."""
    fresh_paths: int = 0
    """Roll-outs with fresh noise over which the slope is averaged; 0 takes the recorded noise."""
    warmup_iterations: int = 2
    """First iterations without control variate, while the model learns: TRPO, or with "svg" no step."""
    segment_chunk: int = 1000
    """Segments that are processed at once, which bounds the memory."""

    diagnose_parts: int = 0
    """Parts of a batch whose gradients are compared to say how much of the policy gradient is signal; 0: none."""

    max_kl: float = 0.01
    """Size of the trust region in nats per state."""
    damping: float = 0.1
    """Added to the diagonal of the Fisher information."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations."""
    backtracks: int = 10
    """Most tries of the line search, each half as far."""
    hard_kl: bool = True
    """Whether a step must stay in the trust region, and not only its quadratic model."""

    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of policy and value function."""
    activation: str = "tanh"
    """Their activation."""
    initial_log_std: float = 0.0
    """Logarithm of the policy's standard deviation at the start."""
    obs_limit: float = 5.0
    """Standard deviations at which the observation filter clips."""

    memory: int = 20
    """Batches that model and value function are fitted on."""
    model_hidden: tuple[int, ...] = (500,)
    """Hidden layers of the model's two networks."""
    model_activation: str = "relu"
    """Their activation."""
    model_learning_rate: float = 1e-3
    """Adam step size of the model."""
    model_updates: int = 200
    """Gradient steps of the model per iteration."""
    model_batch_size: int = 512
    """Windows of k steps per gradient step."""
    reward_weight: float = 10.0
    """Weight alpha of the reward's error."""
    model_weights: Literal["uniform", "own_score"] = "uniform"
    """Weights of real steps in the model's error: one each, or gradient-aware ones, by the norm of each step's own
    score under the current policy times its truncated ratio to the policy that took it (`rollout_values.score_weights`:
    a window does not keep the past that the cumulated weights sum over). A step's weight multiplies its own term of the
    unrolled error; the mean over memory is one."""
    model_max_ratio: float = 10.0
    """Bound of that ratio."""
    reward: Literal["learnt", "known"] = "learnt"
    """Reward inside the model: learnt, or the environment's own."""
    value_learning_rate: float = 1e-3
    """Adam step size of the value function."""
    value_updates: int = 200
    """Gradient steps of the value function per iteration."""
    value_batch_size: int = 512
    """Steps per gradient step."""
    value_target_rate: float = 0.02
    """Rate 1 - sigma at which the slow copy of the value function follows."""
    max_ratio: float = 10.0
    """Clip of the value function's importance weights; it biases the value function, never the gradient."""

    @property
    def num_steps(self) -> int:
        """Steps of each environment per iteration."""
        return self.steps_per_iteration // self.num_envs

    @property
    def needs_model(self) -> bool:
        """Whether any model step is taken."""
        return self.horizon > 0


_POSITIVE = (
    "iterations", "num_envs", "steps_per_iteration", "segment_chunk", "max_kl", "cg_iterations", "backtracks",
    "obs_limit", "memory", "model_learning_rate", "model_updates", "model_batch_size", "value_learning_rate",
    "value_updates", "value_batch_size", "value_target_rate", "max_ratio", "model_max_ratio",
)  # fmt: skip
_NOT_NEGATIVE = ("horizon", "fresh_paths", "warmup_iterations", "damping", "reward_weight")
_UNIT = ("gamma", "return_lambda", "value_target_rate")


def checked(config: Config, spec: EnvSpec) -> Config:
    """Returns ``config`` if it makes sense for an environment.

    Raises:
      InputError: a value out of range, counts that do not divide, or what the environment cannot give.
    """
    if any(isinstance(value, jax.core.Tracer) for value in vars(config).values()):
        return config  # a sweep, whose every value was checked before it was traced
    for name in _POSITIVE + _NOT_NEGATIVE:
        value = getattr(config, name)
        if not (math.isfinite(value) and (value > 0 or (name in _NOT_NEGATIVE and value == 0))):
            raise InputError(f"{name}={value} must be {'positive' if name in _POSITIVE else '0 or more'}.")
    for name in ("eta", "initial_log_std"):
        if not math.isfinite(getattr(config, name)):
            raise InputError(f"{name}={getattr(config, name)} must be finite.")
    for name in _UNIT:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise InputError(f"{name}={getattr(config, name)} must lie in [0, 1].")
    check_choices(config)
    for name in ("activation", "model_activation"):
        if getattr(config, name) not in ACTIVATIONS:
            raise unknown(name, getattr(config, name), ACTIVATIONS)
    check_widths(config, "hidden", "model_hidden")
    for name, value, by, divisor in (
        ("steps_per_iteration", config.steps_per_iteration, "num_envs", config.num_envs),
        ("steps_per_iteration", config.steps_per_iteration, "segment_chunk", config.segment_chunk),
    ):
        if value % divisor:
            nearest = max(divisor, round(value / divisor) * divisor)
            raise InputError(f"{name}={value} must be a multiple of {by}={divisor}; the nearest is {nearest}.")
    check_parts(config.diagnose_parts, config.steps_per_iteration, "steps_per_iteration")
    _check_episodes(config, spec)
    _check_model(config, spec)
    return config


def _check_episodes(config: Config, spec: EnvSpec) -> None:
    if spec.num_actions is not None:
        raise InputError(f"env={spec.name!r} has discrete actions: MSCV differentiates through continuous ones.")
    if config.horizon > config.num_steps:
        raise InputError(
            f"horizon={config.horizon} is longer than the {config.num_steps} steps of each environment per iteration: "
            "shorten it, or collect with fewer num_envs."
        )
    if config.return_lambda == 1.0 and config.num_steps < spec.max_episode_steps:
        raise InputError(
            f"steps_per_iteration={config.steps_per_iteration} are {config.num_steps} of each of num_envs="
            f"{config.num_envs}, and an episode of {spec.name!r} may last {spec.max_episode_steps}: a batch may finish "
            "none, so it has no full return. Collect more, use fewer num_envs, or a return_lambda below 1."
        )


def _check_model(config: Config, spec: EnvSpec) -> None:
    if config.estimator != "mscv" and not config.needs_model:
        raise InputError(f"horizon=0 has no model, which estimator={config.estimator!r} needs: use 1 or more.")
    if config.estimator == "svg" and (config.eta_rule, config.horizon_rule) != ("fixed", "fixed"):
        raise InputError("estimator='svg' has no coefficient and corrects nothing: leave the rules 'fixed'.")
    if config.estimator == "qprop" and config.horizon != 1:
        raise InputError(f"horizon={config.horizon} must be 1 with estimator='qprop', whose critic is one model step.")
    if config.estimator == "qprop" and config.fresh_paths:
        raise InputError(f"fresh_paths={config.fresh_paths} are not drawn with estimator='qprop': leave it 0.")
    if config.horizon_rule != "fixed" and (config.estimator == "qprop" or not config.needs_model):
        raise InputError(
            f"horizon_rule={config.horizon_rule!r} has nothing to choose with horizon={config.horizon} and estimator="
            f"{config.estimator!r}: leave it 'fixed'."
        )
    if config.reward == "known" and spec.reward_fn is None:
        raise InputError(f"reward='known' is not: the observation of {spec.name!r} does not tell it; use 'learnt'.")


_PAPER = Config(env="mujoco_v1/swimmer")
_BASES = {
    "paper": _PAPER,
    "paper-reacher": dataclasses.replace(_PAPER, env="mujoco_v1/reacher", num_envs=10),
    "paper-hopper": dataclasses.replace(_PAPER, env="mujoco_v1/hopper"),
    "paper-walker": dataclasses.replace(
        _PAPER, env="mujoco_v1/walker", steps_per_iteration=25_000, num_envs=25, iterations=300
    ),
    # Learns within a minute or two on two CPU cores.
    "demo": Config(
        iterations=40,
        num_envs=10,
        steps_per_iteration=2000,
        gamma=0.98,
        segment_chunk=2000,
        model_hidden=(64,),
        model_updates=100,
        model_batch_size=256,
        value_updates=100,
        value_batch_size=256,
    ),
    "smoke": Config(
        iterations=3,
        num_envs=2,
        steps_per_iteration=64,
        gamma=0.9,
        return_lambda=0.97,
        warmup_iterations=1,
        segment_chunk=32,
        hidden=(8,),
        memory=2,
        model_hidden=(8,),
        model_updates=4,
        model_batch_size=8,
        value_updates=4,
        value_batch_size=8,
    ),
}

# A baseline is the same step with ingredients removed.
_METHODS: dict[str, dict] = {
    "trpo": {"eta": 0.0, "horizon": 0},
    "qprop": {"estimator": "qprop", "horizon": 1},
    "svg": {"estimator": "svg", "horizon": 1},
    # The roll-out never ends in theory; after 50 steps it ends with the value function here.
    "svg-inf": {"estimator": "svg", "horizon": 50},
    "optimal": {"eta_rule": "optimal"},
    "per-tensor": {"eta_rule": "per_tensor"},
}

presets: dict[str, Config] = dict(_BASES)
"""Every preset by name. ``trpo`` alone is the paper's on swimmer; ``paper-hopper/trpo`` that of another base."""
for _name, _changes in _METHODS.items():
    presets[_name] = dataclasses.replace(_PAPER, **_changes)
    presets |= {
        f"{base}/{_name}": dataclasses.replace(
            config, **(_changes | {"horizon": min(_changes.get("horizon", 2), config.num_steps)})
        )
        for base, config in _BASES.items()
    }
