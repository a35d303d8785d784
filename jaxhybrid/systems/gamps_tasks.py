"""What gradient-aware policy search knows of a domain, as functions of whole data sets.

`Task` is the border between the algorithm and its ingredients: policy, model class and environment. A finite problem
looks everything up in tables of its pairs, a continuous one maps over the recorded steps; both give the same numbers as
the losses and estimators of one trajectory, which the tests compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxhybrid import policies, trajectories, transition_models
from jaxhybrid.envs import finite, gridworld
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.ops import importance
from jaxhybrid.ops.least_squares import temporal_difference_coefficients
from jaxhybrid.ops.returns import discounted_sum
from jaxhybrid.rollout_values import batch_rollout_values, score_norms
from jaxhybrid.systems.gamps_config import Config
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Array, Env, HostEnv, Key, PyTree, ValueFn

__all__ = ["Task", "continuous_task", "gridworld_task", "minigolf_task", "swimmer_task", "terminal_value"]


class Task(NamedTuple):
    """The ingredients of a domain.

    Attributes:
      init_policy: ``init_policy(key) -> params``.
      init_model: ``init_model(key) -> params``.
      collect: ``collect(params, key, count, explore) -> Trajectory [N, T, ...]``; ``explore`` is static.
      log_probs: ``log_probs(params, dataset) -> [N, T]``.
      score_norms: ``score_norms(params, dataset) -> [N, T]``.
      fit: ``fit(model_params, dataset, step_weights [N, T]) -> (model_params, loss [])``.
      q_values: ``q_values(model_params, params, dataset, key) -> [N, T]``.
      evaluate: ``evaluate(params, key) -> []``, the expected discounted return.
      act: ``act(params, obs, key, deterministic) -> action [A]``.
      exact_gradient: ``exact_gradient(params)``, the direction of ascent; None where it is not known.
      on_host: whether ``collect`` and ``evaluate`` run on the host, outside compiled programs.
    """

    init_policy: Callable[[Key], PyTree]
    init_model: Callable[[Key], PyTree]
    collect: Callable[[PyTree, Key, int, bool], Trajectory]
    log_probs: Callable[[PyTree, Trajectory], Array]
    score_norms: Callable[[PyTree, Trajectory], Array]
    fit: Callable[[PyTree, Trajectory, Array], tuple[PyTree, Array]]
    q_values: Callable[[PyTree, PyTree, Trajectory, Key], Array]
    evaluate: Callable[[PyTree, Key], Array]
    act: Callable[[PyTree, Array, Key, bool], Array]
    exact_gradient: Callable[[PyTree], PyTree] | None = None
    on_host: bool = False


def gridworld_task(config: Config, env: Env) -> Task:
    """The gridworld: tables for the policy, five effects for the model, values and evaluation by exact sums."""
    grid = gridworld.layout(config.topology)
    problem = gridworld.problem(config.topology, gamma=config.gamma)
    network = policies.tabular_softmax(grid.fixed_action, 4)
    cells = jnp.arange(len(grid.start))
    # The end is known, as the reward is.
    absorbing = (cells == grid.goal)[:, None, None]

    def log_table(params: PyTree) -> Array:
        return jax.vmap(lambda s: network.apply(params, s).log_probs())(cells)

    def probs(params: PyTree) -> Array:
        return jax.vmap(lambda s: network.apply(params, s).probs())(cells)

    def norms(params: PyTree, dataset: Trajectory) -> Array:
        every = jnp.meshgrid(cells, jnp.arange(4), indexing="ij")
        flat = score_norms(
            params, every[0].ravel(), every[1].ravel(), policy_fn=network.apply, order=config.score_order
        )
        return flat.reshape(len(cells), 4)[_pairs(dataset)]

    def fit(effects: PyTree, dataset: Trajectory, step_weights: Array) -> tuple[PyTree, Array]:
        state, action = _pairs(dataset)
        index = ((state * 4 + action) * len(cells) + _cells(dataset.next_obs)).ravel()
        weights = (step_weights * dataset.mask).ravel()
        size = len(cells) ** 2 * 4
        counts = jax.ops.segment_sum(weights, index, size).reshape(len(cells), 4, len(cells))
        effects = transition_models.effect_expectation_maximisation(
            effects, counts, grid.moves, steps=config.model_steps
        )
        possible = counts > 0
        likelihood = jnp.log(jnp.where(possible, transition_models.effect_transition(effects, grid.moves), 1.0))
        return effects, -jnp.sum(counts * likelihood) / jnp.maximum(jnp.sum(counts), 1e-30)

    def q_values(effects: PyTree, params: PyTree, dataset: Trajectory, key: Key) -> Array:
        del key  # nothing is sampled
        model = transition_models.effect_transition(effects, grid.moves)
        model = jnp.where(absorbing, problem.transition, model)
        return finite.q_values(problem._replace(transition=model), probs(params))[_pairs(dataset)]

    def policy_fn(params: PyTree, obs: Array) -> Any:
        return network.apply(params, gridworld.state_of(obs))

    return Task(
        init_policy=network.init,
        init_model=lambda key: jnp.full((4, len(gridworld.EFFECTS)), 1.0 / len(gridworld.EFFECTS), float),
        collect=partial(_collect, env, policy_fn, policy_fn, config.episode_steps),
        log_probs=lambda params, dataset: log_table(params)[_pairs(dataset)],
        score_norms=norms,
        fit=fit,
        q_values=q_values,
        evaluate=lambda params, key: finite.expected_return(problem, probs(params)),
        act=partial(_act, policy_fn),
        exact_gradient=lambda params: finite.policy_gradient(problem, probs, params),
    )


def minigolf_task(config: Config, env: Env) -> Task:
    """Minigolf: six radial bumps for the policy, a Gaussian linear in ``(1, x, a)`` for the model."""
    centres = jnp.arange(6) * 4.0
    policy, explore = (
        policies.radial_gaussian(centres, width=4.0, std=std, initial=0.5)
        for std in (config.policy_std, config.behaviour_std)
    )
    model = transition_models.linear_gaussian(lambda s, a: jnp.concatenate([jnp.ones(1), s / 20.0, a]), 3, 1)

    def bumps(obs: Array) -> Array:
        return jnp.concatenate([jnp.ones(1), jnp.exp(-0.5 * jnp.square((obs - centres) / 4.0))])

    return continuous_task(config, env, policy, explore, model, bumps)


def swimmer_task(config: Config, env: Env | HostEnv) -> Task:
    """The swimmer, or any task with a reward of the observation: a linear policy, a tanh network for the model."""
    size = (env.spec.obs_dim, env.spec.action_dim)
    policy, explore = (
        policies.linear_gaussian(*size, log_std=math.log(std)) for std in (config.policy_std, config.behaviour_std)
    )
    pairs = jnp.triu_indices(size[0])

    def quadratic(obs: Array) -> Array:
        return jnp.concatenate([jnp.ones(1), obs, (obs[:, None] * obs[None])[pairs]])

    return continuous_task(config, env, policy, explore, transition_models.network_gaussian(*size), quadratic)


def continuous_task(
    config: Config,
    env: Env | HostEnv,
    policy: Network,
    explore: Network,
    model: transition_models.TransitionModel,
    features_fn: Callable[[Array], Array],
) -> Task:
    """A domain with a known reward, a Gaussian policy and a model of the change of the state.

    Args:
      config: the numbers.
      env: with ``reward_fn`` and, where episodes end, ``terminated_fn``.
      policy: what is improved.
      explore: what collects the data, with the same parameters.
      model: class of the transition model.
      features_fn: ``features_fn(obs [D]) -> [F]``, what a terminal value is linear in.

    Raises:
      InputError: the environment's reward is not a function of observations.
    """
    policy_fn, spec = policy.apply, env.spec
    if spec.reward_fn is None:
        raise InputError(f"env={spec.name!r} has no reward as a function of observations, and roll-outs need one.")
    reward_fn = spec.reward_fn

    def step_fn(model_params: PyTree, obs: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
        next_obs = model.sample(model_params, obs, action, noise)
        ended = spec.terminated_fn(obs, action, next_obs) if spec.terminated_fn else jnp.zeros((), bool)
        return next_obs, reward_fn(obs, action, next_obs), 1.0 - ended.astype(obs.dtype)

    def log_probs(params: PyTree, dataset: Trajectory) -> Array:
        return jax.vmap(jax.vmap(lambda s, a: policy_fn(params, s).log_prob(a)))(dataset.obs, dataset.action)

    def q_values(model_params: PyTree, params: PyTree, dataset: Trajectory, key: Key) -> Array:
        obs, action = (x.reshape((-1,) + x.shape[2:]) for x in (dataset.obs, dataset.action))
        values = batch_rollout_values(
            obs,
            action,
            key,
            act_fn=lambda s, e: policy_fn(params, s).reparameterise(e),
            step_fn=partial(step_fn, model_params),
            num_rollouts=config.rollouts,
            horizon=config.model_horizon,
            gamma=config.gamma,
            antithetic=config.antithetic,
            value_fn=terminal_value(config, features_fn, dataset, log_probs(params, dataset)),
        )
        return values.reshape(dataset.mask.shape)

    on_host = isinstance(env, HostEnv)
    collect: Any = _host_collector(env) if isinstance(env, HostEnv) else partial(_collect, env)
    collect = partial(collect, policy_fn, explore.apply, config.episode_steps)

    def evaluate(params: PyTree, key: Key) -> Array:
        episodes = collect(params, key, config.eval_episodes, False)
        returns = jax.vmap(lambda r, m: discounted_sum(r, m, gamma=config.gamma))(episodes.reward, episodes.mask)
        return jnp.mean(returns)

    return Task(
        init_policy=policy.init,
        init_model=model.init,
        collect=collect,
        log_probs=log_probs,
        score_norms=partial(_norms, policy_fn, config.score_order),
        fit=partial(_fit, model, config),
        q_values=q_values,
        evaluate=evaluate,
        act=partial(_act, policy_fn),
        on_host=on_host,
    )


def terminal_value(
    config: Config, features_fn: Callable[[Array], Array], dataset: Trajectory, log_prob: Array
) -> ValueFn | None:
    """Returns what is expected after the last step of a roll-out, None for nothing.

    The value of the current policy, linear in features, from single recorded steps, each with the truncated ratio of
    its own action; beyond the range of the recorded observations it is that of the border. It is a constant of the
    gradient: a wrong one biases the values and nothing else.

    Args:
      config: the numbers.
      features_fn: ``features_fn(obs [D]) -> [F]``.
      dataset: ``[N, T, ...]``.
      log_prob: of the recorded actions under the current policy, ``[N, T]``.
    """
    if config.terminal_value == "none":
        return None
    ratio = importance.truncated_weights(log_prob - dataset.behaviour_log_prob, maximum=config.max_ratio)
    steps_obs = (dataset.obs, dataset.next_obs)
    features = [jax.vmap(jax.vmap(features_fn))(obs) for obs in steps_obs]
    steps = (*features, dataset.reward, dataset.discount, jnp.where(dataset.mask > 0, ratio, 0.0))
    coefficients = temporal_difference_coefficients(
        *(x.reshape((-1,) + x.shape[2:]) for x in steps), gamma=config.gamma, ridge=config.value_ridge
    )
    # A roll-out that leaves the recordings must not meet a parabola that nothing was fitted to there.
    inside = dataset.mask[..., None] > 0
    seen = [(jnp.where(inside, obs, jnp.inf), jnp.where(inside, obs, -jnp.inf)) for obs in steps_obs]
    low = jnp.minimum(*(jnp.min(x, axis=(0, 1)) for x, _ in seen))
    high = jnp.maximum(*(jnp.max(x, axis=(0, 1)) for _, x in seen))
    return lambda obs: features_fn(jnp.clip(obs, low, high)) @ coefficients


def _pairs(dataset: Trajectory) -> tuple[Array, Array]:
    """Numbers of the visited cells and actions, an index into tables of pairs."""
    return _cells(dataset.obs), dataset.action


def _cells(obs: Array) -> Array:
    return jnp.round(obs[..., 0] * gridworld.SIZE + obs[..., 1]).astype(jnp.int32)


def _fit(
    model: transition_models.TransitionModel, config: Config, params: PyTree, dataset: Trajectory, weights: Array
) -> tuple[PyTree, Array]:
    return transition_models.fit(
        model, params, dataset, weights, steps=config.model_steps, learning_rate=config.model_learning_rate
    )


def _collect(
    env: Env, policy_fn: Any, explore_fn: Any, length: int, params: PyTree, key: Key, count: int, explore: bool
) -> Trajectory:
    acting = explore_fn if explore else policy_fn

    def act_fn(obs: Array, action_key: Key) -> tuple[Array, Array]:
        return acting(params, obs).sample_and_log_prob(action_key)

    one = partial(trajectories.collect, env, act_fn=act_fn, length=length)
    return jax.vmap(one)(jax.random.split(key, count))


def _norms(policy_fn: Any, order: float, params: PyTree, dataset: Trajectory) -> Array:
    obs, action = (x.reshape((-1,) + x.shape[2:]) for x in (dataset.obs, dataset.action))
    found = score_norms(params, obs, action, policy_fn=policy_fn, order=order, chunk=min(1024, len(obs)))
    return found.reshape(dataset.mask.shape)


def _host_collector(env: HostEnv) -> Callable[..., Trajectory]:
    """Returns `_collect` for the instances of a host environment; its policy is compiled once."""

    @partial(jax.jit, static_argnums=0)
    def act(acting: Any, params: PyTree, obs: Array, keys: Key) -> tuple[Array, Array]:
        return jax.vmap(lambda o, k: acting(params, o).sample_and_log_prob(k))(obs, keys)

    def collect(
        policy_fn: Any, explore_fn: Any, length: int, params: PyTree, key: Key, count: int, explore: bool
    ) -> Trajectory:
        act_fn = partial(act, explore_fn if explore else policy_fn, params)
        return trajectories.host_collect(env, key, act_fn=act_fn, length=length, count=count)

    return collect


def _act(policy_fn: Any, params: PyTree, obs: Array, key: Key, deterministic: bool) -> Array:
    distribution = policy_fn(params, obs)
    action = distribution.mode() if deterministic else distribution.sample(key)
    return jnp.atleast_1d(action).astype(obs.dtype)
