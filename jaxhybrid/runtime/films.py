"""One episode of a policy as pictures, as far as the physics of the environment allows."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxhybrid.envs import city, city_trials, maze, mbbl, mujoco_v1
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import city_pictures, drawings, graphics
from jaxhybrid.runtime.graphics import Backend
from jaxhybrid.types import Array, Env, HostEnv, Key, PyTree

__all__ = ["Episode", "Film", "backend_for", "film", "gif", "record"]

ActFn = Callable[..., Array]
_BOARDS = ("catcher", "city", "maze", "simple_maze")
_DRAWN_HERE = ("lqr", "pendulum", *_BOARDS)
_WIDTH, _HEIGHT = 320, 240
_MOST_FRAMES = 250
# Smooth enough, and browsers slow an animation down that asks for half of it.
_SHORTEST_DELAY = 0.04
# Board games have no time.
_SECONDS_PER_MOVE = 0.4


class Episode(NamedTuple):
    """One episode.

    Attributes:
      poses: what a picture needs of each state, ``[T + 1, ...]``.
      total: undiscounted return.
      length: steps ``T``.
    """

    poses: np.ndarray
    total: float
    length: int


class Film(NamedTuple):
    """An animation.

    Attributes:
      content: of a GIF file; empty where nothing can be drawn.
      shows: how much of the episode, from its start, and how fast.
      reason: why there is no content.
    """

    content: bytes
    shows: str
    reason: str


def backend_for(name: str) -> Backend:
    """Chooses what draws an environment; to be called before the environment is made.

    Args:
      name: of the environment; those that are drawn here need no graphics library.
    """
    return Backend(None, ()) if name.partition("/")[0] in _DRAWN_HERE else graphics.choose()


def record(env: Env | HostEnv, act: ActFn, key: Key, *, num_episodes: int) -> Episode:
    """Plays the first of the episodes that `episodes.episode_returns`, or its twin for hosts, plays with this key.

    Args:
      env: a host environment plays its first instance.
      act: ``act(obs [D], key) -> action [A]``.
      key: consumed.
      num_episodes: how many there are.
    """
    if isinstance(env, HostEnv):
        return _host(env, act, jax.random.split(key, math.ceil(num_episodes / env.num_envs))[0])
    return _pure(env, act, jax.random.split(key, num_episodes)[0])


def film(env: Env | HostEnv, episode: Episode, backend: Backend) -> Film:
    """Returns an episode as an animation in real time, of a board game move by move; of a long one the beginning.

    Args:
      env: where the episode was played.
      episode: from `record`.
      backend: what MuJoCo can draw with.
    """
    family, _, rest = env.spec.name.partition("/")
    if family in _BOARDS:
        frames = _city(rest, episode) if family == "city" else _board(family, episode.poses)
        frames = frames[:_MOST_FRAMES]
        shown = f"{len(frames) - 1} moves, {_SECONDS_PER_MOVE} s each"
        return Film(gif(frames, _SECONDS_PER_MOVE), shown, "")
    stride = max(round(_SHORTEST_DELAY / env.spec.dt), 1)
    poses = episode.poses[::stride][:_MOST_FRAMES]
    try:
        if family in _DRAWN_HERE:
            draw = drawings.pendulum if family == "pendulum" else drawings.plane
            frames = draw(poses, width=_WIDTH, height=_HEIGHT)
        elif backend.name is None:
            return Film(b"", "", backend.reason)
        else:
            frames = _rendered(family, rest, poses)
    except InputError as reason:
        return Film(b"", "", str(reason))
    except Exception as reason:  # Graphics libraries raise whatever they like; nothing else may fail for a picture.
        text = " ".join(str(reason).split())[:200]
        return Film(b"", "", f"the renderer failed: {type(reason).__name__}: {text}")
    seconds = stride * env.spec.dt
    return Film(gif(frames, seconds), f"{seconds * (len(frames) - 1):.1f} s, in real time", "")


def gif(frames: list[np.ndarray], seconds: float) -> bytes:
    """Returns pictures ``[H, W, 3]`` as an animation that shows each for so many seconds and begins again."""
    from PIL import Image

    first, *others = [Image.fromarray(frame).quantize(128) for frame in frames]
    buffer = io.BytesIO()
    duration = max(round(1000 * seconds), 1)
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=False)
    return buffer.getvalue()


def _board(family: str, obs: np.ndarray) -> list[np.ndarray]:
    """What the agent sees, large."""
    seen = np.asarray(jax.vmap(maze.render)(jax.numpy.asarray(obs))) if family == "maze" else obs
    return drawings.greyscale(seen, height=_HEIGHT)


def _city(task: str, episode: Episode) -> list[np.ndarray]:
    """Both episodes of a trial, from the record that the last observation is."""
    town = city.make(task)
    task_id, obs = int(episode.poses[-1, 0]), episode.poses[-1, 1:]
    record = city_trials.read(town, jax.numpy.asarray(obs))
    explored, executed = (record.action[part, : record.steps[part]].tolist() for part in (0, 1))
    return city_pictures.frames(town, task_id, record.goal.tolist(), exploration=explored, execution=executed)


def _rendered(family: str, rest: str, poses: np.ndarray) -> list[np.ndarray]:
    size = {"width": _WIDTH, "height": _HEIGHT}
    if family == "gymnasium":
        return importlib.import_module("jaxhybrid.envs.gymnasium_frames").render(rest, poses, **size)
    if family == "mujoco_v1":
        task_facts = mujoco_v1.TASKS[rest]
        renderer = importlib.import_module("jaxhybrid.envs.gymnasium_frames")
        return renderer.render(task_facts.gymnasium, poses, **size, **task_facts.options)
    task, _, physics = rest.partition("/")
    if family == "mbbl":
        facts = mbbl.MBBL_TASKS[task]
        if physics == "mujoco":
            renderer = importlib.import_module("jaxhybrid.envs.gymnasium_frames")
            return renderer.render(facts.gymnasium, poses, **size, **facts.options)
        task = facts.brax
    return importlib.import_module("jaxhybrid.envs.brax_frames").render(task, physics, poses, **size)


def _pose(name: str, env_state: PyTree, obs: Any) -> Any:
    """What a picture needs of a state: joint positions, the simulator's state, or the observation."""
    family = name.partition("/")[0]
    if isinstance(env_state, city_trials.TrialState):
        task_id = env_state.episode.task_id
        return jax.numpy.concatenate([task_id[None].astype(obs.dtype), obs])
    if family in ("mbbl", "mujoco_v1"):
        env_state = env_state.physics
    if family in ("gymnasium", "mujoco_v1") or name.endswith("/mujoco"):
        return env_state.physics[0]
    if family in ("brax", "mbbl"):
        return obs if env_state.physics is None else env_state.physics.q
    return obs


