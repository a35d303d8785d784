"""The command line: which studies there are, their arguments, and one line instead of a traceback for bad input."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import importlib.util
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.runtime import console
from jaxhybrid.runtime.options import RunOptions, checked

__all__ = ["Arguments", "front_door", "named_preset", "parse", "run_main", "studies"]

BROKEN_PIPE_EXIT = 1
BAD_INPUT_EXIT = 2
INTERRUPTED_EXIT = 130

ConfigT = TypeVar("ConfigT")


@dataclasses.dataclass(frozen=True)
class Arguments(Generic[ConfigT]):
    """What a study is given on the command line; ``command`` is the line itself."""

    preset: str
    """Named numbers that --config starts from."""
    env: str
    """Environment; by default the one the preset is meant for."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")]
    """How to run."""
    config: ConfigT
    """The numbers of the algorithm."""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()


def run_main(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> None:
    """Runs ``main(argv)`` and leaves the process with its exit code.

    `InputError` becomes one line on stderr and exit code 2; a Ctrl-C that nothing else handled becomes 130;
    output that nobody reads any more, such as that of ``| head``, ends it with 1 and without a word.

    Args:
      main: takes the arguments, returns an exit code.
      argv: without the name of the program.
    """
    console.quiet_dependencies()
    code: int | str | None
    try:
        code = main(argv)
    except InputError as reason:
        console.error(str(reason))
        code = BAD_INPUT_EXIT
    except SystemExit as left:
        # --help and what the parser refuses.
        code = left.code
    except BrokenPipeError:
        # It may be another pipe, such as that to a worker.
        if not _unread():
            raise
        code = BROKEN_PIPE_EXIT
    except KeyboardInterrupt:
        console.say("stopped at once.")
        sys.stdout.flush()
        # A regular exit would wait for the program that is running on the device.
        os._exit(INTERRUPTED_EXIT)
    sys.exit(code if _flushed() else BROKEN_PIPE_EXIT)


def _unread() -> bool:
    """Whether the output is a pipe whose reader has left."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flushed() -> bool:
    """Whether somebody takes the output; where nobody does, the interpreter's flush at the exit must not fail again."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def studies(package: str) -> dict[str, str]:
    """Returns the first line of the docstring of every public module of a package, without importing one."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        if not path.name.startswith("_"):
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = doc.partition("\n")[0]
    return found


def front_door(package: str, argv: Sequence[str]) -> int:
    """Lists the studies of a package, or runs the one that is named first with the arguments that follow.

    The ``smoke`` preset of an experiment, which runs for a moment, is compiled in haste.

    Args:
      package: name of a package whose public modules have ``main(argv) -> int``.
      argv: of the process, without its name.

    Returns:
      The exit code.

    Raises:
      InputError: the name is none of the studies.
    """
    found = studies(package)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, found), default=0)
        listing = [f"  {name:<{width}}  {line}" for name, line in found.items()]
        lines = [f"usage: python -m {package} <name> [options]; --help after a name lists its options", *listing]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    name, *rest = argv
    if name not in found:
        raise unknown("study", name, found)
    if package == "experiments" and named_preset(rest, f"python -m {package} {name}").partition("/")[0] == "smoke":
        _compile_in_haste()
    return importlib.import_module(f"{package}.{name}").main(rest)


def named_preset(argv: Sequence[str], prog: str, default: str = "") -> str:
    """Returns the value of ``--preset``, which decides the defaults of everything else.

    Args:
      argv: arguments of a study, without its name.
      prog: the study's command, for messages.
      default: where none is named.
    """
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=default)
    return first.parse_known_args(argv)[0].preset


def _compile_in_haste() -> None:
    """Spares the compiler most of its work on fast code, here and in child processes, unless the user has chosen."""
    if "JAX_DISABLE_MOST_OPTIMIZATIONS" in os.environ:
        return
    import jax  # Heavy, and not needed to list the studies.

    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)


def parse(
    argv: Sequence[str],
    *,
    module: str,
    description: str,
    presets: Mapping[str, ConfigT],
    preset: str,
    default_env: str = "",
) -> Arguments[ConfigT]:
    """Parses the arguments of a study: ``--preset``, ``--env``, ``--config.<field>`` and the fields of `RunOptions`.

    Args:
      argv: without the name of the program.
      module: what follows ``python -m`` to start the study, such as ``experiments maac``.
      description: first lines of the help.
      presets: configs by name.
      preset: the default one.
      default_env: environment of a preset that is meant for any, where none is given.

    Returns:
      The arguments; ``env`` is the one that the preset is meant for, ``config.env``, where none is given.

    Raises:
      InputError: an unknown preset, bad options, no environment, or an environment that the preset is not meant for.
    """
    prog = f"python -m {module}"
    chosen = named_preset(argv, prog, preset)
    if chosen not in presets:
        raise unknown("preset", chosen, presets)
    config: Any = presets[chosen]
    form: Any = Arguments[type(config)]  # type: ignore[misc]
    arguments = tyro.cli(
        form,
        args=list(argv),
        default=Arguments(chosen, "", RunOptions(), config),
        prog=prog,
        description=f"{description}\n\nPresets: {', '.join(presets)}.",
    )
    if checked(arguments.run).distributed or arguments.run.cpu_devices is not None:
        # Before anything else uses JAX; imported here, because a refused argument needs none.
        from jaxhybrid.runtime import devices

        if arguments.run.cpu_devices is not None:
            devices.divide_cpu(arguments.run.cpu_devices)
        if arguments.run.distributed:
            devices.start_distributed()
    given = arguments.env or ("" if arguments.config.env else default_env)
    env = _meant_env(chosen, given, arguments.config.env)
    return dataclasses.replace(arguments, env=env, command=(sys.executable, "-m", *module.split(), *argv))


def _meant_env(preset: str, given: str, meant: str) -> str:
    """Returns the environment to use, if the numbers are meant for it."""
    if not (given or meant):
        raise InputError(f"env is missing: preset={preset!r} is for any environment, so name one with --env.")
    # A further part of the name, such as the physics, leaves the task as it is.
    if meant and given and given != meant and not given.startswith(f"{meant}/"):
        raise InputError(
            f"env={given!r} is not what preset={preset!r} is meant for, {meant!r}: choose another preset, or add "
            f"--config.env {given} to use its numbers anyway."
        )
    return given or meant
