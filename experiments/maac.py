"""MAAC and its ablations SAC, MBPO and STEVE on one environment, with any number of seeds side by side.

The default learns within minutes on a laptop: ``python -m experiments maac``. ``--preset`` chooses the numbers,
``--config.<field>`` changes one of them, ``--env`` the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jaxhybrid.runtime import cli, training
from jaxhybrid.systems import maac

STUDY = "maac"


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    arguments = parsed(argv)
    config = arguments.config
    return training.train(
        maac.setting(config, arguments.env),
        study=STUDY,
        preset=arguments.preset,
        config=config,
        options=arguments.run,
        iterations=config.iterations,
        num_steps=config.steps_per_iteration // config.num_envs,
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
        module=f"experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=maac.presets,
        preset="demo",
        default_env="pendulum",
    )


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
