"""A trained MAAC with and without planning at test time: the MAAC paper's table 1.

Trains a run of ``python -m experiments maac``, or takes the one named with ``--run``, and evaluates, on the same start
states, the policy alone and the cross-entropy planner that starts from it and uses the run's model and critics. Adds
nothing but ``planning.json`` to the directory of the run, or writes it where ``--result`` says.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import experiments.maac
from jaxhybrid import envs
from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, cli, console, outputs, programs, records
from jaxhybrid.runtime.members import Member
from jaxhybrid.systems import maac
from jaxhybrid.systems.maac_config import RolloutSchedule
from jaxhybrid.systems.maac_planning import planned_act
from jaxhybrid.types import Env, System


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the study is given on the command line."""

    preset: Literal["demo", "smoke"] = "demo"
    """Numbers of the run to train, and of the planner: smoke ends within a minute."""
    run: str | None = None
    """Directory of a finished run of MAAC on a pure environment; by default a new one is trained."""
    seeds: int = 1
    """Seeds of the run to train."""
    out: str | None = None
    """Directory of the run to train; by default as for the study maac."""
    result: str | None = None
    """File of the returns; by default planning.json in the directory of the run."""
    episodes: int | None = None
    """Episodes per seed, the same start states with and without planning."""
    horizon: int | None = None
    """Model steps of a plan."""
    candidates: int | None = None
    """Action sequences per iteration of the planner."""
    elites: int | None = None
    """The best of them, which a refit uses; by default a tenth."""
    iterations: int | None = None
    """Refits per action."""


_PLANNERS = {
    "demo": {"episodes": 10, "horizon": 5, "candidates": 256, "iterations": 5},
    "smoke": {"episodes": 2, "horizon": 2, "candidates": 30, "iterations": 2},
}


def main(argv: Sequence[str]) -> int:
    """Runs the study; returns the exit code of the process.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no run of MAAC there, one with a result already, or an argument that makes no sense; nothing was
        written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m experiments maac_planning", description=__doc__)
    planner = {n: getattr(arguments, n) or value for n, value in _PLANNERS[arguments.preset].items()}
    planner["elites"] = arguments.elites or max(1, planner["candidates"] // 10)
    for name, value in planner.items():
        if value < 1 or getattr(arguments, name) == 0:
            raise InputError(f"{name}={getattr(arguments, name)} must be at least 1.")
    if planner["elites"] > planner["candidates"]:
        raise InputError(f"elites={planner['elites']} must be at most candidates={planner['candidates']}.")
    if arguments.run is not None and arguments.out is not None:
        raise InputError(
            "run and out are both given: --out is the directory of a run to train, --run of a finished one."
        )
    default = records.default_directory("maac", "", arguments.preset, 0)
    directory = Path(arguments.run or arguments.out or default).expanduser()
    if arguments.result is not None:
        outputs.new_file(arguments.result, field="result")
    if arguments.run is None:
        options = ["--preset", arguments.preset, "--seeds", str(arguments.seeds), "--out", str(directory)]
        code = experiments.maac.main(options)
        if code:
            return code
    identity = _identity(directory)
    config = _config(identity["config"])
    env = envs.make_rescaled(identity["env"], config.num_envs)
    if not isinstance(env, Env):
        raise InputError(f"run={str(directory)!r} is on {env.spec.name!r}, which runs on the host: planning needs jit.")
    result = outputs.new_file(arguments.result or str(directory / "planning.json"), field="result")
    table = _evaluate(config, env, identity["seeds"], _states(directory, maac.make(config, env), identity), planner)
    facts = {"planner": planner, "seeds": identity["seeds"], "returns": table}
    result.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


def _evaluate(
    config: maac.Config, env: Env, seeds: Sequence[int], states: Sequence[maac.State], planner: Mapping[str, int]
) -> dict[str, list[list[float]]]:
    """Returns of every seed and episode, without and with planning."""
    plan = planned_act(
        config,
        env,
        horizon=planner["horizon"],
        num_candidates=planner["candidates"],
        num_iterations=planner["iterations"],
        num_elites=planner["elites"],
    )
    policy = maac.make(config, env).act
    table = {}
    for label, act in {
        "policy": lambda s, o, k: policy(s, o, k, deterministic=True),
        "policy + planning": plan,
    }.items():
        console.say(f"{label}: evaluating ...")

        def evaluate(s, key, act=act):
            return episodes.episode_returns(env, lambda o, k: act(s, o, k), key, num_episodes=planner["episodes"])[0]

        keys = [programs.evaluation_key(seed) for seed in seeds]
        returns = np.stack([np.asarray(jax.jit(evaluate)(s, key)) for s, key in zip(states, keys, strict=True)])
        table[label] = returns.tolist()
        console.say(
            f"{label}: return {returns.mean():,.1f}, standard deviation {returns.std():,.1f} ({returns.size} episodes)"
        )
    return table


def _identity(directory: Path) -> dict[str, Any]:
    identity = records.identity(directory)
    if identity.get("study") != "maac":
        raise InputError(f"run={str(directory)!r} is no run of the study 'maac': name the --out of one.")
    if identity["sweep"]:
        raise InputError(f"run={str(directory)!r} is a sweep over {', '.join(identity['sweep'])}: name one part of it.")
    return identity


def _config(values: dict) -> maac.Config:
    """Rebuilds the record from what the manifest holds."""
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    schedule = RolloutSchedule(**values["rollout_schedule"])
    return maac.Config(**{**values, **lists, "rollout_schedule": schedule})


def _states(directory: Path, system: System, identity: Mapping[str, Any]) -> list[maac.State]:
    """The newest good checkpoint, one state per seed."""
    if identity["parallel"] == "processes":
        parts = [directory / Member(seed, {}).label for seed in identity["seeds"]]
        return [state for part in parts for state in _states(part, system, records.identity(part))]
    keys = [programs.training_key(seed) for seed in identity["seeds"]]
    several = len(keys) > 1
    template = jax.eval_shape(jax.vmap(system.init), jnp.stack(keys)) if several else jax.eval_shape(system.init, *keys)
    restored = checkpoint.restore(directory / "checkpoints", {"state": template}, console.warn)
    if restored is None:
        raise InputError(f"run={str(directory)!r} has no checkpoint: let the run finish first.")
    state = restored.tree["state"]
    return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(keys))] if several else [state]


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
