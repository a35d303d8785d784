"""Pure environments as Gymnasium's vector environments, for code that expects those.

This file inherits and keeps state, since Gymnasium's interface is a class with both. What it does is
`envs.episodes.auto_reset`, vmapped and compiled once: one call of a device program per step, however many instances.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import episodes, quiet
from jaxhybrid.envs.episodes import EpisodeEnd, Worker
from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

with quiet.imports():
    import gymnasium
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector.utils import batch_space

__all__ = ["make"]

_MOST_SEED = 2**31


def make(env: Env, num_envs: int) -> gymnasium.vector.VectorEnv:
    """Returns ``num_envs`` instances of an environment as one `gymnasium.vector.VectorEnv`.

    Instances reset themselves in the step that ends their episode (``AutoresetMode.SAME_STEP``, which the metadata
    state): ``obs`` is then the first one of the next episode, and ``info["final_obs"]`` has the true last one, from
    which a value is bootstrapped, where ``info["_final_obs"]`` is True.

    ``reset(seed)`` starts from ``jax.random.key(seed)``; ``reset()`` draws a seed from the generator that the last one
    seeded. Each step splits one key for its instances. Actions that are vectors are passed on as they are; use
    `envs.wrappers.rescale_actions` for [-1, 1].

    Args:
      env: a pure environment; one that runs on the host is Gymnasium's already.
      num_envs: ``N``.

    Raises:
      InputError: an environment that is not pure, or a number below 1.
    """
    if not isinstance(env, Env):
        raise InputError(f"env is a {type(env).__name__}: only pure environments can be batched here.")
    if num_envs < 1:
        raise InputError(f"num_envs={num_envs} must be at least 1.")
    return _VectorEnv(env, num_envs)


class _VectorEnv(gymnasium.vector.VectorEnv):
    def __init__(self, env: Env, num_envs: int):
        spec = env.spec
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.num_envs = num_envs
        shape = spec.obs_shape or (spec.obs_dim,)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_action_space = _action_space(spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._name = spec.name
        self._key: Key | None = None
        self._workers: Worker | None = None
        self._reset_program, self._step_program = _programs(env, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if options:
            raise InputError(f"options={options!r} are not known: leave them out.")
        if seed is not None and not 0 <= seed < _MOST_SEED:
            raise InputError(f"seed={seed} must be from 0 to {_MOST_SEED - 1}.")
        super().reset(seed=seed)
        start = int(self.np_random.integers(_MOST_SEED)) if seed is None else int(seed)
        self._key, self._workers = self._reset_program(jax.random.key(start))
        return np.array(self._workers.obs), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._workers is None:
            raise InputError("step was called before reset: call reset first.")
        actions = self._checked(actions)
        self._key, self._workers, time_step, end = self._step_program(self._key, self._workers, actions)
        # Copies, because users keep and change what they are given.
        return (
            np.array(self._workers.obs),
            np.asarray(time_step.reward, np.float64),
            np.array(time_step.terminated),
            np.array(time_step.truncated),
            _info(np.asarray(time_step.obs), np.array(end.ended)),
        )

    def _checked(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InputError(f"actions have shape {actions.shape}, expected {self.action_space.shape}.")
        if isinstance(self.single_action_space, gymnasium.spaces.Discrete):
            # Not `contains`, which wants one type of integer.
            if not np.isin(actions, np.arange(self.single_action_space.n)).all():
                raise InputError(
                    f"actions={actions} hold what is none of the numbers below {self.single_action_space.n}."
                )
            return actions.astype(np.int32)
        actions = actions.astype(np.float32)
        if not np.isfinite(actions).all():
            raise InputError("actions hold a value that is not finite: check the policy before the step that made it.")
        return actions

    def __repr__(self) -> str:
        return f"VectorEnv({self._name}, num_envs={self.num_envs})"


def _action_space(spec: EnvSpec) -> gymnasium.spaces.Space:
    if spec.num_actions is not None:
        return gymnasium.spaces.Discrete(spec.num_actions)
    low, high = (np.asarray(bound, np.float32) for bound in (spec.action_low, spec.action_high))
    return gymnasium.spaces.Box(low, high, dtype=np.float32)


def _programs(env: Env, num_envs: int) -> tuple[Any, Any]:
    """Returns ``reset(key) -> (key, workers)`` and ``step(key, workers, actions) -> (key, workers, TimeStep, end)``."""
    reset_one, step_one = episodes.auto_reset(env)

    @jax.jit
    def reset(key: Key) -> tuple[Key, Worker]:
        next_key, reset_key = jax.random.split(key)
        return next_key, jax.vmap(reset_one)(jax.random.split(reset_key, num_envs))

    @functools.partial(jax.jit, donate_argnums=1)
    def step(key: Key, workers: Worker, actions: Array) -> tuple[Key, Worker, TimeStep, EpisodeEnd]:
        next_key, step_key = jax.random.split(key)
        workers, time_step, end = jax.vmap(step_one)(
            workers, jnp.asarray(actions), jax.random.split(step_key, num_envs)
        )
        return next_key, workers, time_step, end

    return reset, step


def _info(last_obs: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
    """The record in which Gymnasium's wrappers look for the end of an episode."""
    if not ended.any():
        return {}
    final_obs = np.full(ended.size, None, dtype=object)
    for i in np.flatnonzero(ended):
        final_obs[i] = last_obs[i].copy()
    return {"final_obs": final_obs, "_final_obs": ended, "final_info": {}, "_final_info": ended.copy()}
