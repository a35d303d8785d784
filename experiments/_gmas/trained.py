"""What a finished run of ``python -m experiments gmas`` has learnt, read back from its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import gmas as study
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, console, programs, records
from jaxhybrid.runtime.members import Member
from jaxhybrid.systems import gmas
from jaxhybrid.systems.gmas_parts import Parts, make_parts
from jaxhybrid.types import Env, PyTree

__all__ = ["Trained", "load"]


class Trained(NamedTuple):
    """A trained agent.

    Attributes:
      config: numbers of the run.
      parts: its networks.
      params: of the networks, by name.
      test_env: where it was tested.
    """

    config: gmas.Config
    parts: Parts
    params: dict[str, PyTree]
    test_env: Env


def load(directory: Path | str, seed: int | None = None) -> Trained:
    """Reads one seed of a run, by default the first.

    Raises:
      InputError: no run of the study with a checkpoint is there, it is a sweep, or it has no such seed.
    """
    directory = Path(directory).expanduser()
    identity = records.identity(directory)
    if identity.get("study") != study.STUDY:
        raise InputError(f"run={str(directory)!r} is no run of the study {study.STUDY!r}: name the --out of one.")
    if identity["sweep"]:
        raise InputError(f"run={str(directory)!r} is a sweep over {', '.join(identity['sweep'])}: name one part of it.")
    seeds = identity["seeds"]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise InputError(f"seed={seed} was not trained: choose one of {', '.join(map(str, seeds))}.")
    if identity["parallel"] == "processes":
        return load(directory / Member(seed, {}).label, seed)
    values: Any = {name: tuple(x) if isinstance(x, list) else x for name, x in identity["config"].items()}
    config = gmas.Config(**values)
    env, test_env, sprites = study.environments(identity["env"], config)
    init = gmas.make(config, env, sprites=sprites).init
    keys = [programs.training_key(each) for each in seeds]
    several = len(keys) > 1
    template = jax.eval_shape(jax.vmap(init), jnp.stack(keys)) if several else jax.eval_shape(init, *keys)
    restored = checkpoint.restore(directory / "checkpoints", {"state": template}, console.warn)
    if restored is None:
        raise InputError(f"run={str(directory)!r} has no checkpoint: let the run finish first.")
    params = restored.tree["state"].learner.params
    if several:
        params = jax.tree.map(lambda x: x[seeds.index(seed)], params)
    return Trained(config, make_parts(config, env.spec, sprites), params, test_env)
