"""Explore, then execute (DREAM): one agent learns to find out the task, another to do it with what was found.

A step plays a number of trials side by side, whole trials in one scan, and lets both agents learn as often as their
steps pay for. The numbers live in `systems.dream_config`, the networks in `systems.dream_parts`, a gradient update in
`systems.dream_updates`, playing in `systems.dream_trials`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid import sharding
from jaxhybrid import trials as records
from jaxhybrid.envs import city, city_trials
from jaxhybrid.systems import dream_joined, dream_parts, dream_trials, dream_updates
from jaxhybrid.systems.dream_config import Config, checked, presets
from jaxhybrid.systems.dream_parts import Agent, Parts
from jaxhybrid.systems.dream_trials import Task
from jaxhybrid.trials import Episode, Store, Trial
from jaxhybrid.types import Array, Env, Key, Metrics, PyTree, Setting, System

__all__ = ["Config", "State", "make", "presets", "setting", "test_trials"]

# The test is the same for every seed and at every time; with no random actions its key decides nothing.
_TEST_KEY = 0x7E57
Sum = tuple[Array, Array]
"""A sum and the number of what was added up, ``[]`` each."""
_PHASES: tuple[city.Phase, ...] = ("test", "train")


class State(NamedTuple):
    """Everything that persists between iterations.

    Attributes:
      agents: both agents, by name.
      store: trials to learn from.
      trials: played so far, ``[]``.
      key: key of the next iteration.
    """

    agents: dict[str, Agent]
    store: Store
    trials: Array
    key: Key


def setting(config: Config, name: str) -> Setting:
    """Returns what a run in the city of this name is made of.

    Raises:
      InputError: as for `make`.
    """
    parts = _parts(config, name)

    def act(policy_params: PyTree, obs: Array, key: Key, *, deterministic: bool) -> Array:
        epsilon = 0.0 if deterministic else config.epsilon_end
        return dream_trials.act(parts, policy_params, obs, key, epsilon=epsilon)

    return Setting(make, city_trials.environment(parts.town), _policy_params, act)


def make(config: Config, env: Env) -> System:
    """Builds DREAM for a city.

    Args:
      config: the numbers; see `presets`.
      env: whole trials, from `envs.city_trials.environment`; its name says which city, whose rules are played by.

    Returns:
      ``System(init, step, act)``. ``act`` reads what it would remember from the observation of ``env``.

    Raises:
      InputError: a field of ``config`` that makes no sense, or an environment that is no city.

    Source: Liu et al. 2021 (DREAM), algorithm 1.
    """
    parts = _parts(config, env.spec.name)
    config = parts.config
    draw_fn = _drawer(parts)

    def init(key: Key) -> State:
        agents_key, run_key = jax.random.split(key)
        agents = dream_parts.init_agents(parts, agents_key)
        task = jax.eval_shape(draw_fn, jnp.zeros((), jnp.int32), run_key)
        trial = jax.eval_shape(partial(_play, parts, agents), task, run_key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trial)
        return State(agents, records.empty(zeros, config.capacity), jnp.zeros((), jnp.int32), run_key)

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        epsilon = 0.0 if deterministic else config.epsilon_end
        return dream_trials.act(parts, _policy_params(state), obs, key, epsilon=epsilon)

    def step(state: State, batch: None = None) -> tuple[State, Metrics]:
        del batch  # trials are played here
        next_key, run_key = jax.random.split(state.key)
        keys = jax.random.split(run_key, config.trials_per_iteration // config.parallel_trials)
        state, logged = jax.lax.scan(partial(_round, parts, draw_fn), state, keys)
        # A mean over what happened: rounds without an update have logged sums of nothing.
        metrics = {name: jnp.sum(total) / jnp.sum(count) for name, (total, count) in logged.items()}
        if config.method == "dream":
            # Of what the codes of tasks say beyond their mean, the share that a whole exploration tells.
            metrics["execution/explained"] = 1.0 - metrics["execution/last_error"] / metrics["execution/first_error"]
        metrics |= _tests(parts, state.agents) | _counts(config, state)
        return state._replace(key=next_key), metrics

    return System(init, step, act)


def _parts(config: Config, name: str) -> Parts:
    config = checked(config, name)
    town = city.make(name.removeprefix("city/"), split=config.split, hidden_goal=config.hidden_goal)
    return dream_parts.make_parts(config, town)


def _policy_params(state: State) -> dict[str, PyTree]:
    """Parameters of the agents, by name."""
    return {name: agent.params for name, agent in state.agents.items()}


def _round(parts: Parts, draw_fn: Callable[[Array, Key], Task], state: State, key: Key) -> tuple[State, dict[str, Sum]]:
    """Plays trials side by side, stores them, and takes the updates that their steps pay for."""
    config = parts.config
    draw_key, play_key, *learn_keys = jax.random.split(key, 5)
    numbers = state.trials + jnp.arange(config.parallel_trials)
    tasks = jax.vmap(draw_fn)(numbers, jax.random.split(draw_key, config.parallel_trials))
    played = jax.vmap(partial(_play, parts, state.agents))(tasks, jax.random.split(play_key, config.parallel_trials))
    store = records.add(state.store, played)
    agents, logged = dict(state.agents), _played_metrics(played)
    learning = {"exploration": _explorer_learns, "execution": _executor_learns, "dynamics": _model_learns}
    keys = dict(zip(learning, learn_keys, strict=True))

    def learner(name: str) -> Callable[..., tuple[Agent, dict[str, Sum]]]:
        return lambda agents, store, played, keys: learning[name](parts, agents, store, played, keys[name])

    names = [name for name in learning if name in agents]
    # Each from what the others knew at the start of the round, so that they can learn at the same time.
    learnt = sharding.apart([learner(name) for name in names], agents, store, (tasks, played), keys)
    for name, (agent, sums) in zip(names, learnt, strict=True):
        agents[name] = agent
        logged |= {f"{name}/{metric}": value for metric, value in sums.items()}
    return State(agents, store, state.trials + config.parallel_trials, state.key), logged


def _explorer_learns(
    parts: Parts, agents: dict[str, Agent], store: Store, played: tuple[Task, Trial], key: Key
) -> tuple[Agent, dict[str, Sum]]:
    """Updates of the exploration agent, from whole episodes."""
    config, agent = parts.config, agents["exploration"]
    lengths = played[1].exploration.lengths
    if config.method != "dream":  # nobody reads what it finds
        return agent._replace(steps=agent.steps + jnp.sum(lengths, dtype=jnp.int32)), {}

    def update(agent: Agent, own_step: Array, key: Key) -> tuple[Agent, dict[str, Array]]:
        trials = records.sample_trials(store, key, config.batch_size, window=config.exploration_window)
        return dream_updates.exploration_update(parts, agents | {"exploration": agent}, trials, own_step)

    learning = store.added >= config.exploration_starts
    return _updates(config, "exploration", agent, update, lengths, learning, key)


def _executor_learns(
    parts: Parts, agents: dict[str, Agent], store: Store, played: tuple[Task, Trial], key: Key
) -> tuple[Agent, dict[str, Sum]]:
    """Updates of the execution agent: from single steps, or from episodes where it has a memory."""
    config, agent, (tasks, trials) = parts.config, agents["execution"], played
    lengths = trials.execution.lengths
    if config.method == "rl2":
        lengths += trials.exploration.lengths
    step_ends, ends = records.step_ends(store), agent.steps + jnp.cumsum(lengths, dtype=jnp.int32)

    def update(agent: Agent, own_step: Array, key: Key) -> tuple[Agent, dict[str, Array]]:
        sample_key, noise_key = jax.random.split(key)
        batch = _sampled(config, store, step_ends, sample_key)
        # The trial whose steps pay for an update decides its context, as in a run of one trial at a time.
        by_id = tasks.by_id[jnp.searchsorted(ends, own_step)]
        return dream_updates.execution_update(parts, agents | {"execution": agent}, batch, by_id, own_step, noise_key)

    return _updates(config, "execution", agent, update, lengths, _executor_starts(config, store, agent, lengths), key)


def _executor_starts(config: Config, store: Store, agent: Agent, lengths: Array) -> Array:
    """Whether there is enough to learn execution from: trials with a memory, and else steps; boolean ``[]``."""
    stored = store.added if config.recurrent else agent.steps + jnp.sum(lengths, dtype=jnp.int32)
    return stored >= config.execution_starts


def _model_learns(
    parts: Parts, agents: dict[str, Agent], store: Store, played: tuple[Task, Trial], key: Key
) -> tuple[Agent, dict[str, Sum]]:
    """Updates of the model that is adapted, as often as those of the execution agent, whose steps it predicts."""
    config, agent = parts.config, agents["dynamics"]

    def update(agent: Agent, own_step: Array, key: Key) -> tuple[Agent, dict[str, Array]]:
        sample_key, loss_key = jax.random.split(key)
        trials = records.sample_trials(store, sample_key, config.batch_size, window=config.exploration_window)
        return dream_updates.dynamics_update(parts, agents | {"dynamics": agent}, trials, own_step, loss_key)

    lengths = played[1].execution.lengths
    return _updates(config, "dynamics", agent, update, lengths, _executor_starts(config, store, agent, lengths), key)


def _sampled(config: Config, store: Store, step_ends: Array, key: Key) -> tuple[Trial, Episode]:
    """Trials ``[B, ...]``, and what the execution agent learns from in each."""
    if not config.recurrent:
        options = {"count": config.batch_size, "window": config.execution_window}
        trials, places = records.sample_steps(store, step_ends, key, **options)
        return trials, jax.vmap(records.one_step)(trials.execution, places)
    trials = records.sample_trials(store, key, config.batch_size, window=config.exploration_window)
    if config.method == "rl2":
        # The instruction is among what it sees, once it is given.
        return trials._replace(goal=jnp.zeros_like(trials.goal)), jax.vmap(dream_joined.joined)(trials)
    return trials, trials.execution


def _updates(
    config: Config,
    name: str,
    agent: Agent,
    update: Callable[[Agent, Array, Key], tuple[Agent, dict[str, Array]]],
    lengths: Array,
    learning: Array,
    key: Key,
) -> tuple[Agent, dict[str, Sum]]:
    """Takes one update for every ``update_every`` steps of an agent; returns sums of what they logged and their number.

    A loop of as many turns as are due, so that no arithmetic is spent on updates that are not.
    """
    before = agent.steps
    after = before + jnp.sum(lengths, dtype=jnp.int32)
    first, last = before // config.update_every, after // config.update_every
    zeros = dict.fromkeys(dream_updates.metric_names(config, name), jnp.zeros(()))

    def one(i: Array, carry: tuple[Agent, dict[str, Array]]) -> tuple[Agent, dict[str, Array]]:
        agent, sums = carry
        agent, logged = update(agent, (i + 1) * config.update_every, jax.random.fold_in(key, i))
        return agent, {metric: sums[metric] + logged[metric] for metric in sums}

    agent, sums = jax.lax.fori_loop(first, jnp.where(learning, last, first), one, (agent, zeros))
    count = jnp.where(learning, last - first, 0).astype(jnp.float32)
    return agent._replace(steps=after), {metric: (value, count) for metric, value in sums.items()}


def _drawer(parts: Parts) -> Callable[[Array, Key], Task]:
    """Returns ``draw(number of the trial, key) -> Task`` of a training trial."""
    config, town = parts.config, parts.town
    if config.task_order == "random":

        def draw(number: Array, key: Key) -> Task:
            task_key, hidden_key = jax.random.split(key)
            task_id, goal = city.sample_task(town, task_key, split="train")
            hidden = jax.random.choice(hidden_key, jnp.asarray(town.goals, jnp.int32))
            return Task(task_id, goal, hidden, number % 2 == 1)

        return draw
    numbers = range(config.trials)
    ids, goals = (jnp.asarray(table) for table in city.released_tasks(town, numbers, "train"))
    hidden = jnp.asarray(city.hidden_goals(town, numbers))
    # A run that is continued past its trials meets them again.
    return lambda number, _: Task(
        ids[number % config.trials], goals[number % config.trials], hidden[number % config.trials], number % 2 == 1
    )


def _play(parts: Parts, agents: dict[str, Agent], task: Task, key: Key) -> Trial:
    """One training trial, with the random actions that the agents have come to."""
    params = {name: agent.params for name, agent in agents.items()}
    executor = agents["execution"]
    explorer = agents.get("exploration", executor)
    epsilon = (_epsilon(parts.config, explorer), _epsilon(parts.config, executor))
    return dream_trials.play(parts, params, task, key, epsilon=epsilon)


def _epsilon(config: Config, agent: Agent) -> Array:
    """Share of random actions at an agent's step; trials that are played side by side share that of the first one."""
    done = jnp.minimum(agent.steps / config.epsilon_steps, 1.0)
    return config.epsilon_start + done * (config.epsilon_end - config.epsilon_start)


