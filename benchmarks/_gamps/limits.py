"""What every estimator of `gradients` tends to when the number of recorded trajectories grows, by exact sums."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs import finite, gridworld
from jaxhybrid.policies import tabular_softmax
from jaxhybrid.systems.gamps_config import Config
from jaxhybrid.transition_models import effect_expectation_maximisation, effect_transition
from jaxhybrid.types import Array

__all__ = ["limits"]


def limits(config: Config, behaviour: Array, target: Array) -> np.ndarray:
    """Returns the limits of the six estimators, ``[6, S, A]``, in the order of `gradients`.

    Both Monte-Carlo gradients tend to the gradient of the return of ``T`` steps, the length of a recording. The others
    tend to their value with the model that is fitted to the expected weights of all transitions.

    Args:
      config: the numbers; its ``episode_steps`` are ``T``.
      behaviour: logits of the policy that collects, ``[S, A]``.
      target: logits of the policy whose gradient is estimated, ``[S, A]``.
    """
    grid, problem = gridworld.layout(), gridworld.problem(gamma=config.gamma)
    policy = tabular_softmax(grid.fixed_action, 4)
    cells = jnp.arange(len(grid.start))

    def probs_fn(params: Array) -> Array:
        return jax.vmap(lambda s: policy.apply(params, s).probs())(cells)

    def model(pairs: Array) -> Array:
        counts = pairs[:, :, None] * problem.transition
        effects = effect_expectation_maximisation(
            jnp.full((4, len(gridworld.EFFECTS)), 1.0 / len(gridworld.EFFECTS)),
            counts,
            grid.moves,
            steps=config.model_steps,
        )
        return effect_transition(effects, grid.moves).at[grid.goal].set(problem.transition[grid.goal])

    probs = probs_fn(target)
    visit = partial(_visits, problem, grid.goal, config.episode_steps)
    likely, _, _ = visit(probs_fn(behaviour), jnp.zeros_like(probs), jnp.ones(()))
    visits, aware, _ = visit(probs, finite.score_norms(probs_fn, target), problem.gamma)
    models = [model(likely), model(aware)]

    def truncated(q: Array) -> Array:
        weights = jnp.sum(visits, axis=1, keepdims=True) * q
        return jax.grad(lambda p: jnp.sum(weights * probs_fn(p)))(target)

    monte_carlo = jax.grad(lambda p: visit(probs_fn(p), jnp.zeros_like(probs), problem.gamma)[2])(target)
    found = [monte_carlo, monte_carlo]
    found += [finite.policy_gradient(problem._replace(transition=m), probs_fn, target) for m in models]
    found += [truncated(finite.q_values(problem._replace(transition=m), probs)) for m in models]
    return np.asarray(jnp.stack(found), np.float64)


def _visits(
    problem: finite.Problem, goal: int, steps: int, probs: Array, norms: Array, gamma: Array
) -> tuple[Array, Array, Array]:
    """Sums over the steps of a recording, which ends at the goal.

    Returns:
      ``sum_t gamma^t Pr(s_t, a_t)`` and ``sum_t gamma^t E[sum_{l<=t} |score_l|; s_t, a_t]``, both ``[S, A]``, and the
      expected return, ``[]``.
    """

    def advance(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple, Any]:
        state, scored, weight = carry
        pairs = (state[:, None] * probs).at[goal].set(0.0)
        scores = (scored[:, None] * probs).at[goal].set(0.0) + pairs * norms
        following = [jnp.einsum("sa,sat->t", x, problem.transition) for x in (pairs, scores)]
        summed = (weight * pairs, weight * scores, weight * jnp.sum(pairs * problem.reward))
        return (following[0], following[1], weight * gamma), summed

    start = (problem.start, jnp.zeros_like(problem.start), jnp.ones((), problem.start.dtype))
    found = jax.lax.scan(advance, start, None, length=steps)[1]
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), found)
