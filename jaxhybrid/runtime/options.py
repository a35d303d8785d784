"""How a run is run: everything that is not a number of the algorithm."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from jaxhybrid.errors import InputError

__all__ = ["RunOptions", "cache_directory", "checked"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of a run, the same for every study."""

    out: str | None = None
    """Directory of the run; by default runs/<study>-<env>-<preset>-<seed>-<time>."""
    resume: bool = False
    """Continue the run in --out from its newest good checkpoint."""

    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Seeds that run side by side: seed, seed + 1, ..."""
    iterations: int | None = None
    """Iterations to run; by default those of the config."""
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
    max_nonfinite: int = 100
    """Updates refused in a row, because something in them was not finite, after which the run stops."""

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
    "seeds": 1,
    "iterations": 1,
    "chunk": 1,
    "eval_every": 1,
    "eval_episodes": 10,
    "checkpoint_every": 1,
    "keep_last": 1,
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
    if options.seed + options.seeds > _MOST_SEED:
        raise InputError(f"seed={options.seed} with seeds={options.seeds} passes the largest seed, {_MOST_SEED - 1}.")
    for name in ("iterations", "eval_every", "checkpoint_every"):
        value = getattr(options, name)
        if value is not None and value % options.chunk:
            raise InputError(f"{name}={value} must be a multiple of chunk={options.chunk}.")
    if options.resume and not options.out:
        raise InputError("resume needs the directory of the run to continue: name it with --out.")
    if options.out is not None and not options.out.strip():
        raise InputError("out is empty: name a directory, or leave the option out.")
    return options


def cache_directory(options: RunOptions) -> Path | None:
    """Returns where compiled programs are kept, or None when they are not."""
    if options.compile_cache.lower() in ("", "off"):
        return None
    if options.compile_cache == "default":
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "jaxhybrid" / "xla"
    return Path(options.compile_cache).expanduser()
