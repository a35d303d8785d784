"""Every system: a state that went through a checkpoint goes on to the bit, alone and side by side with another seed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import catcher, city, city_trials
from jaxhybrid.runtime import checkpoint
from jaxhybrid.systems import dream, gamps, gmas, mscv
from tests.systems import cases


def make_maac():
    return cases.build("smoke/sac")[1]


def make_gamps():
    config = gamps.presets["smoke"]
    return gamps.make(config, gamps.environment(config))


def make_gmas():
    env = catcher.make()
    return gmas.make(gmas.presets["smoke"], env, test_env=env)


def make_mscv():
    return mscv.make(mscv.presets["smoke"], envs.make("lqr/double_integrator"))


def make_dream():
    return dream.make(dream.presets["smoke"], city_trials.environment(city.make("distraction")))


@functools.cache
def states(make, seeds):
    """The states before and after each of two steps, and the compiled step."""
    system = make()
    init, step = (jax.vmap(system.init), jax.vmap(system.step, in_axes=(0, None))) if seeds > 1 else system[:2]
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds)) if seeds > 1 else jax.random.key(0)
    step = jax.jit(step)
    found = [jax.jit(init)(keys)]
    for _ in range(2):
        found.append(step(found[-1], None)[0])
    return found, step


def bits(tree):
    def raw(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


# MAAC with one seed is resumed, run and all, in tests/runtime/test_resume.py.
SLOW = [
    pytest.param(*each, marks=pytest.mark.slow)
    for each in ((make_maac, 1), (make_gmas, 1), (make_mscv, 2), (make_dream, 2))
]


@pytest.mark.parametrize(("make", "seeds"), [(make_gamps, 1), (make_gamps, 2), (make_mscv, 1), *SLOW])
def test_a_state_from_a_checkpoint_goes_on_to_the_bit(tmp_path, make, seeds):
    (_, before, after), step = states(make, seeds)
    checkpoint.save(tmp_path, 1, before, {})
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), before)
    restored = checkpoint.restore(tmp_path, template, pytest.fail)
    assert bits(restored.tree) == bits(before)
    assert bits(step(restored.tree, None)[0]) == bits(after) != bits(before)
