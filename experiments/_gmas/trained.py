"""What a finished run of ``python -m experiments gmas`` has learnt, read back from its newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import gmas as study
from jaxhybrid.envs import maze, maze_oracle
from jaxhybrid.envs.maze_pool import MazePool
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, console, programs, records
from jaxhybrid.runtime.members import Member
from jaxhybrid.systems import gmas
from jaxhybrid.systems.gmas_parts import Parts, make_parts
from jaxhybrid.types import Array, Env, PyTree

__all__ = ["Trained", "held_out_mazes", "load", "oracle", "returns"]


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
    env, test_env, sprites = gmas.environments(config, identity["env"])
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


def held_out_mazes(config: gmas.Config) -> MazePool:
    """The different mazes that a run was tested in.

    Raises:
      InputError: every test maze is one of training too.
    """
    pool = gmas.mazes(config)[1]
    words = [wall.tobytes() + key.tobytes() for wall, key in zip(pool.walls, np.sort(pool.keys, axis=1), strict=True)]
    first = np.unique(words, return_index=True)[1]
    return MazePool(pool.walls[first], pool.keys[first])


def returns(agent: Trained, pool: MazePool, depth: int) -> np.ndarray:
    """Returns of greedy episodes, one in every maze of a pool, ``[P]``."""
    env = maze.make(pool=pool, observation="cells")

    def episode(index: Array) -> Array:
        def advance(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
            state, obs, alive, total = carry
            # Neither a greedy move nor a maze draws anything.
            key = jax.random.key(0)
            action = gmas.planned_act(agent.parts, agent.params, obs, key, depth=depth)
            state, step = env.step(state, action, key)
            total += jnp.where(alive, step.reward, 0.0)
            return (state, step.obs, alive & ~(step.terminated | step.truncated), total), None

        state = maze.start(pool, index)
        carry = (state, maze.cells(state), jnp.array(True), jnp.zeros(()))
        return jax.lax.scan(advance, carry, None, length=env.spec.max_episode_steps)[0][3]

    return np.asarray(jax.jit(jax.vmap(episode))(jnp.arange(len(pool.walls))))


def oracle(pool: MazePool) -> np.ndarray:
    """Returns of the shortest tours, ``[P]``."""

    def best(index: Array) -> Array:
        state = maze.start(pool, index)
        return maze_oracle.best_return(maze_oracle.survey(state, pool.keys.shape[1]), state)

    return np.asarray(jax.vmap(best)(jnp.arange(len(pool.walls))))
