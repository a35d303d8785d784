from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.losses.multi_step import Window, multi_step_loss
from jaxhybrid.types import Transition
from tests.oracles import finite_difference

pytestmark = pytest.mark.float64

KEY = jax.random.key(0)
K = 3
A = np.array([[0.9, 0.2], [-0.1, 0.8]])
B = np.array([[0.5], [1.0]])
# NumPy keeps the digits until a test asks for them.
ACTION = np.array([[0.3], [-0.7], [0.2]])
SCALE = np.array([0.5, 2.0])


def window(noise=0.0):
    """Three steps of ``s' = A s + B a + noise`` with the reward ``s'_0 - a^2``."""
    obs = [np.array([1.0, -2.0])]
    for action in ACTION:
        obs.append(A @ obs[-1] + B @ action + noise)
    reward = np.array([s[0] - a[0] ** 2 for s, a in zip(obs[1:], ACTION)])
    return Transition(np.stack(obs[:-1]), ACTION, reward, np.ones(K), np.stack(obs[1:]))


def predict_fn(params, obs, action):
    next_obs = params @ obs + B @ action
    return next_obs, next_obs[0] - action[0] ** 2


loss = partial(multi_step_loss, predict_fn=predict_fn, change_scale=SCALE, reward_scale=0.7)


def test_the_true_model_has_no_error():
    value, aux = loss(jnp.array(A), (window(), jnp.ones(K)), KEY)
    assert value < 1e-24
    assert max(aux.values()) < 1e-24


def test_errors_accumulate_along_the_model():
    # The model lacks a constant c per step: it is behind by c, then c + A c, then c + A c + A^2 c.
    c = np.array([0.1, -0.3])
    behind = np.stack([c, c + A @ c, c + A @ c + A @ A @ c])
    obs_error = np.sum((behind / SCALE) ** 2, axis=1)
    # The reward is that of the predicted state.
    reward_error = (behind[:, 0] / 0.7) ** 2
    for mask in ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        value, aux = loss(jnp.array(A), (window(c), jnp.array(mask)), KEY, reward_weight=10.0)
        np.testing.assert_allclose(aux["obs_error"], mask @ obs_error, rtol=1e-12)
        np.testing.assert_allclose(aux["reward_error"], mask @ reward_error, rtol=1e-12)
        np.testing.assert_allclose(value, aux["obs_error"] + 10.0 * aux["reward_error"], rtol=1e-12)


def test_a_weight_counts_its_own_steps_error():
    c = np.array([0.1, -0.3])
    behind = np.stack([c, c + A @ c, c + A @ c + A @ A @ c])
    each = np.sum((behind / SCALE) ** 2, axis=1) + 10.0 * (behind[:, 0] / 0.7) ** 2
    mask, weight = np.array([1.0, 1.0, 0.0]), np.array([0.5, 3.0, 7.0])

    def value(*counts):
        return loss(jnp.array(A), Window(window(c), jnp.array(mask), *counts), KEY, reward_weight=10.0)[0]

    np.testing.assert_allclose(value(jnp.array(weight)), 0.5 * each[0] + 3.0 * each[1], rtol=1e-12)
    # A weight of the wrong step would show.
    assert abs(value(jnp.array(np.roll(weight, 1))) / value(jnp.array(weight)) - 1.0) > 0.2
    assert value(jnp.ones(K)) == value()
    with pytest.raises(AssertionError, match="shape"):
        value(jnp.ones(K + 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_was_recorded_past_the_end_does_not_count(bad):
    def bent(params, obs, action):
        next_obs = jnp.sin(params @ obs + B @ action)
        return next_obs, next_obs[0] * action[0]

    loss = partial(multi_step_loss, predict_fn=bent)
    steps, mask = window(0.2), jnp.array([1.0, 1.0, 0.0])
    garbage = jax.tree.map(lambda x: jnp.asarray(x).at[2].set(bad), steps)
    wanted = jax.grad(loss, has_aux=True)(jnp.array(A), (steps, mask), KEY)
    found = jax.grad(loss, has_aux=True)(jnp.array(A), (garbage, mask), KEY)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    weighted = jax.grad(loss, has_aux=True)(jnp.array(A), (garbage, mask, jnp.array([1.0, 1.0, jnp.nan])), KEY)
    jax.tree.map(np.testing.assert_array_equal, weighted, wanted)


def test_the_slope_goes_through_every_prediction():
    example = (window(0.2), jnp.ones(K))
    slope = jax.grad(loss, has_aux=True)(jnp.array(A), example, KEY)[0]
    np.testing.assert_allclose(slope, finite_difference(lambda p: loss(p, example, KEY)[0], jnp.array(A)), rtol=1e-8)
