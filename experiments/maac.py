"""MAAC and its ablations SAC, MBPO and STEVE on one environment, with any number of seeds side by side.

The default learns within minutes on a laptop: ``python -m experiments maac``. ``--preset`` chooses the numbers,
``--config.<field>`` changes one of them, ``--env`` the environment.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jaxhybrid.runtime import cli, loop, policies
from jaxhybrid.systems import maac

STUDY = "maac"


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense; nothing was written then.
    """
    arguments = cli.parse(
        argv,
        prog=f"python -m experiments {STUDY}",
        description=(__doc__ or "").partition("\n")[0],
        presets=maac.presets,
        preset="demo",
        default_env="pendulum",
    )
    config, options = arguments.config, arguments.run
    env = cli.study_env(arguments.env, config.num_envs)
    result = loop.train(
        maac.make(config, env),
        env,
        study=STUDY,
        preset=arguments.preset,
        config=config,
        options=options,
        iterations=config.iterations,
        num_steps=config.steps_per_iteration // config.num_envs,
    )
    if result.exit_code == 0:
        policies.save(
            result.directory / "policy",
            params=result.state.learner.policy_params,
            study=STUDY,
            config=dataclasses.asdict(config),
            spec=env.spec,
            seeds=list(range(options.seed, options.seed + options.seeds)),
            iteration=result.iteration,
        )
    return result.exit_code


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
