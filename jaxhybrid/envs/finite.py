"""Finite Markov decision problems: every value, distribution and gradient by matrix products.

A policy is a table of probabilities ``[S, A]``; where a gradient is taken, a function ``probs_fn(params) -> [S, A]``.
Everything is pure, differentiable and vmap-able, and meant as an oracle, so run it in float64 where digits matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, PyTree, TimeStep

__all__ = [
    "FiniteState",
    "Problem",
    "ProbsFn",
    "expected_return",
    "gradient_aware_distribution",
    "gradient_error_bound",
    "kl_divergence",
    "make",
    "model_value_gradient",
    "occupancy",
    "policy_gradient",
    "q_values",
    "random_problem",
    "score_norms",
    "state_values",
]

ProbsFn = Callable[[PyTree], Array]
"""``probs_fn(params) -> [S, A]``."""

# Sums of gamma^t P^t are doubled this often: 65,536 terms, whose rest is below 1e-14 up to gamma = 0.9995.
_DOUBLINGS = 16


class Problem(NamedTuple):
    """A finite problem.

    Attributes:
      transition: ``p(s' | s, a)``, ``[S, A, S]``.
      reward: ``r(s, a)``, ``[S, A]``.
      start: distribution of the first state, ``[S]``.
      gamma: discount factor, in [0, 1), ``[]``.
    """

    transition: Array
    reward: Array
    start: Array
    gamma: Array


class FiniteState(NamedTuple):
    """State, integer ``[]``, and number of steps taken, ``[]``."""

    state: Array
    step: Array


def state_values(problem: Problem, probs: Array) -> Array:
    """``V = (I - gamma P_pi)^{-1} r_pi``, ``[S]``."""
    step = jnp.einsum("sa,sat->st", probs, problem.transition)
    reward = jnp.sum(probs * problem.reward, axis=1)
    return _discounted_sum(problem.gamma * step, reward)


def q_values(problem: Problem, probs: Array) -> Array:
    """``Q(s, a) = r(s, a) + gamma sum_{s'} p(s' | s, a) V(s')``, ``[S, A]``."""
    return problem.reward + problem.gamma * problem.transition @ state_values(problem, probs)


def expected_return(problem: Problem, probs: Array) -> Array:
    """``J = sum_s mu(s) V(s)``, ``[]``."""
    return problem.start @ state_values(problem, probs)


def occupancy(problem: Problem, probs: Array) -> Array:
    """Discounted distribution of pairs, ``delta = (1 - gamma) sum_t gamma^t Pr(s_t = s, a_t = a)``, ``[S, A]``."""
    step = jnp.einsum("sa,sat->st", probs, problem.transition)
    states = (1.0 - problem.gamma) * _discounted_sum(problem.gamma * step.T, problem.start)
    return states[:, None] * probs


def policy_gradient(problem: Problem, probs_fn: ProbsFn, params: PyTree) -> PyTree:
    """The gradient of the return, by differentiating the values; shaped like ``params``."""
    return jax.grad(lambda p: expected_return(problem, probs_fn(p)))(params)


def model_value_gradient(problem: Problem, model: Array, probs_fn: ProbsFn, params: PyTree) -> PyTree:
    """The model-value gradient: visited pairs from the problem, their values from a model.

    ``1 / (1 - gamma) sum_{s,a} delta^{pi,p}(s, a) grad log pi(a | s) Q^{pi,p'}(s, a)``.

    Args:
      problem: the truth.
      model: transition probabilities ``p'`` of the model, ``[S, A, S]``.
      probs_fn: ``probs_fn(params) -> [S, A]``.
      params: parameters of the policy.

    Returns:
      The direction of ascent, shaped like ``params``.

    Source: D'Oro et al. 2020, Gradient-aware model-based policy search, definition 3.1.
    """
    probs = probs_fn(params)
    visits = jnp.sum(occupancy(problem, probs), axis=1) / (1.0 - problem.gamma)
    weights = visits[:, None] * q_values(problem._replace(transition=model), probs)
    # delta grad log pi = visits grad pi, which needs no logarithm of an action that is never taken.
    return jax.grad(lambda p: jnp.sum(weights * probs_fn(p)))(params)


def score_norms(probs_fn: ProbsFn, params: PyTree, *, order: float = 2.0) -> Array:
    """``|grad log pi(a | s)|_q`` of every pair, ``[S, A]``; zero where the action is never taken.

    Args:
      probs_fn: ``probs_fn(params) -> [S, A]``.
      params: parameters of the policy.
      order: ``q``: 1, 2 or infinity.
    """
    probs = probs_fn(params)
    slopes = jax.tree.leaves(jax.jacrev(probs_fn)(params))
    flat = jnp.concatenate([slope.reshape(probs.shape + (-1,)) for slope in slopes], axis=-1)
    taken = probs > 0
    return jnp.where(taken, jnp.linalg.norm(flat, ord=order, axis=-1) / jnp.where(taken, probs, 1.0), 0.0)


def gradient_aware_distribution(problem: Problem, probs: Array, norms: Array) -> tuple[Array, Array]:
    """Distribution of the pairs whose model error matters to the gradient, and its normaliser.

    ``nu = delta |grad log pi| / Z``, ``Z = sum delta |grad log pi|``, ``eta = (1 - gamma)(I - gamma P')^{-1} nu`` with
    ``P'`` the transition of state-action pairs: what is reached from pairs of large score.

    Args:
      problem: the problem.
      probs: policy, ``[S, A]``.
      norms: norms of the score, ``[S, A]``.

    Returns:
      ``(eta [S, A], Z [])``.

    Source: D'Oro et al. 2020, theorem 3.2.
    """
    weighted = occupancy(problem, probs) * norms
    total = jnp.sum(weighted)
    pairs = jnp.einsum("sat,tb->satb", problem.transition, probs).reshape(probs.size, probs.size)
    eta = (1.0 - problem.gamma) * _discounted_sum(problem.gamma * pairs.T, weighted.ravel() / total)
    return eta.reshape(probs.shape), total


def kl_divergence(transition: Array, model: Array) -> Array:
    """``KL(p(. | s, a) || p'(. | s, a))`` of every pair in nats, ``[S, A]``."""
    possible = transition > 0
    ratio = jnp.where(possible, transition, 1.0) / jnp.where(possible, model, 1.0)
    return jnp.sum(transition * jnp.log(ratio), axis=-1)


def gradient_error_bound(problem: Problem, probs: Array, norms: Array, model: Array, *, power: int = 3) -> Array:
    """Bound on the q-norm of the model-value gradient's error, ``[]``.

    ``gamma sqrt(2) Z R_max / (1 - gamma)^power * sqrt(E_eta KL(p || p'))``.

    Args:
      problem: the truth.
      probs: policy, ``[S, A]``.
      norms: q-norms of the score, ``[S, A]``.
      model: transition probabilities of the model, ``[S, A, S]``.
      power: 3 is what the proof gives: ``1 / (1 - gamma)`` in front of the gradient, times the difference of the
        values, ``gamma R_max / (1 - gamma)^2 E |p - p'|_1``. The paper prints 2, which does not hold.

    Source: D'Oro et al. 2020, theorem 3.2.
    """
    eta, total = gradient_aware_distribution(problem, probs, norms)
    divergence = jnp.sum(eta * kl_divergence(problem.transition, model))
    scale = problem.gamma * jnp.sqrt(2.0) * total * jnp.max(jnp.abs(problem.reward)) / (1.0 - problem.gamma) ** power
    # Rounding may leave a divergence of zero slightly below it.
    return scale * jnp.sqrt(jnp.maximum(divergence, 0.0))


def random_problem(
    key: Key, num_states: int, num_actions: int, *, gamma: Array | float, sharpness: float = 1.0
) -> Problem:
    """Draws a problem: transitions by softmax of normal logits, standard normal rewards, a random start.

    Args:
      key: one draw.
      num_states: ``S``.
      num_actions: ``A``.
      gamma: discount factor, in [0, 1).
      sharpness: standard deviation of the logits; large values give nearly deterministic transitions.
    """
    transition_key, reward_key, start_key = jax.random.split(key, 3)
    logits = sharpness * jax.random.normal(transition_key, (num_states, num_actions, num_states))
    return Problem(
        transition=jax.nn.softmax(logits),
        reward=jax.random.normal(reward_key, (num_states, num_actions)),
        start=jax.nn.softmax(jax.random.normal(start_key, (num_states,))),
        gamma=jnp.asarray(gamma, logits.dtype),
    )


def make(problem: Problem, name: str = "finite", max_episode_steps: int = 50) -> Env:
    """Returns the problem as an environment: observation and action are the numbers of state and action, ``[1]``.

    Args:
      problem: the problem; its discount is not applied to the rewards.
      name: name for the spec.
      max_episode_steps: steps after which an episode is truncated; it never terminates.

    Raises:
      InputError: a time limit below 1.
    """
    if max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")
    num_actions = problem.reward.shape[1]
    log_start, log_transition = jnp.log(problem.start), jnp.log(problem.transition)

    def reset(key: Key) -> tuple[FiniteState, Array]:
        state = jax.random.categorical(key, log_start).astype(jnp.int32)
        return FiniteState(state, jnp.zeros((), jnp.int32)), state[None].astype(problem.reward.dtype)

    def step(env_state: FiniteState, action: Array, key: Key) -> tuple[FiniteState, TimeStep]:
        chosen = jnp.clip(jnp.round(action[0]).astype(jnp.int32), 0, num_actions - 1)
        state = jax.random.categorical(key, log_transition[env_state.state, chosen]).astype(jnp.int32)
        count = env_state.step + 1
        obs = state[None].astype(problem.reward.dtype)
        reward = problem.reward[env_state.state, chosen]
        return FiniteState(state, count), TimeStep(obs, reward, jnp.zeros((), bool), count >= max_episode_steps)

    spec = EnvSpec(
        name=name,
        obs_dim=1,
        action_dim=1,
        action_low=np.zeros(1),
        action_high=np.full(1, num_actions - 1.0),
        max_episode_steps=max_episode_steps,
        notes="Observation and action are numbers of a list; the action is rounded.",
    )
    return Env(reset, step, spec)


def _discounted_sum(step: Array, start: Array) -> Array:
    """``sum_t step^t start = (I - step)^{-1} start`` by doubling: products only, which map over problems anywhere."""

    def double(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        total, power = carry
        return (total + power @ total, power @ power), None

    return jax.lax.scan(double, (start, step), None, length=_DOUBLINGS)[0][0]
