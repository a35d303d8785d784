"""Studies as jobs of a cluster, through submitit: submitted, requeued when preempted, resumed.

A job runs its study in a process of its own, so that a preemption is what Ctrl-C is: the iteration ends, a checkpoint
is written, and the job that takes its place continues from there. Submitit pickles what it runs: a `StudyJob`, which
holds strings alone; its folder must not be writable to others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli
from jaxhybrid.runtime.members import members
from jaxhybrid.runtime.options import checked

__all__ = ["Resources", "StudyJob", "submit"]

_RESUME = "--resume"


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a job asks the cluster for."""

    minutes: int = 240
    """Time limit; a job that meets it is requeued and resumes."""
    nodes: int = 1
    """Machines."""
    tasks_per_node: int = 1
    """Processes per machine; with more than one in total the study needs --distributed."""
    gpus_per_node: int = 0
    """Accelerators per machine."""
    cpus_per_task: int = 4
    """Cores per process."""
    memory_gb: int | None = None
    """Memory per machine; by default what the cluster gives."""
    partition: str | None = None
    """Partition of SLURM."""
    account: str | None = None
    """Account of SLURM."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the study, such as "module load cuda"."""


class StudyJob:
    """Runs a study, from its checkpoint if there is one; submitit calls it, and `checkpoint` when it is preempted."""

    def __init__(self, argv: Sequence[str]):
        """Takes the arguments of ``python -m experiments``."""
        self.argv = list(argv)
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Runs the study and returns its exit code.

        Raises:
          RuntimeError: the study failed, so that the job counts as failed; its log says why.
        """
        out = Path(_own(self.argv)[0].out).expanduser()
        # A study of several methods has a run for each, and none of its own.
        begun = any(any(out.glob(place)) for place in ("manifest.json", "*/manifest.json")) and _RESUME not in self.argv
        command = [sys.executable, "-m", "experiments", *self.argv, *([_RESUME] if begun else [])]
        self._process = subprocess.Popen(command, start_new_session=True)
        code = self._process.wait()
        if code:
            raise RuntimeError(f"the study ended with exit code {code}: see the log above")
        return code

    def checkpoint(self) -> Any:
        """Lets the study save and returns what takes its place."""
        import submitit.helpers

        # This runs in a signal handler, which interrupts the wait above: that holds the lock of the process.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGTERM)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(StudyJob(self.argv))


def submit(cluster: Literal["slurm", "local"], folder: Path, resources: Resources, argv: Sequence[str]) -> Any:
    """Submits one job.

    Args:
      cluster: ``slurm``, or ``local`` for processes on this machine.
      folder: for submitit's scripts and logs.
      resources: what to ask for.
      argv: arguments of ``python -m experiments``, the study first.

    Returns:
      Submitit's job.

    Raises:
      InputError: a resource that makes no sense, an unknown study, no ``--out``, several processes without
        ``--distributed``, options that the study's ``parsed`` refuses where it has one, or submitit or SLURM is
        missing. Nothing was written then.
      SystemExit: the study has no such option; what it has to say was printed.
    """
    _check(resources, argv)
    if importlib.util.find_spec("submitit") is None:
        raise InputError("launch needs submitit: pip install -e '.[cluster]' adds it.")
    import submitit

    try:
        # A time limit is no failure: the study goes on in the next job.
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=1000)
    except RuntimeError as reason:
        raise InputError(f"cluster={cluster!r} is not here ({reason}): log in to a machine that has sbatch.") from None
    executor.update_parameters(
        name=argv[0],
        timeout_min=resources.minutes,
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        slurm_setup=list(resources.setup),
        **({"mem_gb": resources.memory_gb} if resources.memory_gb else {}),
        **({"slurm_partition": resources.partition} if resources.partition else {}),
        **({"slurm_account": resources.account} if resources.account else {}),
    )
    return executor.submit(StudyJob(argv))


def _check(resources: Resources, argv: Sequence[str]) -> None:
    for name in ("minutes", "nodes", "tasks_per_node", "cpus_per_task", "memory_gb"):
        value = getattr(resources, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1.")
    if resources.gpus_per_node < 0:
        raise InputError(f"gpus_per_node={resources.gpus_per_node} must not be negative.")
    found = cli.studies("experiments")
    if not argv or argv[0] not in found:
        raise unknown("study", argv[0] if argv else "", found)
    own, rest = _own(argv)
    if own.out is None:
        raise InputError("a job needs --out DIR among the arguments of its study, or it could not resume.")
    if resources.nodes * resources.tasks_per_node > 1 and not own.distributed:
        raise InputError("several processes need --distributed among the arguments of the study.")
    # A study that parses its options by themselves refuses them now instead of in the queue.
    parsed = getattr(importlib.import_module(f"experiments.{argv[0]}"), "parsed", None)
    if parsed is not None:
        arguments = parsed([*rest[1:], "--out", own.out])
        checked(dataclasses.replace(arguments.run, cpu_devices=own.cpu_devices))
        members(arguments.run, arguments.config)


def _own(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a study that a job must know or that act at once, on the machine that runs it; and the rest."""
    parser = argparse.ArgumentParser(prog="python -m experiments launch", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", nargs="?")
    parser.add_argument("--distributed", action="store_true")
    parser.add_argument("--cpu-devices", "--cpu_devices", type=int)
    return parser.parse_known_args(argv)
