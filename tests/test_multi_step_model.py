import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import multi_step_model
from jaxhybrid.errors import InputError
from jaxhybrid.guard import Guard
from jaxhybrid.types import Transition

KEY = jax.random.key(0)
K = 2


def motion(obs, action):
    """A pendulum of sorts, and a third coordinate that never moves."""
    return obs + 0.1 * jnp.stack([obs[1], action[0] - jnp.sin(obs[0]), 0.0 * obs[2]])


def reward_of(obs, next_obs):
    # What only the change tells, as a forward velocity does.
    return 10.0 * (next_obs[0] - obs[0]) + 0.5


def windows(key, count=64):
    obs_key, action_key = jax.random.split(key)
    obs = jax.random.normal(obs_key, (count, 3)).at[:, 2].set(4.0)
    actions = jax.random.normal(action_key, (count, K, 1))

    def one(start, action):
        def advance(s, a):
            after = motion(s, a)
            return after, Transition(s, a, reward_of(s, after), jnp.ones(()), after)

        return jax.lax.scan(advance, start, action)[1]

    return jax.vmap(one)(obs, actions), jnp.ones((count, K))


def rows(steps):
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), steps)


MODEL = multi_step_model.make(3, 1, hidden=(32,), learning_rate=5e-3)


scales_of = jax.jit(multi_step_model.scales_of)
draw = jax.jit(windows, static_argnums=1)


@jax.jit
def fit(state, key):
    return MODEL.fit(state, windows, Guard.new(), key, num_updates=300)


@functools.cache
def fitted():
    flat = rows(draw(jax.random.key(1), 500)[0])
    return fit(MODEL.init(KEY)._replace(scales=scales_of(flat, jnp.ones(flat.reward.shape))), jax.random.key(2))


def test_a_fit_predicts_states_and_rewards_it_has_not_seen():
    state, guard, metrics = fitted()
    steps = rows(draw(jax.random.key(9), 500)[0])
    predict = jax.jit(jax.vmap(partial(MODEL.predict, state.params, state.scales)))
    obs, reward = predict(steps.obs, steps.action)
    residual = np.std(obs - steps.next_obs, axis=0) / np.maximum(np.std(steps.next_obs - steps.obs, axis=0), 1e-3)
    assert residual.max() < 0.15
    assert np.std(reward - steps.reward) < 0.15 * np.std(steps.reward)
    assert guard.refused == 0
    assert 0 < metrics["obs_error"] < 0.1 and 0 < metrics["reward_error"] < 0.1


def test_scales_count_what_has_weight():
    steps = jax.tree.map(np.array, rows(draw(jax.random.key(3), 500)[0]))
    kept = jax.tree.map(lambda x: x[:600].copy(), steps)
    for leaf in steps:
        leaf[600:] = 1e3
    found = scales_of(steps, (np.arange(1000) < 600).astype(np.float32))
    inputs, change = np.concatenate([kept.obs, kept.action], axis=1), kept.next_obs - kept.obs
    np.testing.assert_allclose(found.input_mean, inputs.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.change_std[:2], change[:, :2].std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.reward_std, kept.reward.std(), rtol=1e-4)
    # A coordinate that never moved: no division by nothing.
    assert found.input_std[2] > 0 and found.change_std[2] > 0


def test_a_bound_model_steps():
    state, _, _ = fitted()
    obs, action = jnp.array([0.3, -0.2, 4.0]), jnp.array([0.5])
    predicted, reward = MODEL.predict(state.params, state.scales, obs, action)
    next_obs, learnt, discount = MODEL.step_fn(state)(obs, action, None)
    np.testing.assert_allclose(next_obs, predicted, rtol=1e-6)
    assert (learnt, discount) == (reward, 1.0)
    step = MODEL.step_fn(state, reward_fn=lambda s, a, after: a[0], terminated_fn=lambda s, a, after: after[0] < 1e9)
    assert step(obs, action, None)[1:] == (0.5, 0.0)
    # Far out a path may run away; it stays within some deviations of the data.
    wild = MODEL.step_fn(state, limit=2.0)(jnp.array([1e4, 1e4, 4.0]), action, None)[0]
    mean, std = state.scales.input_mean[:3], state.scales.input_std[:3]
    assert jnp.all(jnp.abs(wild - mean) <= 2.001 * std)


def test_an_update_that_is_not_finite_is_refused_and_counted():
    state = fitted()[0]
    after, guard, _ = fit(state._replace(scales=state.scales._replace(reward_std=jnp.zeros(()))), KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert (guard.refused, guard.streak) == (300, 300)


def test_an_unknown_activation_is_refused():
    with pytest.raises(InputError, match="activation='rellu' is unknown: did you mean 'relu'"):
        multi_step_model.make(3, 1, activation="rellu")
