"""What a run says to a person: plain lines on stderr, a progress bar, and silence from everybody else."""

from __future__ import annotations

import logging
import os

import rich.console
import rich.progress

__all__ = ["CONSOLE", "error", "progress_bar", "quiet_dependencies", "say", "warn"]

CONSOLE = rich.console.Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints one line, above the progress bar if there is one."""
    CONSOLE.print(text, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Prints one line that starts with ``warning:``."""
    CONSOLE.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def error(text: str) -> None:
    """Prints one line that starts with ``error:``."""
    CONSOLE.print(f"error: {text}", style="bold red", markup=False, soft_wrap=True)


def progress_bar(shown: bool) -> rich.progress.Progress:
    """Returns a bar of iterations with environment steps, speed, latest evaluation and time left.

    Tasks need the fields ``steps``, ``speed`` and ``latest``. It is drawn only where stderr is a terminal.

    Args:
      shown: False draws nothing.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=16),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[steps]} steps  {task.fields[speed]}  {task.fields[latest]}"),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(compact=True),
        console=CONSOLE,
        transient=True,
        disable=not (shown and CONSOLE.is_terminal),
        # Iterations take seconds to minutes: the estimate needs a long memory.
        speed_estimate_period=600.0,
    )


def quiet_dependencies() -> None:
    """Lets the libraries' loggers pass errors only, and the C++ parts nothing: their errors also arrive as exceptions.

    The latter is an environment variable that they read when they are loaded, so this is best called before ``jax`` is
    imported; a value that is already set stays.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "orbax", "jax", "tensorboardX", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
