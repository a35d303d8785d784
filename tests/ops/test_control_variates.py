import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.ops.control_variates import choose_horizon, optimal_coefficient

pytestmark = pytest.mark.float64

RNG = np.random.default_rng(0)
CONTROL = RNG.normal(1.0, 2.0, (50, 3))
TARGET = 0.7 * CONTROL + RNG.normal(size=(50, 3))


def test_the_coefficient_is_that_of_a_regression():
    assert optimal_coefficient(3.0 + 0.7 * CONTROL[:, 0], CONTROL[:, 0]) == pytest.approx(0.7, rel=1e-12)
    slope = np.polyfit(CONTROL[:, 0], TARGET[:, 0], 1)[0]
    assert optimal_coefficient(TARGET[:, 0], CONTROL[:, 0]) == pytest.approx(slope, rel=1e-10)


def test_of_a_tensor_no_other_coefficient_has_less_variance():
    def variance(c):
        return np.sum(np.var(TARGET - c * CONTROL, axis=0))

    best = float(optimal_coefficient(TARGET, CONTROL))
    assert all(variance(best) < variance(best + d) for d in (-1e-3, 1e-3))


def test_a_constant_control_variate_gets_no_weight():
    assert optimal_coefficient(TARGET, np.ones_like(CONTROL)) == 0


ADVANTAGE = RNG.normal(size=400)


def embedded(*correlations):
    """One row per wanted correlation, exact in this sample."""
    noise = RNG.normal(size=400)
    x = ADVANTAGE - ADVANTAGE.mean()
    noise -= noise.mean() + x * (noise @ x) / (x @ x)
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    return np.stack([5.0 + r * unit(x) + np.sqrt(1 - r * r) * unit(noise) for r in correlations])


@pytest.mark.parametrize(
    ("rule", "correlations", "horizon"),
    [
        ("cov", (0.9, 0.2, -0.3), 2),
        ("cov", (-0.1, -0.2, 0.1), 3),
        ("cov", (-0.1, -0.2, -0.1), 0),
        ("corr", (0.3, 0.8, 0.2), 2),
        # With its own coefficient an anticorrelated control variate is as good as any.
        ("corr", (0.3, 0.2, -0.5), 3),
    ],
)
def test_the_horizon_of_a_rule(rule, correlations, horizon):
    chosen, found = jax.jit(choose_horizon, static_argnames="rule")(ADVANTAGE, embedded(*correlations), rule=rule)
    assert chosen == horizon
    np.testing.assert_allclose(found, correlations, rtol=1e-9)


@pytest.mark.parametrize("rule", ["cov", "corr"])
def test_what_does_not_vary_recommends_nothing(rule):
    chosen, found = choose_horizon(ADVANTAGE, jnp.ones((2, 400)), rule=rule)
    assert chosen == 0
    assert not found.any()


def test_what_remains_of_the_variance():
    (row,) = embedded(0.6)
    c = optimal_coefficient(ADVANTAGE, row)
    _, (correlation,) = choose_horizon(ADVANTAGE, row[None])
    assert np.var(ADVANTAGE - c * row) == pytest.approx((1 - 0.6**2) * np.var(ADVANTAGE), rel=1e-9)
    assert correlation == pytest.approx(0.6)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="rule='cor' is unknown: did you mean"):
        choose_horizon(ADVANTAGE, embedded(0.1), rule="cor")
    with pytest.raises(AssertionError):
        choose_horizon(ADVANTAGE, embedded(0.1)[0])
    with pytest.raises(AssertionError):
        optimal_coefficient(TARGET, CONTROL[:10])
