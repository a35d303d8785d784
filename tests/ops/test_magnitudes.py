import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops.magnitudes import rms_normalised, sign_and_log


@pytest.mark.float64
def test_sign_and_log_by_hand():
    x = jnp.array([jnp.exp(-2.0), -jnp.exp(-2.0), 1.0, 0.0, 0.5 * jnp.exp(-4.0)])
    expected = [[-0.5, 1.0], [-0.5, -1.0], [0.0, 1.0], [-1.0, 0.0], [-1.0, 0.5]]
    np.testing.assert_allclose(sign_and_log(x, orders=4.0), expected, atol=1e-12)


@pytest.mark.float64
def test_sign_and_log_is_continuous_where_its_halves_meet():
    edge = jnp.exp(-4.0)
    below, above = (sign_and_log(jnp.array(edge * (1.0 + shift)), orders=4.0) for shift in (-1e-9, 1e-9))
    np.testing.assert_allclose(below, above, atol=1e-8)


def test_slopes_are_finite_at_zero():
    for fn in (sign_and_log, rms_normalised):
        gradient = jax.grad(lambda x, fn=fn: jnp.sum(fn(x)))(jnp.zeros(3))
        assert np.isfinite(gradient).all()
    assert (rms_normalised(jnp.zeros(3)) == 0).all()


def test_rms_is_one_whatever_the_scale():
    x = jnp.array([[3.0, -4.0], [0.0, 1.0]])
    for scale in (1e-3, 1.0, 1e3):
        np.testing.assert_allclose(jnp.mean(jnp.square(rms_normalised(scale * x))), 1.0, rtol=1e-5)


@pytest.mark.parametrize("fn", [sign_and_log, rms_normalised])
def test_integers_are_refused(fn):
    with pytest.raises(AssertionError):
        fn(jnp.arange(3))
