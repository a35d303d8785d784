"""Environments made of environments."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, PyTree, TimeStep

__all__ = ["rescale_actions"]


def rescale_actions(env: Env | HostEnv) -> Env | HostEnv:
    """Returns ``env`` with actions in [-1, 1]^A, mapped to its own finite bounds; unbounded actions stay as they are.

    The reward and termination functions of the spec take the rescaled action too.
    """
    low, high = np.asarray(env.spec.action_low), np.asarray(env.spec.action_high)
    if not env.spec.bounded or (np.all(low == -1.0) and np.all(high == 1.0)):
        return env
    centre, radius = 0.5 * (high + low), 0.5 * (high - low)

    def scale(action: Array) -> Array:
        return centre.astype(action.dtype) + radius.astype(action.dtype) * action

    spec = _with_scaled_functions(env.spec, scale)
    if isinstance(env, HostEnv):

        def host_step(env_state: PyTree, action: np.ndarray) -> tuple[PyTree, TimeStep]:
            return env.step(env_state, centre[None] + radius[None] * action)

        return env._replace(step=host_step, spec=spec)

    def step(env_state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        return env.step(env_state, scale(jnp.asarray(action)), key)

    return env._replace(step=step, spec=spec)


def _with_scaled_functions(spec: EnvSpec, scale) -> EnvSpec:
    def rescaled(fn):
        return None if fn is None else (lambda obs, action, next_obs: fn(obs, scale(action), next_obs))

    ones = np.ones_like(np.asarray(spec.action_low))
    return spec._replace(
        action_low=-ones,
        action_high=ones,
        reward_fn=rescaled(spec.reward_fn),
        terminated_fn=rescaled(spec.terminated_fn),
    )
