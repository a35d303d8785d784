"""A block falls and a paddle catches it: two actions, pictures of 36 x 36 pixels, nine steps."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = ["CatcherState", "make"]

_WIDTH = 10  # cells a side; a margin of one cell on every side leaves room for the paddle's ends
_BLOCK = 3  # pixels a cell
_PIXELS = (_WIDTH + 2) * _BLOCK
_STEPS = _WIDTH - 1


class CatcherState(NamedTuple):
    """Column of the paddle's middle ``[]``; column and height of the block ``[]``."""

    paddle: Array
    column: Array
    height: Array


def make() -> Env:
    """Returns the catcher: +1 if the block lands within one cell of the paddle's middle, -1 if not, and 0 before.

    The block falls one cell a step from height 9 in column 0 or 9; the paddle starts in any column. Action 0 moves it
    to the left, 1 to the right. The episode terminates when the block lands, after nine steps, so the time limit
    coincides with the end. Pictures are ``[36, 36]`` in [0, 1]: the block is 1, the paddle's three cells are 0.5.

    Source: the second experiment of Francois-Lavet et al. 2019 (CRAR), as released; the drawing is ours.
    """

    def reset(key: Key) -> tuple[CatcherState, Array]:
        paddle_key, column_key = jax.random.split(key)
        paddle = jax.random.randint(paddle_key, (), 0, _WIDTH)
        column = (_WIDTH - 1) * jax.random.bernoulli(column_key).astype(jnp.int32)
        state = CatcherState(paddle, column, jnp.asarray(_STEPS, jnp.int32))
        return state, _observe(state)

    def step(env_state: CatcherState, action: Array, key: Key) -> tuple[CatcherState, TimeStep]:
        del key  # the transition is deterministic
        paddle = jnp.clip(env_state.paddle + 2 * action - 1, 0, _WIDTH - 1)
        state = CatcherState(paddle, env_state.column, env_state.height - 1)
        landed = state.height <= 0
        caught = jnp.abs(state.paddle - state.column) <= 1
        reward = jnp.where(landed, jnp.where(caught, 1.0, -1.0), 0.0).astype(jnp.float32)
        return state, TimeStep(_observe(state), reward, landed, landed)

    spec = EnvSpec(
        name="catcher",
        obs_dim=_PIXELS * _PIXELS,
        action_dim=0,
        action_low=np.zeros(0),
        action_high=np.zeros(0),
        max_episode_steps=_STEPS,
        notes="Which end is meant can be told from the first picture; the best return is 1.",
        num_actions=2,
        obs_shape=(_PIXELS, _PIXELS),
    )
    return Env(reset, step, spec)


def _observe(state: CatcherState) -> Array:
    """The picture; height 0 is the second row from the bottom, column 0 the second from the left."""
    row, column = jnp.arange(_WIDTH + 2)[:, None], jnp.arange(_WIDTH + 2)[None]
    paddle = (row == _WIDTH) & (jnp.abs(column - 1 - state.paddle) <= 1)
    block = (row == _WIDTH - state.height) & (column - 1 == state.column)
    cells = jnp.where(block, 1.0, jnp.where(paddle, 0.5, 0.0)).astype(jnp.float32)
    return jnp.kron(cells, jnp.ones((_BLOCK, _BLOCK)))
