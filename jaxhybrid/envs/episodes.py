"""From single steps to experience: automatic resets, collection of transitions, and returns of whole episodes.

The first half is pure and works on `Env`; the second half, the ``host_`` functions, does the same for `HostEnv`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, HostEnv, Key, PyTree, TimeStep, Transition

__all__ = [
    "EpisodeEnd",
    "HostWorker",
    "Worker",
    "auto_reset",
    "collect",
    "episode_returns",
    "host_collect",
    "host_episode_returns",
    "host_reset",
]

ActFn = Callable[[Any, Key], Array]
StackedT = TypeVar("StackedT")


class Worker(NamedTuple):
    """One environment that is always ready to act; ``jax.vmap`` gives a batch.

    Attributes:
      env_state: state of the environment.
      obs: observation to act on next, after the reset if an episode has just ended, ``[D]``.
      episode_return: undiscounted return of the episode so far, ``[]``.
      episode_length: steps of the episode so far, ``[]``.
    """

    env_state: PyTree
    obs: Array
    episode_return: Array
    episode_length: Array


class EpisodeEnd(NamedTuple):
    """Whether an episode ended in this step ``[]``, and its return ``[]`` and length ``[]`` up to this step."""

    ended: Array
    episode_return: Array
    episode_length: Array


class HostWorker(NamedTuple):
    """The state of a `HostEnv` that is always ready to act: a pytree of NumPy arrays with leading axis ``N``.

    The fields are those of `Worker`: ``obs [N, D]``, ``episode_return [N]``, ``episode_length [N]``.
    """

    env_state: PyTree
    obs: Any
    episode_return: Any
    episode_length: Any


def auto_reset(
    env: Env,
) -> tuple[Callable[[Key], Worker], Callable[[Worker, Array, Key], tuple[Worker, TimeStep, EpisodeEnd]]]:
    """Returns ``reset(key) -> Worker`` and ``step(worker, action [A], key) -> (worker, TimeStep, EpisodeEnd)``.

    ``TimeStep.obs`` is the true next observation, from which a value is bootstrapped; ``Worker.obs`` is the one to act
    on next. They differ exactly when ``EpisodeEnd.ended``.

    **Gradient flows through** every step of an episode and stops at its end: what follows a reset depends on nothing
    that came before it.

    The cost is one reset per step, since both branches of a select are computed under ``vmap``. It is small next to a
    physics step; where it is not, the reset of the environment itself should draw from stored states.

    Args:
      env: the environment.
    """

    def reset(key: Key) -> Worker:
        env_state, obs = env.reset(key)
        return Worker(env_state, obs, jnp.zeros((), obs.dtype), jnp.zeros((), jnp.int32))

    def step(worker: Worker, action: Array, key: Key) -> tuple[Worker, TimeStep, EpisodeEnd]:
        step_key, reset_key = jax.random.split(key)
        env_state, time_step = env.step(worker.env_state, action, step_key)
        end = EpisodeEnd(
            ended=time_step.terminated | time_step.truncated,
            episode_return=worker.episode_return + time_step.reward.astype(worker.episode_return.dtype),
            episode_length=worker.episode_length + 1,
        )
        # The select alone already hides the past. The stop_gradient also cuts what the start state itself may depend
        # on, such as parameters the environment closes over.
        fresh = jax.lax.stop_gradient(reset(reset_key))
        going = Worker(env_state, time_step.obs, end.episode_return, end.episode_length)
        worker = jax.tree.map(lambda new, old: jnp.where(end.ended, new, old), fresh, going)
        return worker, time_step, end

    return reset, step


def collect(
    env: Env, workers: Worker, act_fn: ActFn, key: Key, *, num_steps: int
) -> tuple[Worker, Transition, dict[str, Array]]:
    """Collects ``num_steps`` transitions from each of ``N`` workers, across the ends of episodes.

    Args:
      env: the environment.
      workers: ``N`` workers, ``jax.vmap(auto_reset(env)[0])(keys)`` or the result of an earlier call.
      act_fn: ``act_fn(obs [D], key) -> action [A]``.
      key: consumed.
      num_steps: ``T``, static.

    Returns:
      The workers; the transitions ``[T, N, ...]``; and ``episodes`` (how many ended), ``episode_return`` and
      ``episode_length`` (means over those, NaN when none ended).
    """
    _, step = auto_reset(env)
    num_workers = workers.obs.shape[0]

    def step_one(worker: Worker, key: Key) -> tuple[Worker, tuple[Transition, EpisodeEnd]]:
        policy_key, env_key = jax.random.split(key)
        action = act_fn(worker.obs, policy_key)
        next_worker, time_step, end = step(worker, action, env_key)
        transition = Transition(
            obs=worker.obs,
            action=action,
            reward=time_step.reward,
            discount=1.0 - time_step.terminated.astype(time_step.reward.dtype),
            next_obs=time_step.obs,
        )
        return next_worker, (transition, end)

    def step_all(workers: Worker, key: Key) -> tuple[Worker, tuple[Transition, EpisodeEnd]]:
        return jax.vmap(step_one)(workers, jax.random.split(key, num_workers))

    workers, (transitions, ends) = jax.lax.scan(step_all, workers, jax.random.split(key, num_steps))
    count = jnp.sum(ends.ended)

    def mean(of: Array) -> Array:
        return jnp.where(count > 0, jnp.sum(jnp.where(ends.ended, of, 0)) / jnp.maximum(count, 1), jnp.nan)

    stats = {
        "episodes": count,
        "episode_return": mean(ends.episode_return),
        "episode_length": mean(ends.episode_length),
    }
    return workers, transitions, stats


def episode_returns(env: Env, act_fn: ActFn, key: Key, *, num_episodes: int) -> tuple[Array, Array]:
    """Returns the undiscounted returns of exactly one episode per draw, so that short episodes are not over-counted.

    One scan of ``max_episode_steps`` for all episodes: what happens after an end is computed and masked.

    Args:
      env: the environment.
      act_fn: ``act_fn(obs [D], key) -> action [A]``.
      key: consumed; keep it apart from the training keys, so that evaluations compare.
      num_episodes: how many, static.

    Returns:
      Returns ``[num_episodes]`` and lengths ``[num_episodes]``.
    """

    def one(key: Key) -> tuple[Array, Array]:
        reset_key, scan_key = jax.random.split(key)
        env_state, obs = env.reset(reset_key)

        def advance(carry: tuple[PyTree, Array, Array, Array, Array], key: Key) -> tuple[Any, None]:
            env_state, obs, alive, total, length = carry
            policy_key, env_key = jax.random.split(key)
            env_state, time_step = env.step(env_state, act_fn(obs, policy_key), env_key)
            # A select, not a product: past its end an environment may return NaN.
            total = total + jnp.where(alive, time_step.reward, 0).astype(total.dtype)
            length = length + alive
            alive = alive & ~(time_step.terminated | time_step.truncated)
            return (env_state, time_step.obs, alive, total, length), None

        carry = (env_state, obs, jnp.ones((), bool), jnp.zeros((), obs.dtype), jnp.zeros((), jnp.int32))
        (_, _, _, total, length), _ = jax.lax.scan(
            advance, carry, jax.random.split(scan_key, env.spec.max_episode_steps)
        )
        return total, length

    return jax.vmap(one)(jax.random.split(key, num_episodes))


def host_reset(env: HostEnv, seed: int) -> HostWorker:
    """Returns a worker at the start of an episode in each of the ``N`` instances.

    Args:
      env: the environment.
      seed: seed of the start states and of every later reset.
    """
    env_state, obs = env.reset(seed)
    obs = np.array(obs)
    return HostWorker(env_state, obs, np.zeros(env.num_envs, obs.dtype), np.zeros(env.num_envs, np.int32))


def host_collect(
    env: HostEnv, worker: HostWorker, act_fn: ActFn, key: Key, *, num_steps: int
) -> tuple[HostWorker, Transition, dict[str, Any]]:
    """Collects ``num_steps`` transitions from each instance of a host environment, as `collect` does.

    Args:
      env: the environment.
      worker: from `host_reset` or an earlier call.
      act_fn: ``act_fn(obs [N, D], keys [N]) -> action [N, A]``, jitted by the caller.
      key: consumed.
      num_steps: ``T``, at least 1.

    Returns:
      The worker; the transitions ``[T, N, ...]`` as NumPy arrays; and the statistics of `collect`.

    Raises:
      InputError: on a number of steps below 1.
    """
    if num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1.")
    transitions, ends = [], []
    # One split for all steps: splitting inside the loop would double its number of device calls.
    for keys in jax.random.split(key, (num_steps, env.num_envs)):
        worker, transition, end = _host_step(env, worker, np.asarray(act_fn(worker.obs, keys)))
        transitions.append(transition)
        ends.append(end)
    stacked, end = _stack(transitions), _stack(ends)
    count = int(end.ended.sum())

    def mean(of: Any) -> np.float32:
        return np.float32(of[end.ended].mean() if count else math.nan)

    stats = {
        "episodes": np.int32(count),
        "episode_return": mean(end.episode_return),
        "episode_length": mean(end.episode_length),
    }
    return worker, stacked, stats


def host_episode_returns(env: HostEnv, act_fn: ActFn, key: Key, *, num_episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the undiscounted returns of ``num_episodes`` episodes of a host environment, as `episode_returns` does.

    The episodes run in rounds of ``N``, one per instance. Taking the first to finish instead would favour short ones.

    Args:
      env: the environment; states held elsewhere stay valid, since its state is explicit.
      act_fn: ``act_fn(obs [N, D], keys [N]) -> action [N, A]``, jitted by the caller.
      key: consumed.
      num_episodes: how many, at least 1.

    Returns:
      Returns ``[num_episodes]`` and lengths ``[num_episodes]``.

    Raises:
      InputError: on a number of episodes below 1.
    """
    if num_episodes < 1:
        raise InputError(f"num_episodes={num_episodes} must be at least 1.")
    returns, lengths = [], []
    for round_key in jax.random.split(key, math.ceil(num_episodes / env.num_envs)):
        seed_key, scan_key = jax.random.split(round_key)
        worker = host_reset(env, int(jax.random.randint(seed_key, (), 0, np.iinfo(np.int32).max)))
        total, length = worker.episode_return, worker.episode_length
        alive = np.ones(env.num_envs, bool)
        for keys in jax.random.split(scan_key, (env.spec.max_episode_steps, env.num_envs)):
            worker, _, end = _host_step(env, worker, np.asarray(act_fn(worker.obs, keys)))
            total = np.where(alive, end.episode_return, total)
            length = np.where(alive, end.episode_length, length)
            alive = alive & ~end.ended
            if not alive.any():
                break
        returns.append(total)
        lengths.append(length)
    return np.concatenate(returns)[:num_episodes], np.concatenate(lengths)[:num_episodes]


