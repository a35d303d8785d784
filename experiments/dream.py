"""DREAM and its model-based extensions: explore a city, then execute an instruction in it; meta-train and meta-test.

``python -m experiments dream --task distraction --variant gradient --seeds 8``; ``--variant dream`` is the same without
an extension. ``--preset`` names the other numbers, ``--config.<field>`` changes one of them. ``python -m experiments
dream_figure`` draws the curves, ``dream_codes`` says what codes tell apart and which task an exploration is taken for,
``dream_dynamics`` what a model knows of the city, ``dream_tasks`` how many tasks it takes for explorations that hold
for new ones. A run of the paper is 20,000 trials.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, training
from jaxhybrid.systems import dream
from jaxhybrid.systems.dream_config import VARIANTS

STUDY = "dream"


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
        dream.setting(config, arguments.env),
        study=STUDY,
        preset=arguments.preset,
        config=config,
        options=arguments.run,
        iterations=config.trials // config.trials_per_iteration,
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
        _with_words(argv),
        module=f"experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=dream.presets,
        preset="dream",
        default_env="city/distraction",
    )


def _with_words(argv: Sequence[str]) -> list[str]:
    """Turns ``--task`` and ``--variant``, the papers' words, into an environment and fields of the config."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task")
    parser.add_argument("--variant")
    given, rest = parser.parse_known_args(argv)
    if given.task is not None:
        if any(argument.partition("=")[0] == "--env" for argument in rest):
            raise InputError(f"task={given.task!r} and --env both name the environment: give one of them.")
        rest = [*rest, "--env", f"city/{given.task}"]
    if given.variant is None:
        return rest
    if given.variant not in VARIANTS:
        raise unknown("variant", given.variant, VARIANTS)
    # Before the fields that are given, which have the last word.
    return [text for name, value in VARIANTS[given.variant].items() for text in _option(name, value)] + rest


def _option(name: str, value: object) -> tuple[str, ...]:
    """Returns what sets a field of the config on the command line; a truth value is an option by itself."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--config.{words}" if value else f"--config.no-{words}",)
    return f"--config.{words}", str(value)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
