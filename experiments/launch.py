"""Submits a study to a cluster: ``python -m experiments launch slurm --minutes 600 -- maac --seeds 0:16 --out DIR``.

What follows ``--`` is a study with its options. The job is requeued when it is preempted or meets its time limit, and
resumes from its checkpoint. ``local`` runs it in a process on this machine.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console, launch


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command is given before ``--``."""

    cluster: tyro.conf.Positional[Literal["slurm", "local"]]
    """Where to run."""
    folder: Path = Path("runs") / "jobs"
    """Directory for scripts and logs of the jobs; must not be writable to others."""
    wait: bool = False
    """Wait for the job to end."""
    resources: Annotated[launch.Resources, tyro.conf.arg(name="")] = dataclasses.field(default_factory=launch.Resources)
    """What to ask for."""


def main(argv: Sequence[str]) -> int:
    """Submits the job; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: as `jaxhybrid.runtime.launch.submit`.
    """
    before = list(argv[: argv.index("--")]) if "--" in argv else list(argv)
    arguments = tyro.cli(Arguments, args=before, prog="python -m experiments launch", description=__doc__)
    if "--" not in argv:
        raise InputError("no study: put its name and options after --, such as -- maac --seeds 0:16 --out DIR.")
    job = launch.submit(arguments.cluster, arguments.folder, arguments.resources, argv[argv.index("--") + 1 :])
    console.say(f"job {job.job_id} submitted; its log: {job.paths.stdout} and {job.paths.stderr.name}")
    if not arguments.wait:
        return 0
    failure = job.exception()
    if failure is not None:
        lines = str(failure).strip().splitlines()
        reason = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
        console.error(f"job {job.job_id} failed: {reason}")
    return int(failure is not None)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
