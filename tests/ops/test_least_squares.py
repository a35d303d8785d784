"""Least-squares temporal differences against the values of a finite problem, on and off policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import finite
from jaxhybrid.ops.least_squares import temporal_difference_coefficients

STATES, ACTIONS = 4, 3


def every_transition(weigh):
    """All transitions of a random problem, each once, with the weight of the given policies and exact values."""
    keys = jax.random.split(jax.random.key(3), 3)
    problem = finite.random_problem(keys[0], STATES, ACTIONS, gamma=0.9)
    target, behaviour = (jax.nn.softmax(jax.random.normal(k, (STATES, ACTIONS))) for k in keys[1:])
    visits = finite.occupancy(problem, behaviour)
    chance = weigh(visits, target, behaviour)[:, :, None] * problem.transition
    state, action, following = (x.ravel() for x in jnp.meshgrid(*map(jnp.arange, chance.shape), indexing="ij"))
    one_hot = jnp.eye(STATES)
    rows = (one_hot[state], one_hot[following], problem.reward[state, action], jnp.ones(state.size), chance.ravel())
    return rows, finite.state_values(problem, target)


def ratio(visits, target, behaviour):
    return visits * target / behaviour


@pytest.mark.float64
def test_values_of_another_policy_than_the_one_that_collected():
    rows, values = every_transition(ratio)
    np.testing.assert_allclose(temporal_difference_coefficients(*rows, gamma=0.9), values, rtol=1e-10)
    # A mixed basis changes the coefficients and not the values.
    basis = jax.random.normal(jax.random.key(4), (STATES, STATES))
    mixed = temporal_difference_coefficients(rows[0] @ basis, rows[1] @ basis, *rows[2:], gamma=0.9)
    np.testing.assert_allclose(basis @ mixed, values, rtol=1e-9)
    # Planted: without the ratio these are the values of nobody.
    biased, _ = every_transition(lambda visits, target, behaviour: visits)
    assert np.abs(temporal_difference_coefficients(*biased, gamma=0.9) - values).max() > 0.05


@pytest.mark.float64
def test_an_end_an_unseen_feature_and_the_ridge():
    one = jnp.ones(1)
    # Two states in a row, then the end: V = (1 + 0.5 * 3, 3); a third one was never seen.
    rows = (jnp.eye(3)[:2], jnp.eye(3)[jnp.array([1, 2])], jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]), jnp.ones(2))
    np.testing.assert_allclose(temporal_difference_coefficients(*rows, gamma=0.5), [2.5, 3.0, 0.0], atol=1e-12)
    # One state with reward 1 and no future: w phi (1 - phi theta) = lambda w phi^2 theta, in any unit of phi.
    for unit in (1.0, 100.0):
        theta = temporal_difference_coefficients(
            unit * one[None], 0 * one[None], one, 0 * one, 7 * one, gamma=0.9, ridge=0.25
        )
        assert unit * theta[0] == pytest.approx(1 / 1.25)
