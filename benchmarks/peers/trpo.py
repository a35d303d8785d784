"""TRPO by sb3-contrib: seconds per iteration, and what it earns on our tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from jaxhybrid.types import HostEnv

__all__ = ["episode_returns", "seconds_per_iteration"]


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


def episode_returns(env: HostEnv, *, seed: int, iterations: int, steps: int, normalise: bool) -> Iterator[float]:
    """Trains on one of our environments and yields, per iteration, the mean return of the episodes that ended in it.

    Args:
      env: on the host; it observes episodes of at most ``steps / num_envs`` steps to their end.
      seed: of networks, actions and start states.
      iterations: batches.
      steps: of a batch, over all instances.
      normalise: whether observations are standardised as they come, as ours are.

    Raises:
      ImportError: the library is not installed.
    """
    import gymnasium
    import numpy as np
    from sb3_contrib import TRPO
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    ended: list[float] = []

    class Instances(VecEnv):
        """Our environments with the interface of Stable-Baselines3."""

        def __init__(self) -> None:
            everything = np.full(env.spec.obs_dim, np.inf, np.float32)
            low, high = (np.asarray(bound, np.float32) for bound in (env.spec.action_low, env.spec.action_high))
            box = gymnasium.spaces.Box
            super().__init__(env.num_envs, box(-everything, everything), box(low, high))
            self.totals = np.zeros(env.num_envs)

        def reset(self) -> Any:
            self.state, obs = env.reset(seed)
            return np.asarray(obs, np.float32)

        def step_async(self, actions: Any) -> None:
            self.actions = actions

        def step_wait(self) -> Any:
            state, step = env.step(self.state, self.actions)
            self.totals += step.reward
            done = np.asarray(step.terminated | step.truncated)
            infos: list[dict[str, Any]] = [{} for _ in done]
            for i in np.flatnonzero(done):
                truncated = bool(step.truncated[i] and not step.terminated[i])
                infos[i] = {"terminal_observation": np.float32(step.obs[i]), "TimeLimit.truncated": truncated}
                ended.append(float(self.totals[i]))
            self.totals[done] = 0.0
            self.state, obs = env.reset_where(state, np.asarray(step.obs), done)
            return np.asarray(obs, np.float32), np.asarray(step.reward, np.float32), done, infos

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * env.num_envs

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError

        def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
            return [False] * env.num_envs

    instances: Any = Instances()
    if normalise:
        instances = VecNormalize(instances, norm_reward=False)
    model: Any = TRPO(
        "MlpPolicy",
        instances,
        n_steps=steps // env.num_envs,
        batch_size=500,
        gamma=0.995,
        gae_lambda=0.97,
        seed=seed,
        policy_kwargs={"net_arch": [64, 64]},
        device="cpu",
    )
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(steps * iterations)
    for _ in range(iterations):
        ended.clear()
        model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        model.train()
        yield float(np.mean(ended)) if ended else float("nan")
