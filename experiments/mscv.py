"""MSCV against TRPO, Q-Prop and stochastic value gradients on the MuJoCo tasks of 2017.

``python -m experiments mscv --env swimmer --method mscv --seeds 10``; ``--method trpo`` is the same step without the
control variate, ``--method all`` runs every method, draws the curves and prints table 1, and goes on with ``--resume``
where it was stopped. ``--preset`` names other numbers (``demo``, ``smoke``), ``--config.<field>`` changes one of them;
``--env`` also takes any environment with continuous actions.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import cli, console, records, training
from jaxhybrid.systems import mscv

STUDY = "mscv"
METHODS = ("mscv", "trpo", "qprop", "svg", "svg-inf")
_TASKS = {"swimmer": "paper", "reacher": "paper-reacher", "hopper": "paper-hopper", "walker": "paper-walker"}


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    method, rest = _method(argv)
    if method != "all":
        return _train(_parsed(rest, method)).exit_code
    first = _parsed(rest, METHODS[0])
    if first.run.sweep:
        raise InputError(
            f"sweep={', '.join(first.run.sweep)}: the table of all methods is over seeds; sweep one --method."
        )
    default = records.default_directory(STUDY, first.config.env or first.env, "all", first.run.seed)
    out = Path(first.run.out or default).expanduser()
    begun = [each for each in METHODS if (out / each / records.MANIFEST).exists()]
    for each in METHODS:
        # What was stopped had not begun the methods that come later.
        fresh = ["--no-resume"] if begun and each not in begun else []
        code = _train(_parsed([*rest, "--out", str(out / each), *fresh], each)).exit_code
        if code:
            return code
    return _tabulated(out)


def parsed(argv: Sequence[str]) -> cli.Arguments:
    """Parses the arguments and does nothing else, so that a job can be refused before it is submitted.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense.
    """
    method, rest = _method(argv)
    return _parsed(rest, METHODS[0] if method == "all" else method)


def _tabulated(out: Path) -> int:
    """Prints the table, or how to get it where it needs something that only the user knows."""
    # Imported here, because one method needs no table.
    from experiments import mscv_table

    env = records.identity(out / METHODS[0])["env"]
    lacking = [] if mscv_table.published(env) is not None else ["--threshold", "RETURN"]
    lacking += ["--out", "FILE"] if (out / mscv_table.TABLE).exists() else []
    command = ["--runs", str(out)]
    if not lacking:
        return mscv_table.main(command)
    console.say(f"for the table: python -m experiments mscv_table {shlex.join([*command, *lacking])}")
    return 0


def _train(arguments: cli.Arguments):
    config = arguments.config
    return training.train(
        mscv.setting(config, arguments.env),
        study=STUDY,
        preset=arguments.preset,
        config=config,
        options=arguments.run,
        iterations=config.iterations,
        num_steps=config.num_steps,
        command=arguments.command,
    )


def _method(argv: Sequence[str]) -> tuple[str, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default="mscv")
    given, rest = parser.parse_known_args(argv)
    if given.method not in (*METHODS, "all"):
        raise unknown("method", given.method, (*METHODS, "all"))
    return given.method, rest


def _parsed(argv: Sequence[str], method: str) -> cli.Arguments:
    """Parses the arguments with the task and the method, the paper's words, turned into an environment and a preset."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env", default="")
    parser.add_argument("--preset")
    given, rest = parser.parse_known_args(argv)
    base = given.preset or _TASKS.get(given.env, "demo" if given.env else "paper")
    if "/" in base and method != "mscv":
        raise InputError(f"method={method!r} and preset={base!r} both name the method: give one of them.")
    env = f"mujoco_v1/{given.env}" if given.env in _TASKS else given.env
    preset = base if method == "mscv" else f"{base}/{method}"
    return cli.parse(
        ["--preset", preset, *(["--env", env] if env else []), *rest],
        module=f"experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=mscv.presets,
        preset="paper",
        default_env="mujoco_v1/swimmer",
    )


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
