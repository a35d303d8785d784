"""Keeps the known notices of the physics packages off the console while they are imported and load a model.

Each filter names the one sentence it drops; everything else that those packages say still gets through.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

__all__ = ["imports", "loading", "tracing"]

# Printed by MuJoCo's JAX package wherever its optional GPU engine is not installed.
_PRINTED_ON_IMPORT = ("Failed to import warp", "Failed to import mujoco_warp")
_WARNED_ON_IMPORT = ("JAXopt is no longer maintained",)
# Both facts are known here: the adapters say which physics they run and pin what they rely on.
_WARNED_ON_LOAD = ("Brax System, piplines and environments are not actively", r".*The environment .* is out of date")
# Brax reads fields of MuJoCo's records in a way that works and is announced to go away.
_WARNED_ON_TRACE = (r"Accessing `\w+` directly from `\w+` is deprecated",)
# MuJoCo's compiler says this in C, on stderr and in a file MUJOCO_LOG.TXT in the working directory.
_COMPILER_WARNINGS = ("compiler attribute 'settotalmass' is deprecated",)


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Drops what the physics packages print and warn while they are imported."""
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            for message in _WARNED_ON_IMPORT:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for line in printed.getvalue().splitlines(keepends=True):
            if not line.startswith(_PRINTED_ON_IMPORT):
                sys.stdout.write(line)


@contextlib.contextmanager
def loading(mujoco: ModuleType) -> Iterator[None]:
    """Drops the known notices of building an environment; other compiler warnings become Python warnings.

    Args:
      mujoco: the ``mujoco`` module, passed in so that this file imports none of the physics packages.
    """
    raised: list[str] = []
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(raised.append)
    try:
        with warnings.catch_warnings():
            for message in _WARNED_ON_LOAD:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        mujoco.set_mju_user_warning(previous)
    for text in raised:
        if not text.startswith(_COMPILER_WARNINGS):
            warnings.warn(text, stacklevel=3)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Drops the known notices of a simulator written in JAX while its code is traced."""
    with warnings.catch_warnings():
        for message in _WARNED_ON_TRACE:
            warnings.filterwarnings("ignore", message=message)
        yield
