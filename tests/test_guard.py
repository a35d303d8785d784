from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxhybrid.guard import Guard, apply_if_finite

ADAM = optax.adam(0.1)
PARAMS = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(0.5)}
GOOD = {"w": jnp.array([0.3, -0.1]), "b": jnp.array(1.0)}


@pytest.fixture(scope="module", params=[False, True], ids=["any", "bounded"])
def apply(request):
    return jax.jit(partial(apply_if_finite, ADAM, bounded=request.param))


def test_finite_updates_are_those_of_the_optimiser(apply):
    opt = ADAM.init(PARAMS)
    params, new_opt, guard = apply(GOOD, opt, PARAMS, Guard.new())
    updates, expected_opt = ADAM.update(GOOD, opt, PARAMS)
    expected = optax.apply_updates(PARAMS, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (params, new_opt), (expected, expected_opt))
    assert guard == (0, 0)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_refused_updates_change_nothing_and_are_counted_for_ever(apply, bad):
    params, opt, guard = apply(GOOD, ADAM.init(PARAMS), PARAMS, Guard.new())
    before = (params, opt)
    for i in range(1, 8):
        params, opt, guard = apply({"w": GOOD["w"].at[1].set(bad), "b": GOOD["b"]}, opt, params, guard)
        assert guard == (i, i)
    jax.tree.map(np.testing.assert_array_equal, (params, opt), before)
    params, opt, guard = apply(GOOD, opt, params, guard)
    assert guard == (7, 0)
    assert params["b"] != before[0]["b"]


@pytest.mark.parametrize(("size", "refused"), [(1e18, 0), (1e30, 1)])
def test_clipped_steps_of_adam_are_bounded(size, refused):
    clipped = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-4))
    grads = jax.tree.map(lambda x: size * x, GOOD)
    params, opt, guard = apply_if_finite(clipped, grads, clipped.init(PARAMS), PARAMS, Guard.new(), bounded=True)
    assert guard == (refused, refused)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, opt)))
    assert (params["b"] != PARAMS["b"]) == (not refused)


def test_an_overflowing_parameter_is_refused_too():
    sgd = optax.sgd(1e30)
    params, _, guard = apply_if_finite(
        sgd, {"w": jnp.array(1e30)}, sgd.init(PARAMS), {"w": jnp.array(1.0)}, Guard.new()
    )
    assert params["w"] == 1.0
    assert guard == (1, 1)
