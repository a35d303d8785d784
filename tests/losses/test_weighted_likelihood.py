import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.losses.weighted_likelihood import weighted_nll
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.trajectories import Trajectory

KEY = jax.random.key(0)


def trajectory(obs, next_obs, mask):
    steps = len(mask)
    zero = jnp.zeros(steps)
    return Trajectory(obs, jnp.zeros((steps, 1)), zero, zero, next_obs, zero, mask)


def log_prob_fn(params, obs, action, next_obs):
    return Gaussian(params["slope"] * obs, params["log_std"]).log_prob(next_obs)


@pytest.mark.float64
def test_the_optimum_is_weighted_least_squares():
    x, y = jnp.array([[1.0], [2.0], [3.0], [9.0]]), jnp.array([[2.0], [3.0], [7.0], [50.0]])
    weights, mask = jnp.array([1.0, 4.0, 0.5, 1.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    w, a, b = weights[:3], x[:3, 0], y[:3, 0]
    slope = jnp.sum(w * a * b) / jnp.sum(w * a * a)
    variance = jnp.sum(w * (b - slope * a) ** 2) / jnp.sum(w)
    params = {"slope": slope, "log_std": 0.5 * jnp.log(variance)[None]}

    def loss(p):
        return weighted_nll(p, trajectory(x, y, mask), KEY, log_prob_fn=log_prob_fn, step_weights=weights)

    value, aux = loss(params)
    # -sum_t w_t log N = W/2 (log 2 pi variance + 1) at the optimum.
    expected = 0.5 * jnp.sum(w) * (jnp.log(2 * jnp.pi * variance) + 1.0)
    assert value == pytest.approx(float(expected), rel=1e-12)
    assert aux["total_weight"] == pytest.approx(5.5)
    gradient = jax.grad(lambda p: loss(p)[0])(params)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_does_not_count_reaches_neither_loss_nor_gradient(bad):
    x, y = jnp.array([[1.0], [2.0], [3.0], [9.0]]), jnp.array([[2.0], [3.0], [7.0], [50.0]])
    mask, weights = jnp.array([1.0, 1.0, 1.0, 0.0]), jnp.array([0.0, 4.0, 0.5, 1.0])
    params = {"slope": jnp.array(0.7), "log_std": jnp.zeros(1)}

    @jax.jit
    def run(steps, omega):
        loss = jax.value_and_grad(weighted_nll, has_aux=True)
        return loss(params, steps, KEY, log_prob_fn=log_prob_fn, step_weights=omega)

    clean = run(trajectory(x, y, mask), weights)
    # The first step has no weight, the last one is past the end: the model forbids both transitions.
    spoilt = trajectory(x.at[3].set(bad), y.at[0].set(jnp.inf).at[3].set(bad), mask)
    jax.tree.map(np.testing.assert_array_equal, run(spoilt, weights.at[3].set(bad)), clean)
    assert clean[1]["slope"] != 0


def test_weights_of_another_length_are_refused():
    t = trajectory(jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(AssertionError):
        weighted_nll({"slope": 1.0, "log_std": jnp.zeros(1)}, t, KEY, log_prob_fn=log_prob_fn, step_weights=jnp.ones(2))
