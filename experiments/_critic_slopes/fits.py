"""Critics fitted with and without gradient matching on a problem whose true slopes are known."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxhybrid import networks
from jaxhybrid.envs import lqr
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.critic import squared_error
from jaxhybrid.losses.gradient_matching import critic_slope_loss
from jaxhybrid.types import Array, Key

if TYPE_CHECKING:
    from experiments.critic_slopes import Config

__all__ = ["Model", "Run", "fit", "grid"]

_OBS, _ACTION, _TESTS = 3, 2, 256
_STEP_SIZE, _TARGET_RATE, _BATCH = 3e-3, 0.1, 32
_RIDGE = 1e-3


class Model(NamedTuple):
    """A linear model ``s' = A s + B a`` with the true reward."""

    A: Array
    B: Array


class Run(NamedTuple):
    """One cell of the grid: steps of data ``[]``, weight of matching ``[]``, whether the model is true ``[]``."""

    size: Array
    alpha: Array
    true_model: Array


def grid(config: Config) -> tuple[Run, list[dict[str, Any]]]:
    """Returns all runs, stacked, and what each of them is."""
    cells = [
        {"transitions": size, "alpha": alpha, "model": model}
        for size in config.transitions
        for model in ("true", "fitted")
        for alpha in (0.0, *config.alphas)
    ]
    columns = [[float(cell[name]) for cell in cells] for name in ("transitions", "alpha")]
    true_model = [cell["model"] == "true" for cell in cells]
    return Run(jnp.array(columns[0]), jnp.array(columns[1]), jnp.array(true_model)), cells


def fit(run: Run, key: Key, *, config: Config, depth: int, distance: Any) -> dict[str, Array]:
    """Fits one critic to the value of a fixed linear policy and compares its slopes in the action with the truth.

    Args:
      run: cell of the grid.
      key: of problem, data and critic; the same for all cells of a seed.
      config: of the study.
      depth: model steps of the planner whose slope is matched.
      distance: of slopes, see `losses.gradient_matching.slope_distance`.
    """
    problem_key, data_key, test_key, critic_key, updates_key = jax.random.split(key, 5)
    problem = _problem(problem_key)
    gain = jnp.zeros((_ACTION, _OBS))
    data = _data(problem, data_key, max(config.transitions))
    known = jnp.arange(data[0].shape[0]) < run.size
    model = jax.tree.map(partial(jnp.where, run.true_model), Model(problem.A, problem.B), _least_squares(data, known))
    critic = networks.critics(_OBS, _ACTION, config.hidden, activation="tanh", num_critics=1)
    optimiser = optax.adam(_STEP_SIZE)
    params = critic.init(critic_key)

    def update(carry: tuple[Any, Any, Any], k: Key) -> tuple[tuple[Any, Any, Any], None]:
        params, slow, opt = carry
        rows_key, loss_key = jax.random.split(k)
        index = jax.random.randint(rows_key, (_BATCH,), 0, run.size.astype(jnp.int32))
        obs, action, reward, next_obs = (x[index] for x in data)

        def slow_value(s: Array) -> Array:
            return critic.apply(slow, s, gain @ s)[0]

        def plan_fn(s: Array, a: Array, _: Key) -> Array:
            return _expansion(problem, model, gain, s, a, depth, slow_value)

        targets = reward + problem.gamma * jax.vmap(slow_value)(next_obs)

        def loss(p: Any) -> Array:
            error = batched(partial(squared_error, q_fn=critic.apply))(p, (obs, action, targets), loss_key)[0]
            slopes = partial(critic_slope_loss, q_fn=critic.apply, plan_fn=plan_fn, distance=distance)
            return error + run.alpha * batched(slopes)(p, (obs, action), loss_key)[0]

        step, opt = optimiser.update(jax.grad(loss)(params), opt)
        params = optax.apply_updates(params, step)
        return (params, optax.incremental_update(params, slow, _TARGET_RATE), opt), None

    carry = (params, params, optimiser.init(params))
    (params, _, _), _ = jax.lax.scan(update, carry, jax.random.split(updates_key, config.updates))
    return _scores(problem, gain, partial(critic.apply, params), test_key)


def _problem(key: Key) -> lqr.Problem:
    problem = lqr.random_problem(key, _OBS, _ACTION, gamma=0.9, process_noise=0.1)
    # Values of about one, as large as what a network starts with.
    return problem._replace(Q=(1.0 - problem.gamma) * problem.Q, R=(1.0 - problem.gamma) * problem.R)


def _reward(problem: lqr.Problem, obs: Array, action: Array) -> Array:
    return -0.5 * (obs @ problem.Q @ obs + action @ problem.R @ action)


def _data(problem: lqr.Problem, key: Key, count: int) -> tuple[Array, Array, Array, Array]:
    """Independent steps: states around the start, actions at random, transitions with noise."""
    obs_key, action_key, noise_key = jax.random.split(key, 3)
    obs = problem.start_mean[None] + jax.random.normal(obs_key, (count, _OBS))
    action = jax.random.normal(action_key, (count, _ACTION))
    noise = jax.random.normal(noise_key, (count, _OBS)) @ problem.process_scale.T
    next_obs = obs @ problem.A.T + action @ problem.B.T + noise
    return obs, action, jax.vmap(partial(_reward, problem))(obs, action), next_obs


def _least_squares(data: tuple[Array, ...], known: Array) -> Model:
    obs, action, _, next_obs = data
    inputs = jnp.concatenate([obs, action], axis=1) * known[:, None]
    square = inputs.T @ inputs + _RIDGE * jnp.eye(_OBS + _ACTION)
    both = jnp.linalg.solve(square, inputs.T @ next_obs).T
    return Model(both[:, :_OBS], both[:, _OBS:])


def _expansion(
    problem: lqr.Problem, model: Model, gain: Array, obs: Array, action: Array, depth: int, value_fn: Any
) -> Array:
    """``sum_{t<D} gamma^t r_t + gamma^D V(s_D)`` on the model; noise shifts a quadratic value, not its slope."""
    total, weight = jnp.zeros(()), jnp.ones(())
    for _ in range(depth):
        total += weight * _reward(problem, obs, action)
        obs = model.A @ obs + model.B @ action
        weight, action = weight * problem.gamma, gain @ obs
    return total + weight * value_fn(obs)


def _scores(problem: lqr.Problem, gain: Array, q_fn: Any, key: Key) -> dict[str, Array]:
    """Errors of value and slope at fresh states and actions, relative to the truth's own spread and length."""
    obs, action, _, _ = _data(problem, key, _TESTS)
    exact = partial(lqr.q_value, problem, gain)
    q = jax.vmap(lambda s, a: q_fn(s, a)[0])(obs, action)
    truth = jax.vmap(exact)(obs, action)
    slope = jax.vmap(jax.grad(lambda a, s: q_fn(s, a)[0]))(action, obs)
    true_slope = jax.vmap(jax.grad(lambda a, s: exact(s, a)))(action, obs)
    lengths = jnp.linalg.norm(slope, axis=1) * jnp.linalg.norm(true_slope, axis=1)
    return {
        "value_error": jnp.sqrt(jnp.mean(jnp.square(q - truth)) / jnp.var(truth)),
        "slope_error": jnp.sqrt(jnp.sum(jnp.square(slope - true_slope)) / jnp.sum(jnp.square(true_slope))),
        "slope_cosine": jnp.mean(jnp.sum(slope * true_slope, axis=1) / jnp.maximum(lengths, 1e-12)),
    }
