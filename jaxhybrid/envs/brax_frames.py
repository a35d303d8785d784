"""Pictures of Brax tasks, drawn by MuJoCo from joint positions. Imported only when something is drawn."""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from jaxhybrid.envs import quiet
from jaxhybrid.errors import InputError

with quiet.imports():
    from brax import envs as brax_envs
    from brax.io import image as brax_image
    from brax.io import mjcf as brax_mjcf

__all__ = ["render"]


def render(env_name: str, backend: str, positions: np.ndarray, *, width: int, height: int) -> list[np.ndarray]:
    """Draws a task in each of ``T`` states.

    Args:
      env_name: name of the task in Brax.
      backend: its physics.
      positions: joint positions, ``[T, Q]``.
      width: of a picture.
      height: of a picture.

    Returns:
      ``T`` pictures, uint8 ``[height, width, 3]``.

    Raises:
      InputError: the task has no physics to draw.
      Exception: whatever a graphics library that does not work raises.
    """
    with quiet.loading(brax_mjcf.mujoco):
        task: Any = brax_envs.get_environment(env_name, backend=backend)
    if not hasattr(task, "sys"):
        raise InputError(f"env_name={env_name!r} has no physics to draw.")
    model = task.sys.mj_model
    still = np.zeros(model.nv)
    states = [types.SimpleNamespace(q=q, qd=still) for q in np.asarray(positions)]
    camera = model.camera(0).name if model.ncam else None
    return [np.asarray(frame) for frame in brax_image.render_array(task.sys, states, height, width, camera)]
