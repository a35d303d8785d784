"""A trained MAAC with and without planning at test time: the MAAC paper's table 1 for a run of yours.

Reads the newest checkpoint of a run of ``python -m experiments maac`` and evaluates, on the same start states, the
policy alone and the cross-entropy planner that starts from it and uses the run's model and critics. Writes nothing but
``planning.json`` in the directory of the run.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, cli, console, programs, records
from jaxhybrid.systems import maac
from jaxhybrid.systems.maac_config import RolloutSchedule
from jaxhybrid.systems.maac_planning import planned_act
from jaxhybrid.types import Env


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    run: str
    """Directory of a finished run of MAAC on a pure environment."""
    episodes: int = 10
    """Episodes per seed, the same start states with and without planning."""
    horizon: int = 5
    """Model steps of a plan."""
    candidates: int = 256
    """Action sequences per iteration of the planner."""
    iterations: int = 5
    """Refits per action."""


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run of MAAC there, or an argument that makes no sense; nothing was written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments maac_planning", description=__doc__)
    for name in ("episodes", "candidates", "iterations"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}={getattr(arguments, name)} must be at least 1.")
    if arguments.horizon < 0:
        raise InputError(f"horizon={arguments.horizon} must not be negative.")
    directory = Path(arguments.run).expanduser()
    identity = records.identity(directory)
    if identity.get("study") != "maac":
        raise InputError(f"run={arguments.run!r} is no run of the study 'maac': name the --out of one.")
    config = _config(identity["config"])
    env = cli.study_env(identity["env"], config.num_envs)
    if not isinstance(env, Env):
        raise InputError(f"run={arguments.run!r} is on {env.spec.name!r}, which runs on the host: planning needs jit.")
    seeds = np.arange(identity["seed"], identity["seed"] + identity["seeds"])
    state = _state(directory, maac.make(config, env), seeds)

    plan = planned_act(
        config,
        env,
        horizon=arguments.horizon,
        num_candidates=arguments.candidates,
        num_iterations=arguments.iterations,
    )
    policy = maac.make(config, env).act
    table = {}
    for label, act in {
        "policy": lambda s, o, k: policy(s, o, k, deterministic=True),
        "policy + planning": plan,
    }.items():
        console.say(f"{label}: evaluating ...")

        def evaluate(s, key, act=act):
            return episodes.episode_returns(env, lambda o, k: act(s, o, k), key, num_episodes=arguments.episodes)[0]

        keys = [programs.evaluation_key(int(seed)) for seed in seeds]
        returns = np.stack([np.asarray(jax.jit(evaluate)(s, key)) for s, key in zip(state, keys, strict=True)])
        table[label] = returns.tolist()
        console.say(
            f"{label}: return {returns.mean():,.1f}, standard deviation {returns.std():,.1f} ({returns.size} episodes)"
        )
    facts = {"arguments": dataclasses.asdict(arguments), "seeds": seeds.tolist(), "returns": table}
    (directory / "planning.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def _config(values: dict) -> maac.Config:
    """Rebuilds the record from what the manifest holds."""
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    schedule = RolloutSchedule(**values["rollout_schedule"])
    return maac.Config(**{**values, **lists, "rollout_schedule": schedule})


def _state(directory: Path, system, seeds: np.ndarray) -> list[maac.State]:
    """The newest good checkpoint, one state per seed."""
    several = len(seeds) > 1
    init = jax.vmap(system.init) if several else system.init
    each = [programs.training_key(int(seed)) for seed in seeds]
    restored = checkpoint.restore(
        directory / "checkpoints",
        {"state": jax.eval_shape(init, jnp.stack(each) if several else each[0])},
        console.warn,
    )
    if restored is None:
        raise InputError(f"run={str(directory)!r} has no checkpoint: let the run finish first.")
    state = restored.tree["state"]
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(seeds))] if several else [state]


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
