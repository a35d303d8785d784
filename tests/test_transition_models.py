import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import transition_models
from jaxhybrid.envs import gridworld
from jaxhybrid.trajectories import Trajectory

KEY = jax.random.key(0)


def test_effect_transitions_by_hand():
    grid = gridworld.layout()
    probs = jnp.tile(jnp.array([[0.5, 0.2, 0.1, 0.1, 0.1]]), (4, 1))
    transition = transition_models.effect_transition(probs, grid.moves)
    np.testing.assert_allclose(transition.sum(-1), np.ones((25, 4)), rtol=1e-6)
    # In the middle every effect leads elsewhere; in the lower right corner down, right and stay do not.
    np.testing.assert_allclose(transition[17, 0, [12, 22, 16, 18, 17]], [0.5, 0.2, 0.1, 0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(transition[24, 0, [19, 23, 24]], [0.5, 0.1, 0.4], rtol=1e-6)


@pytest.mark.float64
def test_expectation_maximisation_finds_the_weighted_optimum():
    """Walls hide effects, so there is no closed form: the slope on the simplex must vanish instead."""
    grid = gridworld.layout()
    counts = jax.random.uniform(KEY, (25, 4, 25)) * (
        transition_models.effect_transition(jnp.full((4, 5), 0.2), grid.moves) > 0
    )
    start = jnp.full((4, 5), 0.2)

    def likelihood(logits):
        p = transition_models.effect_transition(jax.nn.softmax(logits), grid.moves)
        return jnp.sum(counts * jnp.log(jnp.where(counts > 0, p, 1.0)))

    found = transition_models.effect_expectation_maximisation(start, counts, grid.moves, steps=400, prior=0.0)
    slope = jax.grad(likelihood)(jnp.log(found))
    assert np.abs(slope).max() < 1e-6 * counts.sum()
    assert np.abs(jax.grad(likelihood)(jnp.log(start))).max() > 1e-3 * counts.sum()
    # Likelihood never falls from step to step.
    steps = [
        likelihood(jnp.log(transition_models.effect_expectation_maximisation(start, counts, grid.moves, steps=k)))
        for k in (1, 2, 5, 20)
    ]
    assert np.all(np.diff(steps) > 0)


def test_an_effect_that_was_never_seen_can_come_back():
    grid = gridworld.layout()
    one_way = jnp.zeros((25, 4, 25)).at[17, :, 12].set(1.0)
    start = jnp.full((4, 5), 0.2)
    up = transition_models.effect_expectation_maximisation(start, one_way, grid.moves, steps=30)
    assert np.all(up[:, 0] > 0.99) and np.all(up[:, 1:] > 0)
    down = jnp.zeros((25, 4, 25)).at[17, :, 22].set(1.0)
    again = transition_models.effect_expectation_maximisation(up, down, grid.moves, steps=30)
    assert np.all(again[:, 1] > 0.99)


def regression(key, count=200):
    """Steps of a linear system in two modes; the last tenth obeys another one."""
    keys = jax.random.split(key, 3)
    obs = jax.random.normal(keys[0], (count, 10, 1))
    action = jax.random.normal(keys[1], (count, 10, 1))
    late = (jnp.arange(10) == 9)[None, :, None]
    change = jnp.where(late, -3.0 * action, 0.5 + 0.2 * obs + 1.5 * action)
    next_obs = obs + change + 0.1 * jax.random.normal(keys[2], change.shape)
    flat = jnp.zeros((count, 10))
    data = Trajectory(obs, action, flat, flat + 1, next_obs, flat, flat + 1)
    return data, jnp.broadcast_to(~late[..., 0], (count, 10)).astype(float)


def test_linear_gaussian_fits_what_the_weights_ask_for():
    data, early = regression(KEY)
    model = transition_models.linear_gaussian(lambda s, a: jnp.concatenate([jnp.ones(1), s, a]), 3, 1)
    fit = jax.jit(lambda w: transition_models.fit(model, model.init(KEY), data, w, steps=1500, learning_rate=0.02))
    params, loss = fit(early)
    np.testing.assert_allclose(params["mean"], [[0.5, 0.2, 1.5]], atol=0.01)
    np.testing.assert_allclose(params["log_std"], [[np.log(0.1), 0.0, 0.0]], atol=0.06)
    # Mean negative log-likelihood of a Gaussian of standard deviation 0.1.
    assert loss == pytest.approx(0.5 * np.log(2 * np.pi * 0.01) + 0.5, abs=0.03)
    both, _ = fit(jnp.ones_like(early))
    assert np.abs(both["mean"][0, 2] - 1.5) > 0.05
    sample = model.sample(params, jnp.ones(1), jnp.ones(1), jnp.ones(1))
    assert sample[0] == pytest.approx(1.0 + 2.2 + 0.1, abs=0.03)
    nothing, _ = fit(jnp.zeros_like(early))
    np.testing.assert_array_equal(nothing["mean"], np.zeros((1, 3)))


def test_network_gaussian_learns_a_curve():
    data, _ = regression(KEY)
    data = data._replace(next_obs=data.obs + jnp.sin(2 * data.action))
    model = transition_models.network_gaussian(1, 1, (16, 16))
    run = jax.jit(lambda: transition_models.fit(model, model.init(KEY), data, data.mask, steps=400, learning_rate=0.01))
    params, loss = run()
    assert loss < -1.0
    change = model.change(params, jnp.zeros(1), jnp.array([0.5]))
    assert change.mean[0] == pytest.approx(np.sin(1.0), abs=0.1)
