"""Pictures of Gymnasium's tasks in given states. Imported only when something is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxhybrid.envs import quiet

with quiet.imports():
    import gymnasium
    import mujoco

__all__ = ["render"]

_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


def render(env_id: str, physics: np.ndarray, *, width: int, height: int, **env_options: Any) -> list[np.ndarray]:
    """Draws a task in each of ``T`` states.

    Args:
      env_id: a registered id.
      physics: of one instance, ``[T, P]``; see `jaxhybrid.envs.gymnasium.HostState`.
      width: of a picture of a MuJoCo task; others choose for themselves.
      height: likewise.
      **env_options: keyword arguments of the task itself.

    Returns:
      ``T`` pictures, uint8 ``[height, width, 3]``.

    Raises:
      Exception: whatever a graphics library that does not work raises.
    """
    with quiet.loading(mujoco):
        env: Any = gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True, **env_options).unwrapped
    try:
        if hasattr(env, "mujoco_renderer"):
            env.mujoco_renderer.width, env.mujoco_renderer.height = width, height
            # The first camera of a task follows its robot; the free one stays where the robot began.
            env.mujoco_renderer.camera_id = 0 if env.model.ncam else -1
        env.reset(seed=0)
        frames = []
        for one in physics:
            _set(env, one)
            frames.append(np.asarray(env.render()))
        return frames
    finally:
        env.close()


def _set(env: Any, physics: np.ndarray) -> None:
    if not hasattr(env, "data"):
        env.state = physics[1:]
        return
    size = mujoco.mj_stateSize(env.model, _INTEGRATION)
    mujoco.mj_setState(env.model, env.data, physics[:size], _INTEGRATION)
    # Where the bodies are is computed from the joints; a picture is drawn from the bodies.
    mujoco.mj_forward(env.model, env.data)
