"""Plays the policy of a run and says what it earns.

``python -m jaxhybrid play runs/a --episodes 20 --video pictures``: on the environment of the run, or with ``--env`` on
another whose observations and actions have the same shape. Actions are rescaled as in training.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, console

if TYPE_CHECKING:
    from jaxhybrid.runtime.policies import SavedPolicy
    from jaxhybrid.types import Env, EnvSpec, HostEnv

__all__ = ["compatible_env", "main"]

# Host environments that step side by side.
_MOST_INSTANCES = 10


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is played."""

    run: Annotated[str, tyro.conf.Positional]
    """Directory of a complete run, or of a policy."""
    env: str = ""
    """Environment; by default that of the run."""
    episodes: int = 10
    """Episodes."""
    seed: int | None = None
    """Which training seed of a run of several; by default the first."""
    start_seed: int | None = None
    """Which start states; by default those of the run's own evaluations."""
    sample: bool = False
    """Draw actions instead of taking the mode."""
    video: str | None = None
    """Directory for an animation of the first episode; it is created, and nothing in it is replaced."""


def main(argv: Sequence[str]) -> int:
    """Prints mean and standard deviation of the returns; returns the exit code.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: no policy there, an environment that it does not fit, or an argument that makes no sense; nothing was
        written then.
    """
    arguments = tyro.cli(Arguments, args=list(argv), prog="python -m jaxhybrid play", description=__doc__)
    if arguments.episodes < 1:
        raise InputError(f"episodes={arguments.episodes} must be at least 1.")
    if arguments.start_seed is not None and not 0 <= arguments.start_seed < 2**31:
        raise InputError(f"start_seed={arguments.start_seed} must be from 0 to {2**31 - 1}.")
    video = _video_file(arguments.video)

    from jaxhybrid.runtime import policies

    policy = policies.of_seed(policies.of_run(arguments.run), arguments.seed)
    act = policies.act_fn(policy)

    def act_one(obs: Any, key: Any) -> Any:
        return act(obs, key, deterministic=not arguments.sample)

    # The graphics library is chosen before an environment loads MuJoCo.
    from jaxhybrid.runtime import films, programs

    backend = films.backend_for(arguments.env or policy.spec["name"]) if video else None
    env = compatible_env(arguments.env, policy, min(arguments.episodes, _MOST_INSTANCES))
    key = programs.evaluation_key(policy.seeds[0] if arguments.start_seed is None else arguments.start_seed)
    console.say(f"{policy.study}, seed {policy.seeds[0]}, plays {env.spec.name} ...")
    returns, lengths = _played(env, act_one, key, arguments.episodes)
    sys.stdout.write(
        f"return: mean {returns.mean():,.2f}, standard deviation {returns.std():,.2f}, "
        f"from {returns.min():,.2f} to {returns.max():,.2f}; length: mean {lengths.mean():,.1f} "
        f"({arguments.episodes} episodes)\n"
    )
    if video is not None and backend is not None:
        episode = films.record(env, act_one, key, num_episodes=arguments.episodes)
        film = films.film(env, episode, backend)
        if not film.content:
            console.warn(f"video={arguments.video!r} was not made: {film.reason}")
            return 0
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(film.content)
        console.say(f"{video}: the first episode, {film.shows}; return {episode.total:,.2f}, {episode.length} steps")
    return 0


def compatible_env(name: str, policy: SavedPolicy, num_envs: int) -> Env | HostEnv:
    """Makes the environment of a policy or another that it fits, its actions rescaled as in training.

    Args:
      name: of the environment; empty for that of the policy.
      policy: which is to play.
      num_envs: instances of a host environment.

    Raises:
      InputError: an unknown name, or observations or actions of another shape or range.
    """
    from jaxhybrid import envs
    from jaxhybrid.runtime import policies

    spec = policy.spec
    if policy.network is None and name not in ("", spec["name"]):
        raise InputError(f"env={name!r}: a policy of study={policy.study!r} plays {spec['name']!r} only.")
    own = not name or policy.network is None
    env = policies.environment(policy, num_envs) if own else envs.make_rescaled(name, num_envs)
    for field in ("obs_dim", "action_dim", "action_low", "action_high"):
        have, want = _plain(env.spec, field), [float(number) for number in np.ravel(spec[field]).tolist()]
        if have != want:
            raise InputError(
                f"env={env.spec.name!r} has {field}={have}, the policy of {spec['name']!r} needs {want}: choose an "
                "environment with the same observations and actions."
            )
    return env


def _plain(spec: EnvSpec, field: str) -> list[float]:
    return [float(number) for number in np.ravel(getattr(spec, field))]


def _played(env: Env | HostEnv, act: Any, key: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    import jax

    from jaxhybrid.envs import episodes
    from jaxhybrid.types import HostEnv

    if isinstance(env, HostEnv):
        acts = jax.jit(jax.vmap(act))
        return episodes.host_episode_returns(env, acts, key, num_episodes=count)
    returns, lengths = jax.jit(lambda k: episodes.episode_returns(env, act, k, num_episodes=count))(key)
    return np.asarray(returns), np.asarray(lengths)


def _video_file(directory: str | None) -> Path | None:
    if directory is None:
        return None
    path = Path(directory).expanduser() / "episode.gif"
    if path.exists():
        raise InputError(f"video={directory!r} already has {path.name}: name another directory.")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise InputError(f"video={directory!r} cannot be created: {str(existing)!r} is a file.")
    return path


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
