"""Gradient updates of soft actor-critic by Stable-Baselines3 and SBX, on a filled replay, without an environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

__all__ = ["sac_updates"]

_ROWS = 10_000


class _Blank(gymnasium.Env):
    """Spaces and nothing else: training from replay never steps it."""

    def __init__(self, obs_dim: int, action_dim: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action_dim,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros_like(self.observation_space.sample()), {}


def sac_updates(
    library: str, obs_dim: int, action_dim: int, hidden: tuple[int, ...], batch: int
) -> Callable[[int], Any]:
    """Returns ``run(updates)``: that many gradient updates of actor, critics and temperature, replay sampling included.

    Args:
      library: "stable-baselines3" or "sbx".
      obs_dim: ``D``.
      action_dim: ``A``.
      hidden: hidden layers of actor and critics.
      batch: rows per update.

    Raises:
      ImportError: the library is not installed.
    """
    if library == "sbx":
        from sbx import SAC
    else:
        from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    model: Any = SAC(
        "MlpPolicy",
        _Blank(obs_dim, action_dim),
        batch_size=batch,
        buffer_size=100_000,
        policy_kwargs={"net_arch": list(hidden)},
    )
    model.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    for _ in range(_ROWS):
        obs, next_obs = rng.normal(size=(2, 1, obs_dim))
        action = np.tanh(rng.normal(size=(1, action_dim)))
        model.replay_buffer.add(obs, next_obs, action, rng.normal(size=1), np.zeros(1), [{}])
    return lambda updates: model.train(gradient_steps=updates, batch_size=batch)
