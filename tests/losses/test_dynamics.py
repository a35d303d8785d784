import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid.losses.dynamics import gaussian_nll, soft_clip


@pytest.mark.float64
def test_gaussian_nll_against_scipy():
    mean, log_variance, target = np.array([0.3, -2.0, 1.0]), np.array([-1.0, 0.5, 2.0]), np.array([0.1, -1.0, 5.0])
    logpdf = scipy.stats.norm.logpdf(target, mean, np.exp(0.5 * log_variance))
    # Twice the negative log-density, less log(2 pi), averaged over dimensions.
    expected = np.mean(-2 * logpdf - np.log(2 * np.pi))
    assert gaussian_nll(*map(jnp.asarray, (mean, log_variance, target))) == pytest.approx(expected, rel=1e-12)


def test_gaussian_nll_is_least_at_the_truth():
    target = jnp.array([1.0, -1.0])
    grads = jax.grad(gaussian_nll, argnums=(0, 1))(target + 0.5, jnp.full(2, 2 * jnp.log(0.5)), target)
    assert (grads[0] > 0).all()
    # d/dv [e^2 exp(-v) + v] = 0 where the variance is the squared error.
    np.testing.assert_allclose(grads[1], 0.0, atol=1e-6)


@pytest.mark.parametrize("bad", [jnp.zeros((2, 2)), jnp.zeros(3), jnp.zeros(2, int)])
def test_bad_targets_are_refused(bad):
    with pytest.raises(AssertionError):
        gaussian_nll(jnp.zeros(2), jnp.zeros(2), bad)


def test_soft_clip_is_a_smooth_clip():
    low, high = jnp.array(-10.0), jnp.array(0.5)
    x = jnp.linspace(-40, 40, 81)
    clipped = jax.vmap(lambda v: soft_clip(v, low, high))(x)
    assert (jnp.diff(clipped) >= 0).all()
    assert clipped[0] == pytest.approx(-10.0)
    assert clipped[-1] == pytest.approx(0.5, abs=1e-4)
    assert soft_clip(jnp.array(-5.0), low, high) == pytest.approx(-5.0, abs=0.02)
    slope = jax.vmap(jax.grad(lambda v: soft_clip(v, low, high)))(x[30:51])
    assert ((slope > 0) & (slope < 1)).all()
