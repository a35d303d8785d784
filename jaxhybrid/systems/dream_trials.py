"""Playing trials: an exploration episode, what it says about the task, and an execution episode with that knowledge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid.context_networks import Heads, dueling
from jaxhybrid.envs import city, city_trials
from jaxhybrid.envs.city import City
from jaxhybrid.trials import Episode, Trial
from jaxhybrid.types import Array, Key, PyTree

__all__ = ["Task", "act", "code_of", "play", "play_episode", "previous_actions"]

StepFn = Callable[[PyTree, Array, Array], tuple[PyTree, Heads]]


class Task(NamedTuple):
    """What is drawn before a trial.

    Attributes:
      task_id: integer ``[]``.
      goal: of the execution episode, integer ``[2]``.
      hidden_goal: where exploration ends, if `City` says so, integer ``[2]``.
      by_id: whether the execution agent is told the noisy code of the task in place of what was explored, ``[]``.
    """

    task_id: Array
    goal: Array
    hidden_goal: Array
    by_id: Array


def play(parts: Any, params: dict[str, PyTree], task: Task, key: Key, *, epsilon: tuple[Any, Any]) -> Trial:
    """Plays one trial.

    Args:
      parts: of the system.
      params: of the agents, by name.
      task: what was drawn.
      key: one draw.
      epsilon: share of random actions of exploration and execution.
    """
    explore_key, noise_key, execute_key = jax.random.split(key, 3)
    explore_fn, execute_fn = parts.policies_fn(params)
    exploration, hidden = play_episode(
        parts.town,
        task.task_id,
        task.hidden_goal,
        explore_key,
        step_fn=explore_fn,
        hidden=parts.start,
        exploring=True,
        epsilon=epsilon[0],
    )
    told = parts.told_fn(params["execution"], task.task_id, noise_key)
    code = jnp.where(task.by_id, told, code_of(parts, params, exploration))
    execution, _ = play_episode(
        parts.town,
        task.task_id,
        task.goal,
        execute_key,
        step_fn=lambda hidden, obs, previous: execute_fn(hidden, obs, previous, task.goal, code),
        hidden=parts.next_fn(hidden),
        exploring=False,
        epsilon=epsilon[1],
    )
    return Trial(task.task_id, task.goal, exploration, execution)


def play_episode(
    town: City,
    task_id: Array,
    goal: Array,
    key: Key,
    *,
    step_fn: StepFn,
    hidden: PyTree,
    exploring: bool,
    epsilon: Array | float,
) -> tuple[Episode, PyTree]:
    """Plays one episode by values, with a share of random actions.

    Args:
      town: from `envs.city.make`.
      task_id: ``[]``.
      goal: where the episode ends, integer ``[2]``.
      key: one draw.
      step_fn: ``step_fn(hidden, obs [C], previous [])`` -> ``(hidden, Heads)``, with the action before it, plus one.
      hidden: the first hidden state.
      exploring: whether this is the exploration episode.
      epsilon: share of random actions.

    Returns:
      The episode, and the hidden state after its last step.
    """
    state, obs = city.reset(town, task_id, goal, exploring=exploring)

    def advance(carry: tuple, key: Key) -> tuple[tuple, tuple]:
        state, obs, hidden, previous, alive = carry
        seen, heads = step_fn(hidden, obs, previous)
        action = _chosen(heads, key, epsilon, town.num_actions)
        after, found = city.step(town, state, action)
        ended = found.terminated | found.truncated
        # Past its end an episode stands still.
        changed, same = (after, found.obs, seen, action + 1), (state, obs, hidden, previous)
        kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), changed, same)
        step = (
            obs,
            jnp.where(alive, action, 0),
            jnp.where(alive, found.reward, 0.0),
            jnp.where(alive & ~found.terminated, 1.0, 0.0),
            jnp.where(alive, 1.0, 0.0),
        )
        return (*kept, alive & ~ended), step

    start = (state, obs, hidden, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    (_, last, hidden, _, _), steps = jax.lax.scan(advance, start, jax.random.split(key, town.horizon))
    before, action, reward, discount, mask = steps
    return Episode(jnp.concatenate([before, last[None]]), action, reward, discount, mask), hidden


def act(parts: Any, params: dict[str, PyTree], obs: Array, key: Key, *, epsilon: float) -> Array:
    """The action of the agent whose turn it is, which remembers by going through the record of the trial; ``[]``.

    Args:
      parts: of the system.
      params: of the agents, by name.
      obs: of `envs.city_trials`.
      key: one draw.
      epsilon: share of random actions.
    """
    record = city_trials.read(parts.town, obs)
    explore_fn, execute_fn = parts.policies_fn(params)

    def gone_through(step_fn: StepFn, hidden: PyTree, part: int) -> tuple[PyTree, Heads]:
        def advance(hidden: PyTree, step: tuple[Array, Array, Array]) -> tuple[PyTree, Heads]:
            obs, previous, t = step
            seen, heads = step_fn(hidden, obs, previous)
            return jax.tree.map(lambda new, old: jnp.where(t < record.steps[part], new, old), seen, hidden), heads

        previous = jnp.concatenate([jnp.zeros(1, jnp.int32), record.action[part] + 1])
        hidden, heads = jax.lax.scan(advance, hidden, (record.obs[part], previous, jnp.arange(previous.shape[0])))
        return hidden, jax.tree.map(lambda x: x[record.steps[part]], heads)

    hidden, exploration = gone_through(explore_fn, parts.start, 0)
    mask = (jnp.arange(parts.town.horizon) < record.steps[0]).astype(jnp.float32)
    explored = Episode(record.obs[0], record.action[0], jnp.zeros_like(mask), jnp.zeros_like(mask), mask)
    code = code_of(parts, params, explored)
    _, execution = gone_through(
        lambda hidden, obs, previous: execute_fn(hidden, obs, previous, record.goal, code), parts.next_fn(hidden), 1
    )
    turn = jax.tree.map(lambda x, y: jnp.where(record.executing > 0, x, y), execution, exploration)
    return _chosen(turn, key, epsilon, parts.town.num_actions)


def code_of(parts: Any, params: dict[str, PyTree], exploration: Episode) -> Array:
    """What a whole exploration episode says about its task, ``[Z]``."""
    return parts.code_fn(params["execution"], exploration, parts.features_fn(params, exploration))


def previous_actions(episode: Episode) -> Array:
    """The action before every observation, plus one, ``[..., T+1]``; 0 at the start."""
    return jnp.concatenate([jnp.zeros_like(episode.action[..., :1]), episode.action + 1], axis=-1)


def _chosen(heads: Heads, key: Key, epsilon: Array | float, num_actions: int) -> Array:
    explore_key, action_key = jax.random.split(key)
    other = jax.random.randint(action_key, (), 0, num_actions)
    best = jnp.argmax(dueling(heads))
    return jnp.where(jax.random.bernoulli(explore_key, epsilon), other, best).astype(jnp.int32)
