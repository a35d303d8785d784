"""Writes one web page about a run: config, versions, curves, diagnostics, speed, checkpoints, an episode.

``python -m jaxhybrid report runs/a`` writes ``runs/a/report.html``, which holds everything it shows and loads nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxhybrid.runtime import cli, console, inputs, outputs

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the page is about."""

    run: Annotated[str, tyro.conf.Positional]
    """Directory of a run, complete or not."""
    out: str | None = None
    """File to write, by default report.html in the directory of the run; an existing one is not touched."""
    episode: bool = True
    """Play and film an episode of the final policy, which takes most of the time."""


def main(argv: Sequence[str]) -> int:
    """Writes the page; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run there, or a file that exists; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid report", description=__doc__)
    directory = Path(arguments.run).expanduser()
    inputs.check_run(directory, field="run")
    out = outputs.new_file(arguments.out if arguments.out is not None else str(directory / "report.html"))

    from jaxhybrid.runtime import page, report_parts

    title, parts = report_parts.of_run(directory, episode=arguments.episode)
    outputs.write(out, page.page(title, parts).encode())
    console.say(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
