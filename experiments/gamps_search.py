"""One gradient-aware policy search with checkpoints: any preset, in the batch setting or collecting between updates.

``python -m experiments gamps_search --preset gridworld --config.fresh-trajectories 20 --seeds 8``; the comparison of
methods is the study ``gamps``. The swimmer runs on Brax here: a search over recordings of the host has nothing to
collect between checkpoints.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jaxhybrid.runtime import cli, training
from jaxhybrid.systems import gamps

# Of the system, by which a run is found again.
STUDY = "gamps"


def main(argv: Sequence[str]) -> int:
    """Runs the search; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    arguments = parsed(argv)
    return training.train(
        gamps.setting(arguments.config, arguments.env),
        study=STUDY,
        preset=arguments.preset,
        config=arguments.config,
        options=arguments.run,
        iterations=arguments.config.iterations,
        command=arguments.command,
    ).exit_code


def parsed(argv: Sequence[str]) -> cli.Arguments:
    """Parses the arguments and does nothing else, so that a job can be refused before it is submitted.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense.
    """
    return cli.parse(
        argv,
        module="experiments gamps_search",
        description=(__doc__ or "").partition("\n")[0],
        presets={name: dataclasses.replace(config, physics="generalized") for name, config in gamps.presets.items()},
        preset="gridworld",
    )


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
