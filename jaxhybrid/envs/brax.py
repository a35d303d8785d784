"""Brax tasks as pure environments. This is the only file that imports ``brax``.

A task is used bare, without Brax's wrappers: those replace the last observation of an episode by the first of the next
one and report time limits as terminations.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import facts, quiet
from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Env, EnvSpec, Key, PyTree, TimeStep

with quiet.imports():
    from brax import envs as brax_envs
    from brax import fluid as brax_fluid
    from brax.io import mjcf as brax_mjcf

__all__ = ["GRADIENTS", "SUPPORTED", "BraxState", "GradientProfile", "make"]

_EPISODE_STEPS = 1000
_HAS_HEALTH = ("ant", "hopper", "humanoid", "walker2d")


class GradientProfile(NamedTuple):
    """What reverse mode through a step is worth; see the fields of the same meaning in `jaxhybrid.types.EnvSpec`."""

    transition: bool
    reward: bool
    notes: str = ""


_ALL = ("spring", "positional", "generalized", "mjx")
# Every combination was built and stepped. The first back-end is a task's default: "spring" wherever it exists, because
# its gradients agree best with finite differences.
SUPPORTED: dict[str, tuple[str, ...]] = {
    "ant": _ALL,
    "fast": _ALL,
    "halfcheetah": _ALL,
    "hopper": _ALL,
    "humanoid": _ALL,
    "humanoidstandup": _ALL,
    "inverted_double_pendulum": _ALL,
    "inverted_pendulum": _ALL,
    "pusher": _ALL,
    "reacher": _ALL,
    "swimmer": ("generalized",),
    "walker2d": _ALL,
}

_AGREES = GradientProfile(True, True)
_CONSTANT = GradientProfile(True, False, "The reward is constant, so its gradient is exactly zero.")
_RAISES = GradientProfile(False, False, "Reverse mode raises: the contact solver is a while loop.")
_UNCOMPARED = GradientProfile(False, False, "Gradients of this back-end were not compared with finite differences.")
_ZERO = GradientProfile(False, False, "Only the action's sign matters: every gradient is exactly zero.")


def _wrong(what: str) -> GradientProfile:
    return GradientProfile(False, False, f"Gradients are finite and wrong on this back-end: {what}.")


# Reverse mode against central differences over three steps from one standard start each: this shows where gradients
# exist and agree, not how often.
GRADIENTS: dict[str, dict[str, GradientProfile]] = {
    "ant": {
        "spring": _AGREES,
        "positional": _UNCOMPARED,
        "generalized": _wrong("against differences of -4.46 and 3.17 they give -0.54 and -0.11"),
        "mjx": _AGREES,
    },
    "fast": dict.fromkeys(_ALL, _ZERO),
    "halfcheetah": {
        "spring": _wrong("where feet touch, single components are 20 % off"),
        "positional": GradientProfile(True, True, "Returns jump near contacts, beside which the gradient is exact."),
        "generalized": _wrong("returns jump next to almost every point"),
        "mjx": _RAISES,
    },
    "hopper": {
        "spring": _AGREES,
        "positional": _AGREES,
        "generalized": _wrong("against a difference of 0.097 they give 0.152"),
        "mjx": _RAISES,
    },
    "humanoid": {"spring": _AGREES, "positional": _UNCOMPARED, "generalized": _AGREES, "mjx": _AGREES},
    "humanoidstandup": dict.fromkeys(_ALL, _UNCOMPARED),
    "inverted_double_pendulum": {"spring": _AGREES, "positional": _AGREES, "generalized": _AGREES, "mjx": _RAISES},
    "inverted_pendulum": {"spring": _CONSTANT, "positional": _CONSTANT, "generalized": _CONSTANT, "mjx": _RAISES},
    "pusher": {"spring": _AGREES, "positional": _UNCOMPARED, "generalized": _AGREES, "mjx": _RAISES},
    "reacher": {"spring": _AGREES, "positional": _AGREES, "generalized": _AGREES, "mjx": _RAISES},
    "swimmer": {"generalized": _AGREES},
    "walker2d": {
        "spring": _AGREES,
        "positional": _UNCOMPARED,
        "generalized": _wrong("against differences of 0.28 and 0.70 they give 0.22 and 0.82"),
        "mjx": _RAISES,
    },
}


class BraxState(NamedTuple):
    """State of one environment.

    Attributes:
      physics: the back-end's own state.
      steps: steps taken in the episode, int32 ``[]``.
    """

    physics: PyTree
    steps: Array


def make(
    env_name: str,
    backend: str | None = None,
    *,
    max_episode_steps: int | None = None,
    terminate_when_unhealthy: bool = True,
) -> Env:
    """Makes a Brax task.

    Actions ``[A]`` lie in [-1, 1]. ``terminated`` is the task's own health check, ``truncated`` a step counter in
    ``env_state``, ``obs [D]`` the observation after the step. The dynamics is deterministic: the key of ``step`` is not
    used.

    Args:
      env_name: a key of `SUPPORTED`.
      backend: one of ``SUPPORTED[env_name]``; by default the first of them.
      max_episode_steps: steps after which an episode is truncated; 1000 by default, Brax's own convention.
      terminate_when_unhealthy: False goes on after a fall, and the task then pays its alive bonus only while healthy.

    Returns:
      The environment; its ``env_state`` is a `BraxState`.

    Raises:
      InputError: the task or back-end is unknown, the count is below one, or the task has no health check to turn off.
    """
    if env_name not in SUPPORTED:
        raise unknown("env_name", env_name, SUPPORTED)
    backend = SUPPORTED[env_name][0] if backend is None else backend
    if backend not in SUPPORTED[env_name]:
        raise unknown(f"backend of {env_name!r}", backend, SUPPORTED[env_name])
    limit = _EPISODE_STEPS if max_episode_steps is None else max_episode_steps
    if limit < 1:
        raise InputError(f"max_episode_steps={limit} must be at least 1.")
    options: dict[str, Any] = {"backend": backend}
    if not terminate_when_unhealthy:
        if env_name not in _HAS_HEALTH:
            raise InputError(f"terminate_when_unhealthy=False means nothing to {env_name!r}: leave it out.")
        options["terminate_when_unhealthy"] = False
    if env_name == "swimmer":
        _repair_fluid()
    with quiet.loading(brax_mjcf.mujoco):
        task = brax_envs.get_environment(env_name, **options)
    spec = _spec(env_name, backend, task, limit, terminate_when_unhealthy)
    return Env(
        reset=functools.partial(_reset, task),
        step=functools.partial(_step, task, spec),
        spec=spec,
    )


def _reset(task: Any, key: Key) -> tuple[BraxState, Array]:
    with _tracing():
        state = task.reset(key)
    return BraxState(state.pipeline_state, jnp.zeros((), jnp.int32)), state.obs


def _step(task: Any, spec: EnvSpec, env_state: BraxState, action: Array, key: Key) -> tuple[BraxState, TimeStep]:
    del key
    if jnp.shape(action) != (spec.action_dim,):
        raise InputError(f"action has shape {jnp.shape(action)}, expected {(spec.action_dim,)}: vmap gives a batch.")
    zero = jnp.zeros(())
    # Brax updates the metrics in place: a fresh dictionary each time keeps the step pure.
    before = brax_envs.State(env_state.physics, obs=zero, reward=zero, done=zero, metrics={}, info={})
    with _tracing():
        after = task.step(before, action)
    steps = env_state.steps + 1
    return BraxState(after.pipeline_state, steps), TimeStep(
        obs=after.obs,
        reward=jnp.asarray(after.reward, after.obs.dtype),
        terminated=jnp.asarray(after.done, bool),
        truncated=steps >= spec.max_episode_steps,
    )


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    # Brax broadcasts arrays of different rank on purpose.
    with quiet.tracing(), jax.numpy_rank_promotion("allow"):
        yield


def _spec(env_name: str, backend: str, task: Any, limit: int, terminates: bool) -> EnvSpec:
    gradient = GRADIENTS[env_name][backend]
    with _tracing():
        obs_dim = jax.eval_shape(task.reset, jax.random.key(0)).obs.shape[0]
    dt = float(task._dt if env_name == "fast" else task.dt)
    known = facts.brax(env_name, backend, dt)
    return EnvSpec(
        name=f"brax/{env_name}/{backend}",
        obs_dim=obs_dim,
        action_dim=task.action_size,
        action_low=-np.ones(task.action_size, np.float32),
        action_high=np.ones(task.action_size, np.float32),
        max_episode_steps=limit,
        dt=dt,
        reward_fn=known.reward_fn,
        terminated_fn=known.terminated_fn if terminates else None,
        observable_termination=known.observable_termination or not terminates,
        differentiable_transition=gradient.transition,
        differentiable_reward=gradient.reward,
        notes=" ".join(note for note in (known.notes, gradient.notes) if note),
    )


def _repair_fluid() -> None:
    """Lets Brax's fluid forces, which call ``clip(x, a_min=...)``, run on JAX versions without that argument name.

    Only the name that ``brax.fluid`` itself looks up is replaced; ``jax.numpy`` stays as it is.
    """
    if "a_min" in inspect.signature(jnp.clip).parameters or isinstance(brax_fluid.jp, types.SimpleNamespace):
        return

    def clip(x: Array, a_min: Array | float | None = None, a_max: Array | float | None = None) -> Array:
        return jnp.clip(x, a_min, a_max)

    brax_fluid.jp = types.SimpleNamespace(**{**vars(jnp), "clip": clip})
