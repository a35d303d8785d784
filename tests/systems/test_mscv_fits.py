"""Gradient-aware weights of the model's fit: their closed form for a linear policy, and that they meet their steps."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.ops import moments
from jaxhybrid.systems import mscv, mscv_fits, mscv_updates
from jaxhybrid.types import Transition

ENV = envs.make("lqr/double_integrator")
# A linear policy, whose score has a closed form; one gradient step, whose error is that of the model it began with.
CONFIG = dataclasses.replace(
    mscv.presets["smoke"],
    model_weights="own_score",
    model_max_ratio=1.5,
    hidden=(),
    model_updates=1,
    model_batch_size=200_000,
)
KEY = jax.random.key(0)
T, N = CONFIG.num_steps, CONFIG.num_envs


@functools.cache
def parts(**changes):
    return mscv_updates.make_parts(dataclasses.replace(CONFIG, **changes), ENV.spec)


@functools.cache
def remembered():
    """A learner and its memory: one batch of an earlier policy without filter, and room for another one."""
    obs_key, action_key, next_key, old_key, new_key = jax.random.split(KEY, 5)
    obs = 1.0 + 2.0 * jax.random.normal(obs_key, (T, N, 2))
    action = jax.random.normal(action_key, (T, N, 1))
    batch = Transition(obs, action, obs[..., 0], jnp.ones((T, N)), obs + jax.random.normal(next_key, obs.shape))
    old, new = (mscv_updates.init_learner(parts(), key) for key in (old_key, new_key))
    record, _ = mscv_updates.record_of(parts(), old, batch, jnp.zeros(N, jnp.int32))
    memory = parts().memory.init(jax.tree.map(jnp.zeros_like, record))
    memory = parts().memory.add(memory, jax.tree.map(lambda x: x[None], record))
    params = new.policy_params | {"log_std": jnp.array([-0.3])}
    return new._replace(policy_params=params, seen=moments.of_batch(obs.reshape(-1, 2))), memory, record


def by_hand(max_ratio, *, ratio=True, filtered=True, mean_one=True):
    """``min(rho, c) |(e x / sigma, e / sigma, e^2 - 1)|`` of mean ``W x + b``, with ``x`` the filtered observation.

    Without one of its parts: what a mistake would give.
    """
    learner, _, record = remembered()
    obs, action = (np.asarray(x, np.float64).reshape(T * N, -1) for x in record.steps[:2])
    weights = jax.tree.leaves(learner.policy_params["mean"])
    bias, kernel = sorted((np.asarray(w, np.float64) for w in weights), key=np.size)
    std = np.exp(np.asarray(learner.policy_params["log_std"], np.float64))[0]
    x = np.clip((obs - obs.mean(axis=0)) / obs.std(axis=0, ddof=1), -5.0, 5.0) if filtered else obs
    e = ((action - x @ kernel - bias) / std)[:, 0]
    norm = np.sqrt((np.sum(x**2, axis=1) + 1.0) * (e / std) ** 2 + (e**2 - 1.0) ** 2)
    log_prob = -0.5 * e**2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    rho = np.exp(log_prob - np.asarray(record.log_prob).reshape(-1))
    weight = norm * np.minimum(rho, max_ratio) if ratio else norm
    return (weight / weight.mean() if mean_one else weight).reshape(T, N)


@functools.cache
def found(max_ratio):
    learner, memory, _ = remembered()
    return jax.jit(partial(mscv_fits.step_weights, parts(model_max_ratio=max_ratio)))(learner, memory)


@pytest.mark.parametrize("bound", [1.5, 10.0])
def test_a_step_weighs_its_score_times_its_truncated_ratio(bound):
    weight = found(bound)
    np.testing.assert_allclose(weight[0], by_hand(bound), rtol=1e-3)
    # Where no batch is yet, nothing counts, and the mean is over what there is.
    np.testing.assert_array_equal(weight[1], np.zeros((T, N)))
    for mistake in ({"ratio": False}, {"filtered": False}, {"mean_one": False}):
        assert np.abs(weight[0] - by_hand(bound, **mistake)).max() > 0.1
    assert np.abs(by_hand(1.5) - by_hand(10.0)).max() > 0.1


def test_a_window_carries_the_weights_of_its_own_steps():
    _, memory, record = remembered()
    # The reward of every step as its weight: whatever is drawn must show the same twice.
    weight = jnp.stack([record.steps.reward, jnp.zeros((T, N))])
    drawn, mask, counts = mscv_fits.windows(parts(), memory, KEY, count=300, length=3, weight=weight)
    np.testing.assert_array_equal(counts, drawn.steps.reward)
    plain, plain_mask, nothing = mscv_fits.windows(parts(), memory, KEY, count=300, length=3)
    jax.tree.map(np.testing.assert_array_equal, (plain, plain_mask), (drawn, mask))
    assert nothing is None


def error_of_every_window(weight, model):
    """Weighted errors of the observation of all windows of two steps ``[T, N]``, with the model unrolled by hand."""
    _, _, record = remembered()
    steps = record.steps
    predict = jax.vmap(jax.vmap(lambda s, a: parts().model.predict(model.params, model.scales, s, a)[0]))

    def square(predicted, wanted):
        return np.sum(np.square(np.asarray(predicted - wanted) / np.asarray(model.scales.change_std)), axis=-1)

    first = predict(steps.obs, steps.action)
    second = predict(first[:-1], steps.action[1:])
    total = weight * square(first, steps.next_obs)
    total[:-1] += (1 - np.asarray(record.ended[:-1])) * weight[1:] * square(second, steps.next_obs[1:])
    return total


def test_the_model_is_fitted_by_the_weighted_error_and_a_wrong_weight_shows():
    learner, memory, _ = remembered()
    fitted, metrics = jax.jit(partial(mscv_fits.fit_model, parts()))(learner, memory, KEY)
    start = learner.model._replace(scales=fitted.model.scales)
    weight = by_hand(CONFIG.model_max_ratio)

    def away(planted):
        each = error_of_every_window(planted, start)
        error = each.std() / np.sqrt(CONFIG.model_batch_size)
        assert error < 0.01 * each.mean()
        return abs(metrics["model/obs_error"] - each.mean()) / error

    assert away(weight) < 5
    # All alike; the weight of the step before; a ratio that was forgotten.
    shifted, without_ratio = np.roll(weight, 1, axis=0), by_hand(CONFIG.model_max_ratio, ratio=False)
    assert min(away(planted) for planted in (np.ones((T, N)), shifted, without_ratio)) > 10


def test_uniform_weighs_nothing_and_own_score_keeps_the_structure_of_the_state():
    learner, memory, _ = remembered()
    assert mscv.Config().model_weights == "uniform"
    assert mscv_fits.step_weights(parts(model_weights="uniform"), learner, memory) is None
    system = mscv.make(dataclasses.replace(CONFIG, model_batch_size=8), ENV)
    state = jax.eval_shape(system.init, KEY)
    after, _ = jax.eval_shape(lambda s: system.step(s, None), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