def test_trials(parts: Parts, agents: dict[str, Agent]) -> dict[city.Phase, Trial]:
    """Plays the test trials without random actions, by what was explored: on tasks never met, and on those of training.

    Args:
      parts: of the system.
      agents: by name.

    Returns:
      Trials ``[N, ...]`` of "test" and "train".
    """
    params = {name: agent.params for name, agent in agents.items()}
    count = parts.config.test_trials
    hidden = jnp.asarray(city.hidden_goals(parts.town, range(count)))
    drawn = {phase: city.released_tasks(parts.town, range(count), phase) for phase in _PHASES}
    both = [Task(jnp.asarray(ids), jnp.asarray(goals), hidden, jnp.zeros(count, bool)) for ids, goals in drawn.values()]
    # One program for both.
    tasks = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *both)
    keys = jax.random.split(jax.random.key(_TEST_KEY), 2 * count)
    play = partial(dream_trials.play, parts, params, epsilon=(0.0, 0.0))
    trials = jax.vmap(play)(tasks, keys)
    halves = jax.tree.map(lambda x: x.reshape(2, count, *x.shape[1:]), trials)
    return {phase: jax.tree.map(lambda x, i=i: x[i], halves) for i, phase in enumerate(_PHASES)}


def _tests(parts: Parts, agents: dict[str, Agent]) -> dict[str, Array]:
    """Mean returns, and steps of exploration."""
    metrics: dict[str, Array] = {}
    for phase, trials in test_trials(parts, agents).items():
        metrics |= {
            f"{phase}/return": jnp.mean(jnp.sum(trials.execution.reward, axis=1)),
            f"{phase}/exploration_steps": jnp.mean(trials.exploration.lengths),
            f"{phase}/action_entropy": _action_entropy(trials.execution),
        }
    return metrics


