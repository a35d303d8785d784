"""Writes the policy of a run as a StableHLO program that runs without this library.

``python -m jaxhybrid export runs/a --out policy.bin``; with JAX alone,
``jax.export.deserialize(bytearray(open("policy.bin", "rb").read())).call(obs)`` maps observations ``[B, D]`` to actions
``[B, A]``. Only load programs from people you trust.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxhybrid.runtime import cli, console, outputs

__all__ = ["main"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is exported."""

    run: Annotated[str, tyro.conf.Positional]
    """Directory of a complete run, or of a policy."""
    out: str
    """File to write; an existing one is not touched."""
    seed: int | None = None
    """Which training seed of a run of several; by default the first."""
    sample: bool = False
    """Draw actions, from a seed that is the second argument, instead of taking the mode."""


def main(argv: Sequence[str]) -> int:
    """Writes the program; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no policy there, a policy that cannot be used, or a file that exists; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid export", description=__doc__)
    out = outputs.new_file(arguments.out)

    import jax.export

    from jaxhybrid.runtime import policies

    policy = policies.of_seed(policies.of_run(arguments.run), arguments.seed)
    program = policies.export(policy, deterministic=not arguments.sample)
    outputs.write(out, program)
    shapes = jax.export.deserialize(bytearray(program))
    console.say(
        f"{arguments.out}: {len(program):,} bytes, from {shapes.in_avals[0].str_short()} to "
        f"{shapes.out_avals[0].str_short()}, seed {policy.seeds[0]} of {policy.study} on {policy.spec['name']}"
    )
    return 0


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
