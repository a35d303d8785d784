"""The numbers of CRAR and GMAS: one documented record, and the presets that differ from each other by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax

from jaxhybrid.envs.maze_pool import NUM_KEYS, SIDES
from jaxhybrid.errors import InputError, check_choices
from jaxhybrid.estimators.signal import check_parts
from jaxhybrid.types import EnvSpec

__all__ = ["Config", "checked", "presets"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of GMAS; with ``alpha=0`` CRAR. Defaults are those of the released CRAR on the mazes, read correctly."""

    env: str = ""
    """Environment the numbers are meant for; empty: any."""
    iterations: int = 250
    """Iterations of the main loop, with an evaluation after each."""
    updates_per_iteration: int = 2000
    """Gradient updates per iteration."""
    num_tuples: int = 200_000
    """Steps of random moves, collected once: all there is to learn from."""
    generator: Literal["deer", "fair"] = "deer"
    """Which mazes: those of the released CRAR, or evenly drawn ones; see `envs.maze_pool`."""
    maze_side: int = 8
    """Cells a side of a maze, the outer walls included; fewer make an easier problem than the papers'."""
    maze_keys: int = 3
    """Keys in a maze."""
    train_mazes: int = 4096
    """Mazes that random moves are made in; eight seeds use some two thousand. Tests are in mazes that are not among
    them."""
    train_limit: int | None = None
    """Steps after which an episode of random moves in a maze is cut off; None as in the papers, 50 would show eight
    times as many mazes in as many steps."""

    abstract: Literal["map", "vector"] = "map"
    """Whether abstract states are feature maps, or vectors short enough to be drawn."""
    abstract_size: int = 3
    """Channels of a map, or numbers in a vector."""
    compiled_convolution: bool = False
    """Whether to learn with the compiler's convolution: better on an accelerator, ten times slower on a CPU."""
    share_patches: bool = True
    """Whether equal patches of a batch are encoded once, where observations are cells: exact, and on a CPU some five
    times faster; an accelerator is better off without."""

    batch_size: int = 32
    """Steps per update."""
    gamma: float = 0.9
    """Discount factor."""
    loss_mode: Literal["sequential", "joint"] = "sequential"
    """Whether each loss takes an optimiser step of its own, the next one starting from its result, or their sum one."""
    learning_rate: float = 5e-4
    """RMSprop step size."""
    learning_rate_decay: float = 1.0
    """Factor on the step size per iteration."""
    rms_decay: float = 0.9
    """Weight of the past in RMSprop's mean square."""
    rms_epsilon: float = 1e-4
    """Added to the root mean square: gradients below it are not scaled up."""
    clip_norm: float = 1.0
    """Bound on the length of a loss's gradient."""
    clip: Literal["global", "per_tensor"] = "global"
    """Whether the bound is on all tensors together, as when CRAR was published, or on each, as in later releases."""
    target_interval: int = 1000
    """Updates between two copies to the slow encoder and critic."""
    beta: float = 1.0
    """Step size of the consecutive-pair loss relative to the others (its weight, where the optimiser is joint)."""
    sharpness: float = 5.0
    """How fast the repulsion of two abstract states falls with their distance, C."""
    max_square: float = 10.0
    """Squared distance from which on two states no longer repel each other."""
    error: Literal["squared", "absolute"] = "squared"
    """Error of the model's predictions: squared as released, absolute as the GMAS paper prints."""
    volume_bound: Literal["position", "whole", "printed"] = "position"
    """What is kept inside the unit ball; see `losses.abstract.volume_loss`."""
    blank_terminal: bool = False
    """As released: the picture after a terminal step is all zeros."""
    mean_td: bool = False
    """As released: the squared error of the critic is averaged over all actions, which divides it by their number."""

    alpha: float = 0.0
    """Weight of gradient matching; 0 is CRAR."""
    distance: Literal["cosine", "l2"] = "cosine"
    """Distance of slopes."""
    match_depth: int = 3
    """Depth of the planner whose slope is the target."""
    match_branching: int | None = 2
    """Actions that this planner expands below the root; None: all."""
    match_actions: Literal["taken", "all"] = "taken"
    """Whose slopes are matched."""
    depth_weighting: Literal["uniform", "discounted", "inverse_error", "accurate"] = "uniform"
    """How depths are mixed into the target slope: alike as in the paper, or one of its three proposals."""
    depth_decay: float = 0.5
    """Factor per depth of "discounted", gamma'."""
    error_scale: float = 0.1
    """Model error, relative to the spread of abstract states, that halves a weight of "inverse_error"."""
    error_threshold: float = 0.3
    """Largest relative model error that "accurate" trusts."""

    plan_depth: int = 3
    """Depth of the planner that acts."""
    plan_branching: int | None = 2
    """Actions that it expands below the root; None: all."""
    test_depths: tuple[int, ...] = (0, 1, 3, 5)
    """Planning depths of the test after each iteration, where there is a test environment."""
    test_episodes: int = 256
    """Episodes of each test, the same ones every time."""
    test_epsilon: float = 0.1
    """Share of random moves in the second half of the tests; the first half has none."""
    diagnose_parts: int = 0
    """Parts of a batch whose gradients are compared to say how much of the critic's is signal; 0: none."""


