"""MuJoCo tasks of Gymnasium as host environments whose whole state is explicit.

This is the only file that imports ``gymnasium`` and ``mujoco``. Instances are stepped by a plain loop, or by a few
threads where the physics is heavy enough to pay for them (`worker_count`); the results are the same bits either way.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxhybrid.envs import quiet
from jaxhybrid.envs.facts import GYMNASIUM, UNKNOWN
from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import EnvSpec, HostEnv, TimeStep

with quiet.imports():
    import gymnasium
    import mujoco
    from gymnasium.envs.mujoco import MujocoEnv

__all__ = ["HostState", "instance_seeds", "make", "worker_count"]

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
_WORD = (1 << 64) - 1
# Environments whose whole state is their `state` attribute, a short vector.
_VECTOR_STATE_IDS = ("MountainCarContinuous-v0", "Pendulum-v1")
_DEFAULT_EPISODE_STEPS = 1000


class HostState(NamedTuple):
    """Everything that decides the future of ``N`` host environments; the arrays are read-only.

    Attributes:
      physics: simulator state, float64 ``[N, P]``: for MuJoCo the integration state followed by the body positions that
        some rewards difference, for the classic tasks their state vector behind its item size in bytes.
      steps: steps taken in the current episode, int32 ``[N]``.
      generator: state of each instance's PCG64 generator in 64-bit words, uint64 ``[N, 6]``: state (high, low),
        increment (high, low), whether half a word is buffered, and that half word.
    """

    physics: np.ndarray
    steps: np.ndarray
    generator: np.ndarray


@dataclass
class _Simulators:
    """The live simulators, and the explicit state that they hold at the moment."""

    envs: Sequence[Any]
    limit: int
    obs_dim: int
    pool: ThreadPoolExecutor | None
    chunks: Sequence[range]
    held: HostState | None = field(default=None)


def instance_seeds(seed: int, num_envs: int) -> list[int]:
    """The seeds that ``reset(seed)`` gives to the instances.

    They are hashed from ``seed`` instead of counted up from it: with ``seed + i``, runs of neighbouring seeds would
    share all but one of their instances.
    """
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(num_envs, np.uint32)]


def worker_count(num_envs: int, degrees_of_freedom: int) -> int:
    """Threads that step ``num_envs`` instances, at most one per available core and four in all.

    Only the physics releases the interpreter lock, so threads lose where it is cheap. Two threads on two cores against
    the loop: half cheetah (9 degrees of freedom) 0.7x with 8 instances and 1.1x with 32, hopper (6) 1.05x and 1.4x,
    ant (14) 1.5x and 1.7x, humanoid (23) 1.6x and 1.7x.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(4, cores, num_envs // 4) if num_envs * degrees_of_freedom >= 100 and num_envs >= 8 else 1


def make(env_id: str, *, num_envs: int = 1, max_episode_steps: int | None = None, **env_options: Any) -> HostEnv:
    """Makes ``num_envs`` instances of a Gymnasium task with a continuous action.

    Instances never reset themselves. Actions and observations are passed on as they are: nothing is scaled, and an
    action outside the bounds meets whatever the task does with it (MuJoCo clamps the control, the control cost is that
    of the action given). Observations and rewards are float32.

    Args:
      env_id: a registered id such as ``"HalfCheetah-v5"``.
      num_envs: number ``N`` of instances.
      max_episode_steps: steps after which an episode is truncated; by default the registered limit of the task.
      **env_options: keyword arguments of the task itself, for instance ``terminate_when_unhealthy=False``.

    Returns:
      The host environment; its ``env_state`` is a `HostState`.

    Raises:
      InputError: the id is unknown, its spaces are not boxes of one axis, its state cannot be captured, or a count is
        below one.
    """
    if num_envs < 1:
        raise InputError(f"num_envs={num_envs} must be at least 1.")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")
    envs = [_instance(env_id, env_options) for _ in range(num_envs)]
    registered = gymnasium.spec(env_id).max_episode_steps
    spec = _spec(env_id, envs[0], max_episode_steps or registered or _DEFAULT_EPISODE_STEPS, bool(env_options))
    model = getattr(envs[0], "model", None)
    workers = worker_count(num_envs, 0 if model is None else model.nv)
    cuts = np.linspace(0, num_envs, workers + 1).astype(int).tolist()
    simulators = _Simulators(
        envs=envs,
        limit=spec.max_episode_steps,
        obs_dim=spec.obs_dim,
        pool=ThreadPoolExecutor(workers) if workers > 1 else None,
        chunks=[range(low, high) for low, high in itertools.pairwise(cuts)],
    )
    return HostEnv(
        reset=lambda seed: _reset(simulators, seed),
        step=lambda env_state, action: _step(simulators, env_state, action),
        reset_where=lambda env_state, obs, mask: _reset_where(simulators, env_state, obs, mask),
        close=lambda: _close(simulators),
        num_envs=num_envs,
        spec=spec,
    )


def _instance(env_id: str, env_options: dict[str, Any]) -> Any:
    """Builds one bare task: no time limit, no checker, no reset of its own."""
    if env_id not in gymnasium.registry:
        raise unknown("env_id", env_id, GYMNASIUM)
    try:
        with quiet.loading(mujoco):
            env = gymnasium.make(env_id, disable_env_checker=True, **env_options).unwrapped
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        raise InputError(f"env_id={env_id!r} cannot be built: {' '.join(str(error).split())}") from error
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            env.close()
            raise InputError(
                f"env_id={env_id!r} has the {name} space {space}: only boxes with one axis are supported; "
                f"choose a continuous task such as 'HalfCheetah-v5'."
            )
    if not isinstance(env, MujocoEnv) and env_id not in _VECTOR_STATE_IDS:
        env.close()
        raise InputError(
            f"env_id={env_id!r} keeps state that cannot be saved and restored: choose a MuJoCo task or one of "
            f"{', '.join(_VECTOR_STATE_IDS)}."
        )
    env.reset(seed=0)  # a task that was never reset has no state yet for a saved one to replace
    return env


def _spec(env_id: str, env: Any, max_episode_steps: int, customised: bool) -> EnvSpec:
    """The facts of the task; options of the user's may change its reward, so they turn the tabled ones off."""
    facts = UNKNOWN if customised else GYMNASIUM.get(env_id, UNKNOWN)
    return EnvSpec(
        name=f"gymnasium/{env_id}",
        obs_dim=env.observation_space.shape[0],
        action_dim=env.action_space.shape[0],
        action_low=np.asarray(env.action_space.low, np.float32),
        action_high=np.asarray(env.action_space.high, np.float32),
        max_episode_steps=max_episode_steps,
        dt=float(getattr(env, "dt", 1.0)),
        reward_fn=facts.reward_fn,
        terminated_fn=facts.terminated_fn,
        observable_termination=facts.observable_termination,
        notes=facts.notes,
    )


def _reset(simulators: _Simulators, seed: int) -> tuple[HostState, np.ndarray]:
    envs = simulators.envs
    obs = np.empty((len(envs), simulators.obs_dim), np.float32)
    for i, one_seed in enumerate(instance_seeds(seed, len(envs))):
        obs[i] = envs[i].reset(seed=one_seed)[0]
    state = HostState(
        physics=np.stack([_read_physics(env) for env in envs]),
        steps=np.zeros(len(envs), np.int32),
        generator=np.stack([_read_generator(env) for env in envs]),
    )
    return _hold(simulators, state), obs


def _step(simulators: _Simulators, env_state: HostState, action: np.ndarray) -> tuple[HostState, TimeStep]:
    envs = simulators.envs
    action = np.asarray(action)
    expected = (len(envs), envs[0].action_space.shape[0])
    if action.shape != expected:
        raise InputError(f"action has shape {action.shape}, expected {expected}: one row per instance.")
    if not np.isfinite(action).all():
        raise InputError("action holds a value that is not finite: check the policy before the step that made it.")
    _load(simulators, env_state)
    obs = np.empty((len(envs), simulators.obs_dim), np.float32)
    reward = np.empty(len(envs), np.float32)
    terminated = np.empty(len(envs), bool)
    physics = np.empty_like(env_state.physics)

    def advance(rows: range) -> None:
        for i in rows:
            obs[i], reward[i], terminated[i], _, _ = envs[i].step(action[i])
            physics[i] = _read_physics(envs[i])

    # A failing step leaves the simulators between two states: they then hold none, and the next call sets one.
    simulators.held = None
    if simulators.pool is None:
        advance(range(len(envs)))
    else:
        list(simulators.pool.map(advance, simulators.chunks))
    steps = env_state.steps + np.int32(1)
    held = _hold(simulators, HostState(physics, steps, env_state.generator))
    return held, TimeStep(obs, reward, terminated, steps >= simulators.limit)  # type: ignore[arg-type]


def _reset_where(
    simulators: _Simulators, env_state: HostState, obs: np.ndarray, mask: np.ndarray
) -> tuple[HostState, np.ndarray]:
    envs = simulators.envs
    mask, obs = np.asarray(mask, bool), np.array(obs, np.float32)
    if mask.shape != (len(envs),) or obs.shape != (len(envs), simulators.obs_dim):
        raise InputError(
            f"mask and obs have shapes {mask.shape} and {obs.shape}, "
            f"expected {(len(envs),)} and {(len(envs), simulators.obs_dim)}."
        )
    _load(simulators, env_state)
    state = HostState(*(np.array(leaf) for leaf in env_state))
    simulators.held = None
    for i in np.flatnonzero(mask).tolist():
        obs[i] = envs[i].reset()[0]
        state.physics[i] = _read_physics(envs[i])
        state.steps[i] = 0
        state.generator[i] = _read_generator(envs[i])
    return _hold(simulators, state), obs


def _close(simulators: _Simulators) -> None:
    simulators.held = None
    if simulators.pool is not None:
        simulators.pool.shutdown()
    for env in simulators.envs:
        env.close()


def _hold(simulators: _Simulators, state: HostState) -> HostState:
    """Remembers that the simulators are in ``state``; read-only arrays make its identity stand for its values."""
    for leaf in state:
        leaf.flags.writeable = False
    simulators.held = state
    return state


def _load(simulators: _Simulators, env_state: HostState) -> None:
    """Puts the simulators into ``env_state``; costs nothing when it is the state that the last call returned."""
    held = simulators.held
    if env_state is held:
        return
    size = _read_physics(simulators.envs[0]).size
    for name, dtype, shape in (
        ("physics", np.float64, (len(simulators.envs), size)),
        ("steps", np.int32, (len(simulators.envs),)),
        ("generator", np.uint64, (len(simulators.envs), 6)),
    ):
        leaf = getattr(env_state, name)
        if leaf.dtype != dtype or leaf.shape != shape:
            raise InputError(
                f"env_state.{name} is {leaf.dtype} {leaf.shape}, expected {np.dtype(dtype)} {shape}: "
                f"keep it in NumPy arrays, 32-bit arrays cannot hold it."
            )
    simulators.held = None
    for i, env in enumerate(simulators.envs):
        if held is None or not np.array_equal(held.physics[i], env_state.physics[i]):
            _write_physics(env, np.asarray(env_state.physics[i]))
        if held is None or not np.array_equal(held.generator[i], env_state.generator[i]):
            _write_generator(env, env_state.generator[i])


def _read_physics(env: Any) -> np.ndarray:
    if not isinstance(env, MujocoEnv):
        return np.concatenate([[env.state.dtype.itemsize], env.state])
    model, data = env.model, env.data
    size = mujoco.mj_stateSize(model, _INTEGRATION)
    physics = np.empty(size + 6 * model.nbody)
    mujoco.mj_getState(model, data, physics[:size], _INTEGRATION)
    # MuJoCo leaves body positions half a step behind the joints. Velocities in rewards are differences of them, so they
    # decide the next reward and cannot be recomputed from the joints.
    physics[size : size + 3 * model.nbody] = data.xpos.ravel()
    physics[size + 3 * model.nbody :] = data.xipos.ravel()
    return physics


def _write_physics(env: Any, physics: np.ndarray) -> None:
    if not isinstance(env, MujocoEnv):
        env.state = physics[1:].astype(np.float32 if physics[0] == 4 else np.float64)
        return
    model, data = env.model, env.data
    size = mujoco.mj_stateSize(model, _INTEGRATION)
    mujoco.mj_setState(model, data, physics[:size], _INTEGRATION)
    data.xpos[:] = physics[size : size + 3 * model.nbody].reshape(data.xpos.shape)
    data.xipos[:] = physics[size + 3 * model.nbody :].reshape(data.xipos.shape)


def _read_generator(env: Any) -> np.ndarray:
    state = env.np_random.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise InputError(f"the generator is {state['bit_generator']}, expected PCG64: seed through reset.")
    words = [word for name in ("state", "inc") for word in (state["state"][name] >> 64, state["state"][name] & _WORD)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def _write_generator(env: Any, words: np.ndarray) -> None:
    high, low, inc_high, inc_low, has_uint32, uinteger = (int(word) for word in words)
    env.np_random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": high << 64 | low, "inc": inc_high << 64 | inc_low},
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
