"""A training run that is to come to grief: ``python -m benchmarks._kill_points.child <fault> <number> <options>``.

``save`` kills the process at its n-th file operation below the checkpoints, ``disk`` lets no file grow past n bytes
from some moment on, as a full disk would; ``none`` leaves the end to whoever started it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence

from experiments import maac
from jaxhybrid.runtime import cli

__all__ = ["main"]

_FILE_OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")


def main(argv: Sequence[str]) -> int:
    """Prepares the fault, then trains."""
    fault, number, *rest = argv
    if fault == "save":
        _kill_at_operation(int(number))
    elif fault == "disk":
        # Not before the program is compiled: a delay and a limit are written "seconds:bytes".
        seconds, limit = number.split(":")
        timer = threading.Timer(float(seconds), _limit_files, [int(limit)])
        timer.daemon = True
        timer.start()
    return maac.main(rest)


def _kill_at_operation(number: int) -> None:
    left = number

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in _FILE_OPERATIONS and "checkpoints" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _limit_files(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
