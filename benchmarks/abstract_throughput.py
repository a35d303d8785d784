"""Updates per second of CRAR and GMAS, and planned actions per second, beside the same networks in PyTorch.

Everything is timed in turn, round after round, so that the ratios hold where the speed of the machine drifts. The peer
runs when PyTorch is installed. Prints a table; writes manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import throughput
from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, console, records

__all__ = ["METHODS", "PRESETS", "Config", "main"]

METHODS: dict[str, tuple[str, Any, bool]] = {
    "crar": ("crar", "sequential", True),
    "crar joint": ("crar", "joint", True),
    "crar by picture": ("crar", "sequential", False),
    "gmas-cosine": ("gmas-cosine", "sequential", True),
    "gmas-cosine joint": ("gmas-cosine", "joint", True),
}
"""What is timed: a preset of `systems.gmas`, the mode of its losses, and whether equal patches are encoded once."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    rounds: int = 5
    """Times that every task is timed, in turn."""
    updates: int = 10
    """Updates per timing."""
    batch: int = 32
    """Steps per update."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which updates are timed; GMAS matches slopes of depth 3."""
    depths: tuple[int, ...] = (3, 6)
    """Planning depths, two actions expanded below the root."""
    states: tuple[int, ...] = (1, 16)
    """States that are planned for together; actions count them one by one."""


PRESETS = {"full": Config(), "smoke": Config(rounds=2, updates=1, batch=2, methods=("crar",), depths=(1,), states=(1,))}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the benchmark is given on the command line."""

    preset: Literal["full", "smoke"] = "full"
    """Named numbers."""
    methods: tuple[str, ...] | None = None
    """Which updates are timed."""
    depths: tuple[int, ...] | None = None
    """Planning depths."""
    states: tuple[int, ...] | None = None
    """States that are planned for together."""
    rounds: int | None = None
    """Times that every task is timed."""
    peers: bool = True
    """Time PyTorch too, where it is installed."""
    compiled_peers: bool = False
    """Time PyTorch after torch.compile as well, which takes minutes."""
    out: str | None = None
    """Directory of the run; by default runs/abstract_throughput-<device>-<preset>-0-<time>."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    name = "abstract_throughput"
    arguments = tyro.cli(Arguments, args=list(argv), prog=f"python -m benchmarks {name}", description=__doc__)
    given = {field: getattr(arguments, field) for field in ("methods", "depths", "states", "rounds")}
    config = dataclasses.replace(
        PRESETS[arguments.preset], **{field: value for field, value in given.items() if value is not None}
    )
    if config.rounds < 1:
        raise InputError(f"rounds={config.rounds} must be at least 1.")
    if min(config.depths, default=0) < 0:
        raise InputError(f"depths={config.depths} must not be negative.")
    if min(config.states, default=1) < 1:
        raise InputError(f"states={config.states} must be at least 1.")
    for method in config.methods:
        if method not in METHODS:
            raise unknown("methods", method, METHODS)
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from benchmarks import _abstract_throughput

    device = jax.devices()[0].platform
    out = Path(arguments.out or records.default_directory(name, device, arguments.preset, 0)).expanduser()
    records.open_run(
        out, {"study": name, "config": dataclasses.asdict(config)}, dataclasses.asdict(arguments), resume=False
    )
    tasks = _abstract_throughput.own_tasks(config)
    if arguments.peers and importlib.util.find_spec("torch") is None:
        console.warn("no peer: torch is not installed; pip install -e '.[peers]' adds it.")
    elif arguments.peers:
        tasks += _abstract_throughput.peer_tasks(config, compiled=arguments.compiled_peers)
    rows = throughput._rows(tasks, throughput._time(tasks, config.rounds))
    (out / "results.json").write_text(json.dumps({"device": device, "tasks": rows}, indent=1) + "\n", encoding="utf-8")
    throughput._print(rows, device)
    console.say(f"results in {out}")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