def _pure(env: Env, act: ActFn, key: Key) -> Episode:
    def play(key: Key) -> tuple[Array, Array, Array, Array]:
        reset_key, scan_key = jax.random.split(key)
        env_state, obs = env.reset(reset_key)

        def advance(carry: tuple[PyTree, Array], key: Key) -> tuple[tuple[PyTree, Array], Any]:
            env_state, obs = carry
            policy_key, env_key = jax.random.split(key)
            env_state, step = env.step(env_state, act(obs, policy_key), env_key)
            pose = _pose(env.spec.name, env_state, step.obs)
            return (env_state, step.obs), (pose, step.reward, step.terminated | step.truncated)

        keys = jax.random.split(scan_key, env.spec.max_episode_steps)
        _, (poses, rewards, ended) = jax.lax.scan(advance, (env_state, obs), keys)
        return _pose(env.spec.name, env_state, obs), poses, rewards, ended

    start, poses, rewards, ended = map(np.asarray, jax.jit(play)(key))
    # Past its end an environment may return anything.
    length = int(np.argmax(ended)) + 1
    return Episode(np.concatenate([start[None], poses[:length]]), float(rewards[:length].sum()), length)


def _host(env: HostEnv, act: ActFn, key: Key) -> Episode:
    seed_key, scan_key = jax.random.split(key)
    env_state, obs = env.reset(int(jax.random.randint(seed_key, (), 0, np.iinfo(np.int32).max)))
    acts = jax.jit(jax.vmap(act))
    poses, total, length = [np.array(_pose(env.spec.name, env_state, obs))], 0.0, 0
    for keys in jax.random.split(scan_key, (env.spec.max_episode_steps, env.num_envs)):
        env_state, step = env.step(env_state, np.asarray(acts(obs, keys)))
        obs = np.array(step.obs)
        poses.append(np.array(_pose(env.spec.name, env_state, obs)))
        total, length = total + float(step.reward[0]), length + 1
        if step.terminated[0] or step.truncated[0]:
            break
    return Episode(np.stack(poses), total, length)
