"""GMAS and its baseline CRAR on mazes that it has never seen, from a fixed set of random moves.

``python -m experiments gmas --method gmas-cosine --depth 3 --seeds 8``; ``--method crar`` is the same without gradient
matching. ``--preset`` names the other numbers, ``--config.<field>`` changes one of them. A run of the papers is 500,000
updates, which takes an accelerator; ``--preset demo`` shows the machinery in minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, training
from jaxhybrid.systems import gmas

STUDY = "gmas"


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    arguments = parsed(argv)
    return training.train(
        gmas.setting(arguments.config, arguments.env),
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
        _with_method(argv),
        module=f"experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=gmas.presets,
        preset="demo",
        default_env="maze",
    )


def _with_method(argv: Sequence[str]) -> list[str]:
    """Turns ``--method`` and ``--depth``, the paper's words, into a preset and one of its fields."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for word in ("--method", "--depth", "--preset"):
        parser.add_argument(word)
    given, rest = parser.parse_known_args(argv)
    if given.method is not None and given.preset is not None:
        raise InputError(f"method={given.method!r} and preset={given.preset!r} both name the numbers: give one.")
    preset = given.preset if given.method is None else given.method
    if preset is not None:
        rest = ["--preset", preset, *rest]
    return rest if given.depth is None else [*rest, "--config.match-depth", given.depth]


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
