"""How a run is run: everything that is not a number of the algorithm."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Literal

from jaxhybrid.errors import InputError

__all__ = ["RunOptions", "cache_directory", "checked", "seeds"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a run, the same for every study."""

    out: str | None = None
    """Directory of the run; by default runs/<study>-<env>-<preset>-<seed>-<time>."""
    resume: bool = False
    """Continue the run in --out from its newest good checkpoint."""

    seed: int = 0
    """First seed."""
    seeds: int | str = 1
    """Seeds that run side by side: how many (seed, seed + 1, ...), or a range such as 0:16."""
    sweep: tuple[str, ...] = ()
    """Numbers of the config to run over, such as gamma=0.9,0.99; several of them multiply, with each other and with the
    seeds."""
    parallel: Literal["auto", "vmap", "processes"] = "auto"
    """How several seeds run: in one vectorised program, or in processes of one seed each, one per core. auto: processes
    on a CPU and where the environment runs on the host, else vmap."""
    jobs: int | None = None
    """Processes at a time; by default as many as there are cores."""
    memory_gib: float | None = None
    """Memory of a device that vectorised seeds may fill, in GiB, by default all; more seeds than fit run in turns."""
    data_parallel: bool = False
    """Divide one run over all devices: its batches, or what its agents learn."""
    cpu_devices: int | None = None
    """Devices that the CPU counts as, for --data-parallel without an accelerator; by default one."""
    distributed: bool = False
    """Run as one of several processes of a cluster's job: each takes its share of the seeds, or of the batches with
    --data-parallel; the first one speaks and writes."""
    iterations: int | None = None
    """Iterations to run; by default those of the config, and with --resume those that the run was last to do."""
    chunk: int = 1
    """Iterations per call of the compiled program; more than 1 pays off only when an iteration takes milliseconds."""

    eval_every: int = 5
    """Iterations between evaluations; the first and the last policy are always evaluated."""
    eval_episodes: int = 10
    """Episodes per evaluation, at least 10."""

    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    keep_last: int = 2
    """Checkpoints that are kept."""
    keep_every: int | None = None
    """Checkpoints at multiples of this iteration are kept for good."""
    max_nonfinite: int = 100
    """Updates refused in a row, because something in them was not finite, after which the run stops."""

    diagnose: bool = False
    """Also record the signal-to-noise ratio of every gradient, from the parts of each batch; it costs time."""

    progress: bool = True
    """Show a progress bar."""
    quiet: bool = False
    """Say nothing but warnings and errors."""
    tensorboard: bool = True
    """Write TensorBoard events besides metrics.jsonl."""
    compile_cache: str = "default"
    """Directory of compiled programs, kept between runs; "default": in the user's cache directory; "off": none."""


_LEAST = {
    "seed": 0,
    "jobs": 1,
    "cpu_devices": 1,
    "iterations": 1,
    "chunk": 1,
    "eval_every": 1,
    "eval_episodes": 10,
    "checkpoint_every": 1,
    "keep_last": 1,
    "keep_every": 1,
    "max_nonfinite": 1,
}
_MOST_SEED = 2**31


def checked(options: RunOptions) -> RunOptions:
    """Returns ``options`` if every field makes sense.

    Raises:
      InputError: names the field, the value and what it must be.
    """
    for name, least in _LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{name}={value} must be at least {least}.")
    seeds(options)
    if options.distributed and options.out is None:
        raise InputError("distributed needs a directory that all processes see: name it with --out.")
    if options.data_parallel and (len(seeds(options)) > 1 or options.sweep):
        raise InputError("data_parallel is for one run: leave out --seeds and --sweep.")
    if options.memory_gib is not None and not 0 < options.memory_gib < math.inf:
        raise InputError(f"memory_gib={options.memory_gib} must be positive and finite.")
    for name in ("iterations", "eval_every", "checkpoint_every"):
        value = getattr(options, name)
        if value is not None and value % options.chunk:
            raise InputError(f"{name}={value} must be a multiple of chunk={options.chunk}.")
    if options.resume and not options.out:
        raise InputError("resume needs the directory of the run to continue: name it with --out.")
    if options.out is not None and not options.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    return options


def seeds(options: RunOptions) -> range:
    """Returns the seeds of a run.

    Raises:
      InputError: ``seeds`` is neither a positive number nor a range, both ``seed`` and a range are given, or a seed is
        too large.
    """
    text = str(options.seeds)
    first, colon, end = text.partition(":")
    if not (first.isdecimal() and (end.isdecimal() if colon else int(first) > 0)):
        raise InputError(f"seeds={text} must be at least 1, or a range such as 0:16.")
    found = range(int(first), int(end)) if colon else range(options.seed, options.seed + int(first))
    if colon and options.seed:
        raise InputError(f"seed={options.seed} and seeds={text} both name the first seed: leave one out.")
    if not found:
        raise InputError(f"seeds={text} is an empty range: the end, which is left out, must exceed the start.")
    if found[-1] >= _MOST_SEED:
        raise InputError(f"seed={options.seed} with seeds={text} passes the largest seed, {_MOST_SEED - 1}.")
    return found


def cache_directory(options: RunOptions) -> Path | None:
    """Returns where compiled programs are kept, or None when they are not."""
    if options.compile_cache.lower() in ("", "off"):
        return None
    if options.compile_cache == "default":
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "jaxhybrid" / "xla"
    return Path(options.compile_cache).expanduser()
