"""Gradient matching in the abstract space (GMAS) on combined reinforcement via abstract representations (CRAR).

An encoder, a model and a critic learn from a fixed set of random moves; a tree over the model acts. CRAR is the same
step with ``alpha=0``. The numbers live in `systems.gmas_config`, what it is composed of in
`systems.gmas_parts`, a gradient update in `systems.gmas_updates`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import envs
from jaxhybrid.envs import episodes, maze, maze_pool
from jaxhybrid.errors import InputError
from jaxhybrid.planning import tree
from jaxhybrid.systems import gmas_updates as updates
from jaxhybrid.systems.gmas_config import Config, checked, presets
from jaxhybrid.systems.gmas_parts import Parts, make_parts
from jaxhybrid.systems.gmas_updates import Learner
from jaxhybrid.types import Array, Env, HostEnv, Key, Metrics, PyTree, Setting, System, Transition

__all__ = ["Config", "State", "collect", "environments", "make", "mazes", "planned_act", "presets", "setting"]

# The test episodes are the same for every seed and at every time.
_TEST_KEY = 0x7E57
_TEST_MAZES = 1024


class State(NamedTuple):
    """Everything that persists between iterations.

    Attributes:
      learner: networks, optimisers, counts of updates done and refused.
      data: the steps to learn from in their order, ``[num_tuples, ...]``, observations as they are stored.
      key: key of the next iteration.
    """

    learner: Learner
    data: Transition
    key: Key


def setting(config: Config, name: str) -> Setting:
    """Returns what a run in the environment of this name is made of.

    Raises:
      InputError: as for `make` and `mazes`.
    """
    env, test_env, sprites = environments(config, name)
    parts = make_parts(config, env.spec, sprites)

    def make_in(numbers: Config, _: Env) -> System:
        return make(numbers, env, sprites=sprites, test_env=test_env if config.test_depths else None)

    def act(policy_params: PyTree, obs: Array, key: Key, *, deterministic: bool) -> Array:
        epsilon = 0.0 if deterministic else config.test_epsilon
        return planned_act(parts, policy_params, obs, key, depth=config.plan_depth, epsilon=epsilon)

    return Setting(make_in, test_env, lambda state: state.learner.params, act)


def environments(config: Config, name: str) -> tuple[Env, Env, np.ndarray | None]:
    """Returns the environment of the random moves, that of the tests, and what their cells look like if they have any.

    Raises:
      InputError: as for `make` and `mazes`.
    """
    env = envs.make(name)
    checked(config, env.spec)
    if isinstance(env, HostEnv):
        raise InputError(f"env={name!r} runs on the host, where GMAS cannot test itself: choose catcher or a maze.")
    if name != "maze":
        return env, env, None
    trained, tested = mazes(config)
    env = maze.make(pool=trained, max_episode_steps=config.train_limit, observation="cells")
    return env, maze.make(pool=tested, observation="cells"), maze.sprites()


def mazes(config: Config) -> tuple[maze_pool.MazePool, maze_pool.MazePool]:
    """Returns the pools of the random moves and of the tests, which have no maze in common.

    Raises:
      InputError: there are too few mazes of this kind to hold one out.
    """
    numbers = {"side": config.maze_side, "num_keys": config.maze_keys}
    trained = maze_pool.make_pool(config.generator, config.train_mazes, 0, "train", **numbers)
    drawn = maze_pool.make_pool(config.generator, _TEST_MAZES, 0, "test", **numbers)
    return trained, maze_pool.held_out(drawn, trained)


def make(
    config: Config,
    env: Env,
    *,
    sprites: np.ndarray | None = None,
    test_env: Env | None = None,
    data: Transition | None = None,
) -> System:
    """Builds GMAS for an environment with discrete actions and pictures.

    Args:
      config: the numbers; see `presets`.
      env: where the random moves are made, in ``init``; ``step`` touches it no more.
      sprites: ``[K, p, p]`` such as `envs.maze.sprites`, where observations are cells ``[C, C]`` of ``K`` kinds, kept
        in a byte each, and stand for pictures of ``C p`` pixels a side. None where they are pictures.
      test_env: where ``step`` tests every depth of ``config.test_depths``, with and without random moves; it observes
        as ``env`` does. None tests nothing.
      data: steps to learn from, in place of those that ``init`` would collect.

    Returns:
      ``System(init, step, act)``. ``act`` plans to ``config.plan_depth``, and explores unless ``deterministic``.

    Raises:
      InputError: a field of ``config`` that makes no sense, pictures of another shape than the networks take, or data
        of another shape than the environment's.

    Source: Chadha 2020 (GMAS); Francois-Lavet et al. 2019 (CRAR).
    """
    config = checked(config, env.spec)
    obs_shape = env.spec.obs_shape or (env.spec.obs_dim,)
    parts = make_parts(config, env.spec, sprites)
    if data is not None and (data.obs.shape[1:] != obs_shape or data.reward.shape[0] <= config.match_depth):
        raise InputError(
            f"data has observations {data.obs.shape}, expected [N, {', '.join(map(str, obs_shape))}] with N above "
            f"match_depth={config.match_depth}."
        )

    def init(key: Key) -> State:
        learner_key, data_key, run_key = jax.random.split(key, 3)
        steps = collect(env, data_key, config.num_tuples) if data is None else data
        if sprites is not None:
            steps = steps._replace(obs=steps.obs.astype(jnp.uint8), next_obs=steps.next_obs.astype(jnp.uint8))
        return State(updates.init_learner(parts, learner_key), steps, run_key)

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        epsilon = 0.0 if deterministic else config.test_epsilon
        return planned_act(parts, state.learner.params, obs, key, depth=config.plan_depth, epsilon=epsilon)

    def step(state: State, batch: None = None) -> tuple[State, Metrics]:
        del batch  # what there is to learn from has been collected
        next_key, weights_key, updates_key = jax.random.split(state.key, 3)
        weights = updates.depth_weights(parts, state.learner.params, state.data, weights_key)
        iteration = state.learner.updates // config.updates_per_iteration
        learning_rate = config.learning_rate * jnp.power(config.learning_rate_decay, iteration)

        def one(learner: Learner, key: Key) -> tuple[Learner, dict[str, Array]]:
            sample_key, loss_key = jax.random.split(key)
            index = jax.random.randint(sample_key, (config.batch_size,), 0, state.data.reward.shape[0])
            rows = jax.tree.map(lambda x: x[index], state.data)
            return updates.update(parts, learner, rows, weights, learning_rate, loss_key)

        keys = jax.random.split(updates_key, config.updates_per_iteration)
        learner, logged = jax.lax.scan(one, state.learner, keys)
        metrics = {name: jnp.mean(value) for name, value in logged.items()}
        metrics |= _tests(parts, learner, test_env)
        metrics |= {
            "match/mean_depth": weights @ jnp.arange(weights.shape[0], dtype=weights.dtype) / jnp.sum(weights),
            "env/steps": jnp.asarray(state.data.reward.shape[0], jnp.int32),
            "train/updates": learner.updates,
            "guard/nonfinite": learner.guard.refused,
            "guard/nonfinite_streak": learner.guard.streak,
        }
        return State(learner, state.data, next_key), metrics

    return System(init, step, act)


def collect(env: Env, key: Key, num_tuples: int) -> Transition:
    """Returns ``num_tuples`` steps of uniformly random moves of one agent, episode after episode, ``[N, ...]``.

    One agent and not many: an episode of random moves in a maze takes some 400 steps, so that the number of mazes in
    the data, on which everything depends, is the one of the papers.
    """
    start_key, steps_key = jax.random.split(key)
    workers = jax.vmap(episodes.auto_reset(env)[0])(start_key[None])

    def act_fn(obs: Array, k: Key) -> Array:
        del obs
        return jax.random.randint(k, (), 0, env.spec.num_actions or 1)

    _, transitions, _ = episodes.collect(env, workers, act_fn, steps_key, num_steps=num_tuples)
    return jax.tree.map(lambda x: x[:, 0], transitions)


def planned_act(
    parts: Parts, params: dict[str, PyTree], obs: Array, key: Key, *, depth: int, epsilon: Array | float = 0.0
) -> Array:
    """The best action by the mean of the planner's depths, or a random one with probability ``epsilon``; ``[]``."""
    explore_key, action_key = jax.random.split(key)
    z = parts.acting.encoder.apply(params["encoder"], obs)
    branching = parts.config.plan_branching
    values = updates.plan(parts.acting, params, params["critic"], z, depth=depth, branching=branching)
    best = jnp.argmax(tree.plan_q(values))
    other = jax.random.randint(action_key, (), 0, parts.num_actions)
    return jnp.where(jax.random.bernoulli(explore_key, epsilon), other, best)


def _tests(parts: Parts, learner: Learner, test_env: Env | None) -> dict[str, Array]:
    """Mean return of every test depth, without and with random moves."""
    if test_env is None:
        return {}
    config, key = parts.config, jax.random.key(_TEST_KEY)
    metrics: dict[str, Array] = {}
    for depth in config.test_depths:

        def mean_return(epsilon: Array, depth: int = depth) -> Array:
            act_fn = partial(planned_act, parts, learner.params, depth=depth, epsilon=epsilon)
            return jnp.mean(episodes.episode_returns(test_env, act_fn, key, num_episodes=config.test_episodes)[0])

        # Mapped, both are one program, which halves the time to compile the tests.
        greedy, noisy = jax.vmap(mean_return)(jnp.array([0.0, config.test_epsilon]))
        metrics |= {f"test/greedy_depth{depth}": greedy, f"test/noisy_depth{depth}": noisy}
    return metrics
