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
        explore_key, action_key = jax.random.split(key)
        seen, heads = step_fn(hidden, obs, previous)
        other = jax.random.randint(action_key, (), 0, town.num_actions)
        random = jax.random.bernoulli(explore_key, epsilon)
        action = jnp.where(random, other, jnp.argmax(dueling(heads))).astype(jnp.int32)
        after, found = city.step(town, state, action)
        reward = jnp.where(alive, found.reward, 0.0)
        discount = jnp.where(alive & ~found.terminated, 1.0, 0.0)
        action = jnp.where(alive, action, 0)
        # Past its end an episode stands still.
        kept = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old), (after, found.obs, seen, action + 1), (state, obs, hidden, previous)
        )
        step = (obs, action, reward, discount, alive.astype(reward.dtype))
        return (*kept, alive & ~(found.terminated | found.truncated)), step

    start = (state, obs, hidden, jnp.zeros((), jnp.int32), jnp.ones((), bool))
    (_, last, hidden, _, _), steps = jax.lax.scan(advance, start, jax.random.split(key, town.horizon))
    before, action, reward, discount, mask = steps
    return Episode(jnp.concatenate([before, last[None]]), action, reward, discount, mask), hidden


def code_of(parts: Any, params: PyTree, exploration: Episode) -> Array:
    """What a whole exploration episode says about its task, ``[Z]``."""
    codes = parts.decode_fn(params, exploration)
    return codes[jnp.sum(exploration.mask).astype(jnp.int32)]


def play(
    parts: Any,
    params: dict[str, PyTree],
    task: Task,
    key: Key,
    *,
    epsilon: tuple[Array, Array] | tuple[float, float],
) -> Trial:
    """Plays one trial.

    Args:
      parts: of the system.
      params: of both agents, by agent.
      task: what was drawn.
      key: one draw.
      epsilon: share of random actions of exploration and execution.
    """
    explore_key, noise_key, execute_key = jax.random.split(key, 3)
    nets, town, known = parts.nets, parts.town, params["execution"]

    def explore_fn(hidden: PyTree, obs: Array, previous: Array) -> tuple[PyTree, Heads]:
        return nets.exploration.step(params["exploration"]["policy"], hidden, obs, previous)

    exploration, _ = play_episode(
        town,
        task.task_id,
        task.hidden_goal,
        explore_key,
        step_fn=explore_fn,
        hidden=nets.exploration.start,
        exploring=True,
        epsilon=epsilon[0],
    )
    told = parts.told_fn(known, task.task_id, noise_key)
    code = jnp.where(task.by_id, told, code_of(parts, known, exploration))

    def execute_fn(hidden: PyTree, obs: Array, previous: Array) -> tuple[PyTree, Heads]:
        del previous  # the instruction and the place are enough
        return nets.execution.step(known["policy"], hidden, obs, task.goal, code)

    execution, _ = play_episode(
        town,
        task.task_id,
        task.goal,
        execute_key,
        step_fn=execute_fn,
        hidden=nets.execution.start,
        exploring=False,
        epsilon=epsilon[1],
    )
    return Trial(task.task_id, task.goal, exploration, execution)


def act(parts: Any, params: dict[str, PyTree], obs: Array, key: Key, *, epsilon: float) -> Array:
    """The action of the agent whose turn it is, from the record of a trial; ``[]``.

    Args:
      parts: of the system.
      params: of both agents, by agent.
      obs: of `envs.city_trials`.
      key: one draw.
      epsilon: share of random actions.
    """
    nets, town, known = parts.nets, parts.town, params["execution"]
    record = city_trials.read(town, obs)
    taken = (jnp.arange(town.horizon)[None] < record.steps[:, None]).astype(jnp.float32)
    nothing = jnp.zeros(town.horizon)
    explored, executed = (
        Episode(record.obs[i], record.action[i], nothing, nothing, taken[i]) for i in range(2)
    )
    exploration = nets.exploration.apply(params["exploration"]["policy"], explored.obs, previous_actions(explored))
    code = code_of(parts, known, explored)
    execution = nets.execution.apply(known["policy"], executed.obs, record.goal, code)
    q = jnp.where(record.executing, dueling(execution)[record.steps[1]], dueling(exploration)[record.steps[0]])
    explore_key, action_key = jax.random.split(key)
    other = jax.random.randint(action_key, (), 0, town.num_actions)
    return jnp.where(jax.random.bernoulli(explore_key, epsilon), other, jnp.argmax(q))


def previous_actions(episode: Episode) -> Array:
    """The action before every observation, plus one, ``[..., T+1]``; 0 at the start."""
    return jnp.concatenate([jnp.zeros_like(episode.action[..., :1]), episode.action + 1], axis=-1)
