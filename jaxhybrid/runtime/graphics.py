"""Which graphics library MuJoCo can draw with, found out in processes of their own: a wrong one may take its down."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

__all__ = ["Backend", "choose"]

_CANDIDATES = ("egl", "osmesa", "glfw")
_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
assert renderer.render().shape == (16, 16, 3)
print("drawn")
"""


class Backend(NamedTuple):
    """A value of ``MUJOCO_GL`` that works, or None, and what was tried."""

    name: str | None
    tried: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why nothing can be drawn, and what to do."""
        return (
            f"no graphics library works with MuJoCo (tried MUJOCO_GL={', '.join(self.tried)}): install EGL or OSMesa, "
            "for instance the packages libegl1 and libgl1-mesa-dri."
        )


def choose() -> Backend:
    """Finds a graphics library that works and sets ``MUJOCO_GL`` to it; to be called before MuJoCo is loaded.

    A value that the user has set is tried alone.
    """
    given = os.environ.get("MUJOCO_GL", "").lower()
    candidates = (given,) if given else _CANDIDATES
    for i, name in enumerate(candidates):
        if _works(name):
            os.environ["MUJOCO_GL"] = name
            return Backend(name, candidates[: i + 1])
    return Backend(None, candidates)


def _works(name: str) -> bool:
    if name == "glfw" and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return False
    try:
        result = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return result.returncode == 0 and result.stdout.endswith("drawn\n")
