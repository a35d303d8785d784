import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import check_monte_carlo_mean, finite_difference

TRUTH = {"a": np.array([1.0, -2.0]), "b": np.array(0.5)}


def draws(count, bias=0.0):
    rng = np.random.default_rng(0)
    return {k: v * (1 + bias) + 0.3 * rng.standard_normal((count, *v.shape)) for k, v in TRUTH.items()}


def test_unbiased_draws_pass():
    check_monte_carlo_mean(draws(2000), TRUTH)
    check_monte_carlo_mean({k: np.repeat(v[None], 3, 0) for k, v in TRUTH.items()}, TRUTH)


@pytest.mark.parametrize(
    ("count", "bias", "message"), [(2000, 0.05, "bias"), (10, 0.0, "too few"), (2000, np.nan, "not finite")]
)
def test_bias_noise_and_nan_fail(count, bias, message):
    with pytest.raises(AssertionError) as caught:
        check_monte_carlo_mean(draws(count, bias), TRUTH)
    # A planted bias that is lost in the noise must not pass for one that is noticed.
    assert [text for text in ("bias", "too few", "not finite") if text in str(caught.value)] == [message]


@pytest.mark.float64
def test_finite_difference_of_a_cubic_is_exact():
    x = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    np.testing.assert_allclose(finite_difference(lambda x: jnp.sum(x**3), x), 3 * x**2, rtol=1e-9)
    assert jax.config.jax_enable_x64


def test_float64_is_confined_to_its_marker():
    assert not jax.config.jax_enable_x64
    assert jnp.ones(1).dtype == jnp.float32
