"""How much of a gradient is signal, in every system that says so: the number is right and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import catcher, city, city_trials, pendulum
from jaxhybrid.errors import InputError
from jaxhybrid.systems import dream, gamps, gmas, mscv

KEY = jax.random.key(3)
CITY = city_trials.environment(city.make("map"))


def built(system, **changes):
    module, env, preset = {
        "dream": (dream, CITY, {"gradient": "augment"}),
        "gamps": (gamps, None, {}),
        "gmas": (gmas, catcher.make(), {}),
        "mscv": (mscv, pendulum.make(max_episode_steps=20), {}),
    }[system]
    config = dataclasses.replace(module.presets["smoke"], **preset | changes)
    return config, module.make(config, gamps.environment(config) if env is None else env)


NAMES = {
    "dream": {"exploration/snr", "execution/snr", "dynamics/snr"},
    "gamps": {"policy/snr"},
    "gmas": {"critic/snr"},
    "mscv": {"policy/snr"},
}


@pytest.mark.parametrize("system", NAMES)
def test_a_diagnosis_adds_its_numbers_and_no_state(system):
    # Traced and not compiled.
    (_, plain), (_, diagnosed) = built(system), built(system, diagnose_parts=2)
    state = jax.eval_shape(plain.init, KEY)
    after, metrics = jax.eval_shape(plain.step, state, None)
    again, more = jax.eval_shape(diagnosed.step, state, None)
    assert again == after and more.keys() - metrics.keys() == NAMES[system]
    assert all(more[name].shape == () for name in NAMES[system])


def test_the_number_is_that_of_the_parts_of_the_data_set():
    config, system = built("gamps", diagnose_parts=4, gradient="per_decision")
    _, plain = built("gamps", gradient="per_decision")
    state = jax.jit(system.init)(KEY)
    after, metrics = jax.jit(system.step)(state, None)
    same, _ = jax.jit(plain.step)(state, None)
    jax.tree.map(np.testing.assert_array_equal, after.policy_params, same.policy_params)
    task = gamps.make_task(config, gamps.environment(config))
    parts = jax.tree.map(lambda x: x.reshape((4, -1) + x.shape[1:]), state.dataset)
    gradients = jnp.stack(
        [
            gamps.policy_gradient(config, task, state.policy_params, state.model_params, each, KEY).ravel()
            for each in (jax.tree.map(lambda x, i=i: x[i], parts) for i in range(4))
        ]
    )
    # 4 |mean|^2 / sum of variances - 1.
    wanted = 4 * jnp.sum(jnp.mean(gradients, 0) ** 2) / jnp.sum(jnp.var(gradients, 0, ddof=1)) - 1
    np.testing.assert_allclose(metrics["policy/snr"], wanted, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["dream", "gmas", "mscv"])
def test_a_diagnosis_changes_nothing_else(system):
    (_, plain), (_, diagnosed) = built(system), built(system, diagnose_parts=2)
    state = jax.jit(plain.init)(KEY)
    ends = []
    for step in (jax.jit(plain.step), jax.jit(diagnosed.step)):
        end = state
        for _ in range(2):
            end, metrics = step(end, None)
        ends.append(end)
    jax.tree.map(
        lambda a, b: None if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.testing.assert_array_equal(a, b),
        *ends,
    )
    assert all(np.isfinite(metrics[name]) for name in NAMES[system])


@pytest.mark.parametrize("system", NAMES)
@pytest.mark.parametrize("parts", [1, -1, 7])
def test_parts_that_a_batch_has_not_are_refused(system, parts):
    with pytest.raises(InputError, match=f"diagnose_parts={parts}"):
        built(system, diagnose_parts=parts)


def test_an_exact_gradient_has_no_noise():
    with pytest.raises(InputError, match="has no noise"):
        built("gamps", diagnose_parts=2, gradient="exact")
