"""Seconds per iteration of TRPO by sb3-contrib: collection and update of one batch."""

from __future__ import annotations

import time
from typing import Any

__all__ = ["seconds_per_iteration"]


def seconds_per_iteration(env_id: str, *, num_envs: int, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Returns median seconds of collection and update, of the clock and of all cores, after one iteration to warm up.

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
    marks = []
    for _ in range(repeats + 1):
        began = (time.perf_counter(), time.process_time())
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        collected = (time.perf_counter(), time.process_time())
        model.train()
        marks.append((began, collected, (time.perf_counter(), time.process_time())))
    collect, update = np.median(np.diff(np.array(marks[1:]), axis=1), axis=0)
    return {
        part: {"clock": float(taken[0]), "cores": float(taken[1])}
        for part, taken in (("collect", collect), ("update", update))
    }
