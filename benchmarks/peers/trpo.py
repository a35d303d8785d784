"""Seconds per iteration of TRPO by sb3-contrib: collection and update of one batch."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["seconds_per_iteration"]


def seconds_per_iteration(env_id: str, *, num_envs: int, steps: int, repeats: int) -> dict[str, float]:
    """Returns median seconds of collection and update, after one iteration to warm up.

    Args:
      env_id: of Gymnasium.
      num_envs: instances in one process.
      steps: of a batch, over all instances.
      repeats: timed iterations.

    Raises:
      ImportError: the library is not installed.
    """
    import gymnasium
    import numpy as np
    from sb3_contrib import TRPO
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: gymnasium.make(env_id)] * num_envs)
    model: Any = TRPO(
        "MlpPolicy",
        env,
        n_steps=steps // num_envs,
        batch_size=500,
        gamma=0.995,
        policy_kwargs={"net_arch": [64, 64]},
    )
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(steps * (repeats + 1))
    collect, update = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        collected = time.perf_counter()
        model.train()
        collect.append(collected - began)
        update.append(time.perf_counter() - collected)
    return {"collect": float(np.median(collect[1:])), "update": float(np.median(update[1:]))}
