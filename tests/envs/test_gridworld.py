"""The gridworld's geometry cell by cell, and what its two layouts do to the two kinds of model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.special

from jaxhybrid import policies
from jaxhybrid.envs import finite, gridworld
from jaxhybrid.errors import InputError
from jaxhybrid.transition_models import effect_expectation_maximisation, effect_transition

UP, DOWN, LEFT, RIGHT = range(4)


def cell(row, column):
    return row * 5 + column


@pytest.mark.parametrize(
    ("topology", "at", "action", "to"),
    [
        ("two_areas", (3, 2), UP, (2, 2)),
        ("two_areas", (3, 2), LEFT, (3, 1)),
        ("two_areas", (2, 2), UP, (1, 2)),  # into the upper area
        ("two_areas", (1, 2), UP, (1, 2)),  # there, up is down, and the way back is closed
        ("two_areas", (1, 2), DOWN, (0, 2)),
        ("two_areas", (1, 2), LEFT, (1, 3)),
        ("two_areas", (0, 1), RIGHT, (0, 0)),  # the goal
        ("two_areas", (4, 4), RIGHT, (4, 4)),  # a wall
        ("two_areas", (0, 0), LEFT, (0, 0)),  # the goal is left by nothing
        ("literal", (1, 2), UP, (2, 2)),
        ("literal", (2, 2), UP, (2, 2)),
        ("literal", (0, 0), RIGHT, (0, 0)),  # the left wall, reversed
        ("literal", (4, 4), LEFT, (4, 4)),
    ],
)
def test_moves(topology, at, action, to):
    grid = gridworld.layout(topology)
    assert grid.moves[cell(*at), grid.effect[cell(*at), action]] == cell(*to)
    assert gridworld.problem(topology).transition[cell(*at), action, cell(*to)] == 1.0
    state = gridworld.GridState(jnp.asarray(cell(*at)), jnp.asarray(0))
    _, after = gridworld.make(topology=topology).step(state, jnp.array([float(action)]), jax.random.key(0))
    np.testing.assert_array_equal(after.obs, to)
    assert gridworld.state_of(after.obs) == cell(*to)
    assert after.terminated == (cell(*to) == grid.goal)


@pytest.mark.parametrize(("topology", "free"), [("two_areas", 9), ("literal", 10)])
def test_the_fixed_part_leads_on(topology, free):
    grid = gridworld.layout(topology)
    assert grid.start.sum() == pytest.approx(1.0)
    assert (grid.fixed_action < 0).sum() == free
    # From every lower cell the serpentine reaches the other area, or the goal, and visits no cell twice.
    for s in range(25):
        seen = []
        while grid.fixed_action[s] >= 0 and s != grid.goal:
            assert s not in seen
            seen.append(s)
            s = grid.moves[s, grid.effect[s, grid.fixed_action[s]]]


def test_starts_are_the_declared_ones():
    env = gridworld.make()
    cells = jax.vmap(lambda k: env.reset(k)[0].cell)(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(np.bincount(cells, minlength=25) / 2000, gridworld.layout().start, atol=0.025)


@functools.cache
def learn(topology, weights, iterations=100, seeds=4):
    """Returns over iterations and the cosines with the truth, by exact expectations: no sample anywhere."""
    grid, problem = gridworld.layout(topology), gridworld.problem(topology, gamma=0.95)
    policy = policies.tabular_softmax(grid.fixed_action, 4)
    optimiser = optax.adam(0.1)

    def probs_fn(table):
        return jax.vmap(lambda s: policy.apply(table, s).probs())(jnp.arange(25))

    def gradient(table):
        probs = probs_fn(table)
        if weights == "exact":
            return finite.policy_gradient(problem, probs_fn, table)
        visits = finite.occupancy(problem, probs)
        if weights == "gradient_aware":
            visits, _ = finite.gradient_aware_distribution(problem, probs, finite.score_norms(probs_fn, table))
        counts = (visits[:, :, None] * problem.transition).at[grid.goal].set(0.0)
        effects = effect_expectation_maximisation(jnp.full((4, 5), 0.2), counts, grid.moves, steps=50, prior=1e-6)
        return finite.model_value_gradient(problem, effect_transition(effects, grid.moves), probs_fn, table)

    def step(carry, _):
        table, state = carry
        found, true = gradient(table), finite.policy_gradient(problem, probs_fn, table)
        cosine = jnp.sum(found * true) / jnp.linalg.norm(found) / jnp.linalg.norm(true)
        updates, state = optimiser.update(-found, state)
        return (table + updates, state), (finite.expected_return(problem, probs_fn(table)), cosine)

    @jax.jit
    @jax.vmap
    def run(key):
        table = policy.init(key)
        return jax.lax.scan(step, (table, optimiser.init(table)), None, length=iterations)[1]

    returns, cosines = run(jax.random.split(jax.random.key(0), seeds))
    return np.asarray(returns), np.asarray(cosines)


def likely_effects(counts, moves):
    """Probabilities of the effects of one action under which its moves are likeliest, by descent on their logits."""
    seen = [(count, moves[s] == t) for (s, t), count in np.ndenumerate(counts) if count > 0]
    weight, leads = np.array([count for count, _ in seen]), np.array([which for _, which in seen], float)

    def loss(logits):
        probs = scipy.special.softmax(logits)
        share = leads @ probs
        slope = -(weight / share) @ leads / weight.sum()
        return -weight @ np.log(share) / weight.sum(), probs * (slope - slope @ probs)

    found = scipy.optimize.minimize(loss, np.zeros(5), jac=True, options={"gtol": 1e-7})
    return scipy.special.softmax(found.x)


def ascend_by_hand(topology, table, iterations):
    """Returns over iterations with the likely model: linear systems, closed-form gradients and Adam in NumPy."""
    grid, problem = gridworld.layout(topology), gridworld.problem(topology, gamma=0.95)
    transition, reward, start = (np.asarray(x, np.float64) for x in problem[:3])
    table, free = np.array(table, np.float64), grid.fixed_action < 0
    fixed = np.eye(4)[grid.fixed_action]
    first, second, returns = np.zeros_like(table), np.zeros_like(table), []

    def evaluated(model, probs):
        chain = np.eye(25) - 0.95 * np.einsum("sa,sat->st", probs, model)
        values = np.linalg.solve(chain, np.sum(probs * reward, axis=1))
        return values, reward + 0.95 * model @ values, np.linalg.solve(chain.T, start)

    for i in range(1, iterations + 1):
        probs = np.where(free[:, None], scipy.special.softmax(table, axis=1), fixed)
        values, _, visits = evaluated(transition, probs)
        returns.append(start @ values)
        counts = visits[:, None, None] * probs[:, :, None] * transition
        counts[grid.goal] = 0.0
        model = transition.copy()
        for action in range(4):
            effects = likely_effects(counts[:, action], grid.moves)
            for s in np.flatnonzero(np.arange(25) != grid.goal):
                model[s, action] = np.bincount(grid.moves[s], effects, 25)
        values, q, _ = evaluated(model, probs)
        gradient = free[:, None] * visits[:, None] * probs * (q - np.sum(probs * q, axis=1, keepdims=True))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        table += 0.1 * first / (1 - 0.9**i) / (np.sqrt(second / (1 - 0.999**i)) + 1e-8)
    return np.array(returns)


@pytest.mark.float64
def test_the_likely_models_way_by_hand():
    returns, _ = learn("two_areas", "likelihood")
    # One start all the way: what is learnt depends on it, so a mean over starts would show little.
    key = jax.random.split(jax.random.key(0), 4)[1]
    table = policies.tabular_softmax(gridworld.layout().fixed_action, 4).init(key)
    by_hand = ascend_by_hand("two_areas", table, 100)
    np.testing.assert_allclose(returns[1], by_hand, atol=1e-3)
    assert returns[1, 0] < returns[1, -1] - 3.0


@pytest.mark.float64
def test_the_gradient_aware_model_learns_what_the_true_gradient_does():
    """The best return is -9.51; how far the likely model stays behind is in the test by hand."""
    (exact, _), (aware, cosine), (likely, likely_cosine) = (
        learn("two_areas", kind) for kind in ("exact", "gradient_aware", "likelihood")
    )
    assert exact[:, -1].mean() == pytest.approx(-9.51, abs=0.02)
    np.testing.assert_allclose(aware, exact, atol=2e-3)
    assert np.all(cosine[:, 0] > 0.9999)
    assert likely[:, -1].max() < exact[:, -1].min() - 1.5
    assert np.all(likely_cosine[:, 0] < 0.95)


@pytest.mark.float64
def test_the_literal_layout_does_not_separate_them():
    (exact, _), (aware, cosine), (likely, _) = (
        learn("literal", kind) for kind in ("exact", "gradient_aware", "likelihood")
    )
    assert abs(aware[:, -1].mean() - likely[:, -1].mean()) < 0.1
    assert exact[:, -1].mean() > aware[:, -1].mean() + 0.2
    assert cosine[:, 0].mean() < 0.9


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="topology='litteral' is unknown: did you mean 'literal'"):
        gridworld.make(topology="litteral")
    with pytest.raises(InputError, match="max_episode_steps=0"):
        gridworld.make(max_episode_steps=0)