def _action_entropy(episodes: Episode) -> Array:
    """Entropy in nats of the actions that trials ``[N, ...]`` take at the same step, in the mean over steps.

    It is zero where an agent does the same in every task, whatever it is told.
    """
    taken = jnp.sum(jax.nn.one_hot(episodes.action, len(city.ACTIONS)) * episodes.mask[..., None], axis=0)
    alive = jnp.sum(taken, axis=-1, keepdims=True)
    share = taken / jnp.maximum(alive, 1.0)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0), axis=-1)
    return jnp.sum(alive[:, 0] * entropy) / jnp.sum(alive)


def _informative(episodes: Episode) -> Array:
    """Number of the steps that tell tasks apart, rides that lead somewhere, ``[]``."""
    moved = jnp.any(episodes.obs[:, 1:] != episodes.obs[:, :-1], axis=-1)
    return jnp.sum(episodes.mask * (moved & (episodes.action == city.RIDE)))


def _played_metrics(played: Trial) -> dict[str, Sum]:
    """Sums over the training trials of a round, and their number."""
    count = jnp.asarray(played.task_id.shape[0], jnp.float32)
    steps = {name: jnp.sum(getattr(played, name).mask) for name in ("exploration", "execution")}
    shares = {f"collect/{name}_rides": (_informative(getattr(played, name)), steps[name]) for name in steps}
    return shares | {
        "collect/return": (jnp.sum(played.execution.reward), count),
        "collect/exploration_steps": (steps["exploration"], count),
        "collect/execution_steps": (steps["execution"], count),
    }


def _counts(config: Config, state: State) -> dict[str, Array]:
    agents = state.agents
    refused = [agent.guard for agent in agents.values()]
    players = {name: agent for name, agent in agents.items() if name != "dynamics"}
    found = {f"{name}/epsilon": _epsilon(config, agent) for name, agent in players.items()}
    found |= {f"{name}/updates": agent.updates for name, agent in agents.items()}
    return found | {
        "env/steps": jnp.sum(jnp.stack([agent.steps for agent in players.values()])),
        "env/trials": state.trials,
        "guard/nonfinite": jnp.sum(jnp.stack([guard.refused for guard in refused])),
        "guard/nonfinite_streak": jnp.max(jnp.stack([guard.streak for guard in refused])),
    }
