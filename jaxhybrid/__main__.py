"""``python -m jaxhybrid [<command> [options]]``: what can be done with the runs of the studies."""

import importlib
import sys
from collections.abc import Sequence

from jaxhybrid.errors import unknown
from jaxhybrid.runtime import cli

COMMANDS = ("compare", "report", "play", "export", "replay", "doctor")


def main(argv: Sequence[str]) -> int:
    """Lists the commands, or runs the one that is named first with the arguments that follow.

    Args:
      argv: of the process, without its name.

    Returns:
      The exit code.

    Raises:
      InputError: the name is none of the commands, or the command refuses its arguments.
    """
    if not argv or argv[0] in ("-h", "--help"):
        described = cli.studies("jaxhybrid.runtime")
        width = max(map(len, COMMANDS))
        listing = [f"  {name:<{width}}  {described[name]}" for name in COMMANDS]
        usage = "usage: python -m jaxhybrid <command> [options]; --help after a command lists its options"
        sys.stdout.write("\n".join([usage, *listing]) + "\n")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    return importlib.import_module(f"jaxhybrid.runtime.{name}").main(rest)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
