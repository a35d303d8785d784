import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid import dynamics
from jaxhybrid.dynamics import StepNoise
from jaxhybrid.errors import InputError

OBS, ACTION, KEY = jnp.array([0.5, -1.0]), jnp.array([0.3]), jax.random.key(0)


@functools.cache
def make(**options):
    return dynamics.make_ensemble(2, 1, num_members=3, hidden=(8,), **options)


@functools.cache
def state_of(ensemble):
    """An unfitted ensemble whose members normalise differently."""
    state = jax.jit(ensemble.init)(jax.random.key(1))
    scale = jnp.arange(1.0, 4.0)[:, None]
    normaliser = jax.tree.map(lambda x: x + scale, state.normaliser)
    return state._replace(normaliser=normaliser)


def test_members_differ_and_are_selected_by_number():
    ensemble = make()
    state = state_of(ensemble)
    means = [ensemble.predict(state, m, OBS, ACTION).mean for m in range(3)]
    assert not np.allclose(means[0], means[1])
    together = jax.vmap(ensemble.predict, in_axes=(None, 0, None, None))(state, jnp.arange(3), OBS, ACTION)
    np.testing.assert_allclose(together.mean, jnp.stack(means), rtol=1e-5)


def test_predictions_are_in_the_units_of_the_environment():
    ensemble = make()
    state = state_of(ensemble)
    unit = state.normaliser._replace(
        target_mean=jnp.zeros_like(state.normaliser.target_mean), target_std=jnp.ones_like(state.normaliser.target_std)
    )
    plain = ensemble.predict(state._replace(normaliser=unit), 1, OBS, ACTION)
    scaled = ensemble.predict(state, 1, OBS, ACTION)
    stats = jax.tree.map(lambda x: x[1], state.normaliser)
    np.testing.assert_allclose(scaled.mean, plain.mean * stats.target_std + stats.target_mean, rtol=1e-5)
    np.testing.assert_allclose(scaled.log_std, plain.log_std + jnp.log(stats.target_std), rtol=1e-5)


def test_released_noise_takes_the_variance_for_the_standard_deviation():
    state = state_of(make())
    correct = make().predict(state, 0, OBS, ACTION)
    released = make(noise_exp_log_variance=True).predict(state, 0, OBS, ACTION)
    scale = jnp.log(state.normaliser.target_std[0])
    np.testing.assert_allclose(released.log_std - scale, 2 * (correct.log_std - scale), rtol=1e-5)


def test_model_step_adds_a_draw_of_the_change():
    ensemble = make(predict_reward=True)
    state = state_of(ensemble)
    outcome = ensemble.predict(state, 2, OBS, ACTION).sample(KEY)
    noise = StepNoise(jnp.asarray(2), KEY)
    next_obs, reward, discount = dynamics.model_step(ensemble, state)(OBS, ACTION, noise)
    np.testing.assert_allclose(next_obs, OBS + outcome[:2], rtol=1e-6)
    assert reward == outcome[2]
    assert discount == 1


def test_known_rewards_and_ends_are_used():
    ensemble = make()
    step = dynamics.model_step(
        ensemble,
        state_of(ensemble),
        reward_fn=lambda obs, action, next_obs: next_obs[0] + 10 * action[0],
        terminated_fn=lambda obs, action, next_obs: obs[0] > 0,
        obs_limit=0.01,
    )
    noise = StepNoise(jnp.asarray(0), KEY)
    next_obs, reward, discount = step(OBS, ACTION, noise)
    assert (jnp.abs(next_obs) == 0.01).all()
    assert reward == pytest.approx(float(next_obs[0]) + 3.0)
    assert discount == 0
    assert step(-OBS, ACTION, noise)[2] == 1


def test_gradient_flows_through_a_model_step():
    ensemble = make(predict_reward=True)
    step = dynamics.model_step(ensemble, state_of(ensemble))
    grads = jax.grad(lambda o, a: step(o, a, StepNoise(jnp.asarray(1), KEY))[1], argnums=(0, 1))(OBS, ACTION)
    assert all(jnp.isfinite(g).all() and jnp.any(g != 0) for g in grads)


def test_ts1_deals_every_member_to_one_group_at_every_step():
    schedules = jax.jit(jax.vmap(lambda k: dynamics.member_schedule(k, 4, 5, "ts1")))(jax.random.split(KEY, 3000))
    assert schedules.shape == (3000, 4, 5)
    np.testing.assert_array_equal(jnp.sort(schedules, axis=1), np.arange(4)[None, :, None] + np.zeros((3000, 1, 5)))
    for group, step in ((0, 0), (3, 4)):
        assert scipy.stats.chisquare(np.bincount(schedules[:, group, step], minlength=4)).pvalue > 1e-6
    # A group's members at two steps are independent.
    pairs = np.bincount(4 * schedules[:, 1, 0] + schedules[:, 1, 1], minlength=16)
    assert scipy.stats.chisquare(pairs).pvalue > 1e-6


def test_ts_infinity_keeps_each_group_with_its_member():
    schedule = dynamics.member_schedule(KEY, 4, 5, "tsinf")
    np.testing.assert_array_equal(schedule, np.repeat(np.arange(4)[:, None], 5, axis=1))


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"trajectory_sampling='ts2'.*'ts1'"):
        dynamics.member_schedule(KEY, 4, 5, "ts2")
    with pytest.raises(InputError, match=r"early_stopping='patient'.*'patience'"):
        make(early_stopping="patient")
    with pytest.raises(InputError, match="activation"):
        make(activation="swoosh")