_POSITIVE = (
    "iterations", "updates_per_iteration", "num_tuples", "train_mazes", "abstract_size", "batch_size", "learning_rate",
    "learning_rate_decay", "rms_epsilon", "clip_norm", "target_interval", "sharpness", "max_square", "error_scale",
    "test_episodes",
)  # fmt: skip
_NOT_NEGATIVE = ("beta", "alpha", "match_depth", "plan_depth", "error_threshold")
_UNIT = ("gamma", "rms_decay", "depth_decay", "test_epsilon")


def checked(config: Config, spec: EnvSpec) -> Config:
    """Returns ``config`` if it makes sense for an environment.

    Raises:
      InputError: a value out of range, an unknown choice, or an environment whose actions are real vectors.
    """
    if any(isinstance(value, jax.core.Tracer) for value in vars(config).values()):
        return config  # a sweep, whose every value was checked before it was traced
    if spec.num_actions is None:
        raise InputError(f"env={spec.name!r} has real-valued actions: planning over a tree needs discrete ones.")
    check_choices(config)
    for name in _POSITIVE:
        if not 0 < getattr(config, name) < math.inf:
            raise InputError(f"{name}={getattr(config, name)} must be positive.")
    for name in _NOT_NEGATIVE:
        if not 0 <= getattr(config, name) < math.inf:
            raise InputError(f"{name}={getattr(config, name)} must be 0 or more.")
    for name in _UNIT:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise InputError(f"{name}={getattr(config, name)} must lie in [0, 1].")
    for name in ("train_limit", "match_branching", "plan_branching"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1, or None.")
    if config.maze_side not in SIDES:
        raise InputError(f"maze_side={config.maze_side} must be one of {SIDES}.")
    if not 1 <= config.maze_keys <= NUM_KEYS:
        raise InputError(f"maze_keys={config.maze_keys} must lie between 1 and {NUM_KEYS}.")
    if min(config.test_depths, default=0) < 0:
        raise InputError(f"test_depths={config.test_depths} must not be negative.")
    if config.num_tuples <= config.match_depth:
        raise InputError(f"num_tuples={config.num_tuples} must exceed match_depth={config.match_depth}.")
    check_parts(config.diagnose_parts, config.batch_size, "batch_size")
    return config


_CRAR = Config(env="maze")
# The GMAS paper's own step size, which it found better for CRAR too, and its half of the data.
_GMAS = dataclasses.replace(_CRAR, learning_rate=1e-3, num_tuples=100_000)
_COSINE = dataclasses.replace(_GMAS, alpha=0.05, distance="cosine")
_L2 = dataclasses.replace(_GMAS, alpha=1.0, distance="l2")
_SMALL = Config(abstract="vector", beta=0.2, learning_rate_decay=0.9, test_depths=())

_REDUCED = dataclasses.replace(
    _GMAS,
    generator="fair",
    maze_side=6,
    maze_keys=1,
    train_mazes=96,
    num_tuples=20_000,
    loss_mode="joint",
    iterations=6,
    updates_per_iteration=800,
    test_depths=(0, 1, 3),
    test_episodes=64,
)

presets: dict[str, Config] = {
    "crar": dataclasses.replace(_GMAS, alpha=0.0),
    "gmas-cosine": _COSINE,
    "gmas-l2": _L2,
    **{f"gmas-cosine/depth{depth}": dataclasses.replace(_COSINE, match_depth=depth) for depth in (1, 3, 5)},
    **{f"gmas-l2/depth{depth}": dataclasses.replace(_L2, match_depth=depth) for depth in (1, 3, 5)},
    "released": dataclasses.replace(_CRAR, blank_terminal=True, mean_td=True, test_depths=(0, 1, 3, 6)),
    "simple_maze": dataclasses.replace(
        _SMALL, env="simple_maze", abstract_size=2, iterations=50, updates_per_iteration=5000, num_tuples=5000
    ),
    "catcher": dataclasses.replace(_SMALL, env="catcher", iterations=50, num_tuples=5000),
    # The papers' problem at a size that two CPU cores can chew on; too few updates to learn it.
    "demo": dataclasses.replace(
        _COSINE, num_tuples=20_000, iterations=5, updates_per_iteration=100, test_depths=(0, 1), test_episodes=64
    ),
    # Half the free cells and one key: another, easier problem than the papers'.
    "reduced": _REDUCED,
    "reduced/gmas": dataclasses.replace(_REDUCED, alpha=0.05),
    # Meant for any environment with pictures; one optimiser, as seven in turn take several times as long to compile.
    "smoke": Config(
        loss_mode="joint",
        iterations=2,
        updates_per_iteration=2,
        num_tuples=64,
        abstract="vector",
        batch_size=4,
        alpha=0.05,
        match_depth=1,
        plan_depth=1,
        test_depths=(0, 1),
        test_episodes=2,
    ),
}
"""Every preset by name. CRAR is GMAS without the matching; ``released`` is CRAR with the original's quirks."""
