"""What the words of a run name, found again in this library only: its system, its config and its environment."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, schema
from jaxhybrid.types import Setting

__all__ = ["rebuilt"]


def rebuilt(identity: Mapping[str, Any]) -> tuple[Setting, Any]:
    """Returns the setting and the config of a run.

    Args:
      identity: parsed JSON with ``study``, ``env`` and ``config``; from a stranger perhaps, so nothing else than a
        system of this library is imported.

    Raises:
      InputError: one of them is no system, no environment or no config of it; the message names it.
    """
    study = identity.get("study")
    known = cli.studies("jaxhybrid.systems")
    if study not in known:
        raise unknown("study", study, known)
    module = importlib.import_module(f"jaxhybrid.systems.{study}")
    if not hasattr(module, "setting"):
        raise InputError(f"study={study!r} is no system of its own.")
    name = identity.get("env")
    if not isinstance(name, str):
        raise InputError("identity.env must be the name of an environment.")
    config = schema.from_json(module.Config, identity.get("config"), "config")
    return module.setting(config, name), config
