"""Environments by name. A simulator is imported only when one of its environments is made."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from jaxhybrid.envs import catcher, city, city_execution, gridworld, lqr, maze, minigolf, pendulum, simple_maze
from jaxhybrid.envs.wrappers import rescale_actions
from jaxhybrid.errors import unknown
from jaxhybrid.types import Env, HostEnv

__all__ = ["make", "make_rescaled", "names"]

# Spelt out here, because asking the modules would import their simulators; a test compares.
_BRAX = (
    "ant",
    "fast",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)
_GYMNASIUM = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)
_OWN: dict[str, Callable[..., Env]] = {
    "catcher": catcher.make,
    "gridworld": gridworld.make,
    "maze": maze.make,
    "minigolf": minigolf.make,
    "pendulum": pendulum.make,
    "simple_maze": simple_maze.make,
    **{f"city/{task}": functools.partial(city_execution.environment, task) for task in city.TASKS},
}
_MBBL = ("ant", "halfcheetah", "hopper", "swimmer", "walker2d")
_MUJOCO_V1 = ("hopper", "reacher", "swimmer", "walker")


def names() -> list[str]:
    """Returns the names that `make` takes, without the optional last part and without importing a simulator."""
    simulated = {"brax": _BRAX, "gymnasium": _GYMNASIUM, "mbbl": _MBBL, "mujoco_v1": _MUJOCO_V1}
    own = sorted(["lqr/double_integrator", *_OWN])
    return own + [f"{family}/{member}" for family, members in simulated.items() for member in members]


def make(name: str, **options: Any) -> Env | HostEnv:
    """Makes an environment from its name.

    - ``lqr/double_integrator``: options ``gamma``, ``dt``, ``max_episode_steps``, ``action_bound``; see `lqr`.
    - ``catcher``, ``gridworld``, ``maze``, ``minigolf``, ``pendulum``, ``simple_maze``: options of the ``make`` of that
      module.
    - ``city/combination``, ``city/distraction``, ``city/map``, ``city/vanilla``: options of
      `jaxhybrid.envs.city_execution.environment`.
    - ``brax/<env>[/<backend>]``: options of `jaxhybrid.envs.brax.make`.
    - ``gymnasium/<id>``: any registered id; options of `jaxhybrid.envs.gymnasium.make`; a `HostEnv`.
    - ``mbbl/<task>[/<physics>]``: options of `jaxhybrid.envs.mbbl.make`.
    - ``mujoco_v1/<task>``: options of `jaxhybrid.envs.mujoco_v1.make`; a `HostEnv`.

    Args:
      name: the name.
      **options: passed to the module that makes the environment.

    Raises:
      InputError: on an unknown name or option, with the nearest valid ones.
    """
    if name == "lqr/double_integrator":
        return _call(_double_integrator, (), options)
    if name in _OWN:
        return _call(_OWN[name], (), options)
    family, _, rest = name.partition("/")
    # Gymnasium ids may contain slashes, and new ones are registered by other packages.
    parts = (rest,) if family == "gymnasium" else tuple(rest.split("/"))
    most = {"brax": 2, "gymnasium": 1, "mbbl": 2, "mujoco_v1": 1}.get(family, 0)
    listed = len(parts) <= most and f"{family}/{parts[0]}" in names() and all(parts)
    if not listed and not (family == "gymnasium" and rest):
        raise unknown("env", name, names())
    return _call(importlib.import_module(f"jaxhybrid.envs.{family}").make, parts, options)


def make_rescaled(name: str, num_envs: int) -> Env | HostEnv:
    """Makes an environment as systems of continuous actions use it: actions in [-1, 1] where they are bounded.

    Args:
      name: as for `make`.
      num_envs: instances that collect side by side on the host; a system batches a pure environment by itself.

    Raises:
      InputError: an unknown name.
    """
    on_host = name.startswith(("gymnasium/", "mujoco_v1/")) or name.endswith("/mujoco")
    return rescale_actions(make(name, **({"num_envs": num_envs} if on_host else {})))


def _double_integrator(
    *, gamma: float = 0.9, dt: float = 0.05, max_episode_steps: int = 26, action_bound: float = math.inf
) -> Env:
    # 26 steps and gamma = 0.9 go together in the experiment of the model-augmented actor-critic.
    problem = lqr.double_integrator(gamma, dt)
    return lqr.make(problem, "lqr/double_integrator", max_episode_steps, dt=dt, action_bound=action_bound)


def _call(make_fn: Callable[..., Any], parts: tuple[str, ...], options: dict[str, Any]) -> Any:
    """Calls ``make_fn`` and turns an option that it does not have into an error with the options that it has."""
    parameters = inspect.signature(make_fn).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        valid = list(parameters)[len(parts) :]
        for option in options:
            if option not in valid:
                raise unknown("option", option, valid)
    return make_fn(*parts, **options)
