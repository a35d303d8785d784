import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from tests.oracles import check_monte_carlo_mean

MEAN, LOG_STD = np.array([0.3, -1.2]), np.array([-0.5, 0.4])
OTHER = np.array([0.1, -0.9]), np.array([0.2, -0.3])


def records(make=Gaussian):
    return make(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), make(*map(jnp.asarray, OTHER))


@pytest.mark.float64
def test_gaussian_against_scipy():
    record, _ = records()
    action = jnp.array([0.7, 0.1])
    frozen = scipy.stats.norm(MEAN, np.exp(LOG_STD))
    assert record.log_prob(action) == pytest.approx(frozen.logpdf(action).sum(), rel=1e-12)
    assert record.entropy() == pytest.approx(frozen.entropy().sum(), rel=1e-12)
    np.testing.assert_array_equal(record.mode(), MEAN)


@pytest.mark.float64
def test_kl_is_the_integral_that_defines_it():
    p, q = records()
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    # log p - log q is a quadratic: the quadrature is exact, one dimension at a time.
    expected = 0.0
    for d in range(2):
        u = MEAN[d] + np.exp(LOG_STD[d]) * nodes
        ratio = scipy.stats.norm.logpdf(u, MEAN[d], np.exp(LOG_STD[d])) - scipy.stats.norm.logpdf(
            u, OTHER[0][d], np.exp(OTHER[1][d])
        )
        expected += weights @ ratio / weights.sum()
    assert p.kl(q) == pytest.approx(expected, rel=1e-10)
    assert p.kl(p) == pytest.approx(0.0, abs=1e-12)
    squashed = records(TanhGaussian)
    assert squashed[0].kl(squashed[1]) == pytest.approx(expected, rel=1e-10)


@pytest.mark.float64
def test_tanh_log_prob_against_the_derivative_of_the_distribution_function():
    record, _ = records(TanhGaussian)
    action, h = np.array([0.55, -0.8]), 1e-5

    def cdf(a):
        return scipy.stats.norm.cdf(np.arctanh(a), MEAN, np.exp(LOG_STD))

    density = (8 * (cdf(action + h) - cdf(action - h)) - (cdf(action + 2 * h) - cdf(action - 2 * h))) / (12 * h)
    assert record.log_prob(jnp.asarray(action)) == pytest.approx(np.log(density).sum(), rel=1e-9)


@pytest.mark.float64
def test_tanh_density_integrates_to_one():
    record = TanhGaussian(jnp.array([0.3]), jnp.array([-0.5]))
    grid = jnp.linspace(-1 + 1e-6, 1 - 1e-6, 20001)
    density = jnp.exp(jax.vmap(lambda a: record.log_prob(a[None]))(grid))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)


@given(mean=st.floats(-3, 3), log_std=st.floats(-4, 1), noise=st.floats(-3, 3))
def test_log_prob_of_noise_is_exact_in_float32_also_where_tanh_saturates(mean, log_std, noise):
    record = TanhGaussian(jnp.array([mean], jnp.float32), jnp.array([log_std], jnp.float32))
    std = np.exp(np.float64(np.float32(log_std)))
    noise32 = np.float32(noise)
    u = np.float64(np.float32(mean)) + std * np.float64(noise32)
    # log(1 - tanh^2) = -2 log cosh, in the form that does not overflow.
    slope = -2 * (np.abs(u) + np.log1p(np.exp(-2 * np.abs(u))) - np.log(2))
    expected = scipy.stats.norm.logpdf(noise32) - np.log(std) - slope
    assert record.log_prob_of_noise(jnp.array([noise32])) == pytest.approx(expected, rel=1e-5, abs=2e-5)


def test_saturated_sample_has_a_finite_exact_log_prob_and_gradient():
    mean = jnp.array([30.0])

    def log_prob(m):
        return TanhGaussian(m, jnp.zeros(1)).sample_and_log_prob(jax.random.key(0))[1]

    action, got = TanhGaussian(mean, jnp.zeros(1)).sample_and_log_prob(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(0), (1,))
    assert action == 1.0
    # log(1 - tanh(u)^2) = 2 log 2 - 2 u up to exp(-2 u) at u = 30.
    expected = scipy.stats.norm.logpdf(noise[0]) - (2 * np.log(2) - 2 * (30.0 + noise[0]))
    assert got == pytest.approx(float(expected), rel=1e-6)
    assert jax.grad(log_prob)(mean)[0] == pytest.approx(2.0)
    assert np.isfinite(TanhGaussian(mean, jnp.zeros(1)).log_prob(action))


@pytest.mark.parametrize("make", [Gaussian, TanhGaussian])
@pytest.mark.float64
def test_sampling_conventions(make):
    record, _ = records(make)
    key = jax.random.key(3)
    action, log_prob = record.sample_and_log_prob(key)
    np.testing.assert_array_equal(action, record.sample(key))
    assert log_prob == pytest.approx(float(record.log_prob(action)), rel=1e-9)
    noise = record.infer_noise(action)
    np.testing.assert_allclose(noise, jax.random.normal(key, (2,)), rtol=1e-9)
    np.testing.assert_allclose(record.reparameterise(noise), action, rtol=1e-12)


def test_noise_of_a_corner_is_finite():
    record = TanhGaussian(jnp.zeros(2), jnp.zeros(2))
    noise = record.infer_noise(jnp.array([1.0, -1.0]))
    # atanh(1 - 2^-24) = log(2^25 - 1) / 2 = 8.66
    np.testing.assert_allclose(noise, [8.664, -8.664], rtol=1e-3)


@pytest.mark.parametrize("make", [Gaussian, TanhGaussian])
@pytest.mark.float64
def test_entropy_by_monte_carlo(make):
    record, _ = records(make)
    _, log_prob = jax.vmap(record.sample_and_log_prob)(jax.random.split(jax.random.key(0), 100_000))
    check_monte_carlo_mean(-log_prob, record.entropy(), visible_bias=0.1)


@pytest.mark.float64
@pytest.mark.parametrize("log_std", [-5.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 0.8, 30.0])
def test_tanh_entropy_against_integration(mean, log_std):
    normal = scipy.stats.norm(mean, np.exp(log_std))
    u = mean + np.exp(log_std) * np.linspace(-10, 10, 200_001)
    slope = 2 * (np.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))
    expected = normal.entropy() + np.trapezoid(normal.pdf(u) * slope, u)
    entropy = TanhGaussian(jnp.array([mean]), jnp.array([log_std])).entropy()
    assert entropy == pytest.approx(expected, abs=1e-6)
