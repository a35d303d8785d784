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
from jaxhybrid.systems.gmas_config import checked

STUDY = "gmas"
_TEST_MAZES = 1024


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    arguments = cli.parse(
        _with_method(argv),
        module=f"experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=gmas.presets,
        preset="demo",
        default_env="maze",
    )
    config = arguments.config
    env, test_env, sprites = environments(arguments.env, config)
    tested = test_env if config.test_depths else None
    return training.train(
        lambda numbers, _: gmas.make(numbers, env, sprites=sprites, test_env=tested),
        test_env,
        study=STUDY,
        preset=arguments.preset,
        config=config,
        options=arguments.run,
        iterations=config.iterations,
        policy_params=lambda state: state.learner.params,
        command=arguments.command,
    ).exit_code


def _with_method(argv: Sequence[str]) -> list[str]:
    """Turns ``--method`` and ``--depth``, the paper's words, into a preset and one of its fields."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method")
    parser.add_argument("--depth")
    given, rest = parser.parse_known_args(argv)
    if given.method is not None:
        if "--preset" in rest:
            raise InputError(f"method={given.method!r} and --preset both name the numbers: give one of them.")
        rest = ["--preset", given.method, *rest]
    return rest if given.depth is None else [*rest, "--config.match-depth", given.depth]


def environments(name: str, config: gmas.Config):
    """The environment of the random moves, the one of the tests, and what their cells look like."""
    # Imported here, so that a refused argument needs no JAX.
    from jaxhybrid import envs
    from jaxhybrid.envs import maze

    checked(config, envs.make(name).spec)
    if name != "maze":
        return envs.make(name), envs.make(name), None
    trained, tested = mazes(config)
    train = envs.make(name, pool=trained, max_episode_steps=config.train_limit, observation="cells")
    return train, envs.make(name, pool=tested, observation="cells"), maze.sprites()


def mazes(config: gmas.Config):
    """The pools of the random moves and of the tests, which have no maze in common.

    Raises:
      InputError: there are too few mazes of this kind to hold one out.
    """
    from jaxhybrid.envs import maze_pool

    numbers = {"side": config.maze_side, "num_keys": config.maze_keys}
    trained = maze_pool.make_pool(config.generator, config.train_mazes, 0, "train", **numbers)
    drawn = maze_pool.make_pool(config.generator, _TEST_MAZES, 0, "test", **numbers)
    return trained, maze_pool.held_out(drawn, trained)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