def _host_step(env: HostEnv, worker: HostWorker, action: Any) -> tuple[HostWorker, Transition, EpisodeEnd]:
    env_state, time_step = env.step(worker.env_state, action)
    # Copied, because a simulator may hand out the same buffer in every step.
    next_obs: Any = np.array(time_step.obs)
    reward: Any = np.array(time_step.reward)
    terminated: Any = np.asarray(time_step.terminated)
    end = EpisodeEnd(
        ended=terminated | np.asarray(time_step.truncated),
        episode_return=worker.episode_return + reward.astype(worker.episode_return.dtype),
        episode_length=worker.episode_length + np.int32(1),
    )
    transition = Transition(
        obs=worker.obs,
        action=action,
        reward=reward,
        discount=1 - terminated.astype(reward.dtype),
        next_obs=next_obs,
    )
    obs = next_obs
    ended: Any = end.ended
    if ended.any():
        env_state, obs = env.reset_where(env_state, next_obs.copy(), ended)
        obs = np.array(obs)
    total = np.where(end.ended, 0, end.episode_return).astype(end.episode_return.dtype)
    length = np.where(end.ended, 0, end.episode_length).astype(np.int32)
    return HostWorker(env_state, obs, total, length), transition, end


def _stack(records: list[StackedT]) -> StackedT:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)
