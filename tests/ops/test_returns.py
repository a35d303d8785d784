import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import returns

pytestmark = pytest.mark.float64

GAMMA, LAMBDA = 0.9, 0.7


@pytest.fixture
def path():
    rng = np.random.default_rng(0)
    discount = np.ones(7)
    discount[2] = 0.0  # one episode ends inside the recording
    value = rng.normal(size=8)
    return rng.normal(size=7), discount, value


def value_after(reward, discount, bootstrap, start, stop):
    """Sum of the rewards start..stop-1 and the bootstrapped rest, term by term."""
    total, reached = 0.0, 1.0
    for i in range(start, stop):
        total += reached * reward[i]
        reached *= GAMMA * discount[i]
    return total + reached * bootstrap


def test_discounted_returns_and_sum(path):
    reward, discount, _ = path
    expected = [value_after(reward, discount, 2.0, t, 7) for t in range(7)]
    got = returns.discounted_returns(jnp.asarray(reward), jnp.asarray(discount), gamma=GAMMA, bootstrap=2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    total = returns.discounted_sum(jnp.asarray(reward), jnp.asarray(discount), gamma=GAMMA, bootstrap=2.0)
    assert total == pytest.approx(expected[0], rel=1e-12)


def test_sum_by_hand():
    # 1 + 0.5 * 2 + 0.5^2 * 4 + 0.5^3 * 8 = 4; ended after the second reward: 1 + 0.5 * 2 = 2.
    reward = jnp.array([1.0, 2.0, 4.0])
    assert returns.discounted_sum(reward, jnp.ones(3), gamma=0.5, bootstrap=8.0) == 4
    assert returns.discounted_sum(reward, jnp.array([1.0, 0.0, 1.0]), gamma=0.5, bootstrap=8.0) == 2
    assert returns.discounted_sum(jnp.zeros(0), jnp.zeros(0), gamma=0.5, bootstrap=8.0) == 8


@pytest.mark.parametrize("num_steps", [1, 3, 7, 20])
def test_n_step_returns(path, num_steps):
    reward, discount, value = path
    expected = [value_after(reward, discount, value[min(t + num_steps, 7)], t, min(t + num_steps, 7)) for t in range(7)]
    got = returns.n_step_returns(*map(jnp.asarray, (reward, discount, value[1:])), gamma=GAMMA, num_steps=num_steps)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("lambda_", [0.0, LAMBDA, 1.0])
def test_lambda_returns_mix_all_n_step_returns(path, lambda_):
    reward, discount, value = path

    def n_step(t, n):
        return value_after(reward, discount, value[t + n], t, t + n)

    # (1 - lambda) sum_n lambda^{n-1} G^(n), the last one with the remaining weight.
    expected = [
        sum((1 - lambda_) * lambda_ ** (n - 1) * n_step(t, n) for n in range(1, 7 - t))
        + lambda_ ** (6 - t) * n_step(t, 7 - t)
        for t in range(7)
    ]
    got = returns.lambda_returns(*map(jnp.asarray, (reward, discount, value[1:])), gamma=GAMMA, lambda_=lambda_)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_generalised_advantages_sum_the_residuals(path):
    reward, discount, value = path
    expected = []
    for t in range(7):
        total, weight = 0.0, 1.0
        for k in range(t, 7):
            total += weight * (reward[k] + GAMMA * discount[k] * value[k + 1] - value[k])
            weight *= GAMMA * LAMBDA * discount[k]
        expected.append(total)
    args = map(jnp.asarray, (reward, discount, value[:-1], value[1:]))
    np.testing.assert_allclose(returns.generalised_advantages(*args, gamma=GAMMA, lambda_=LAMBDA), expected, rtol=1e-12)


def test_interpolate_horizons_by_hand():
    # Means 2, 4 and variances 1, 4: weights 1 and 1/4 of 5/4, so 0.8 * 2 + 0.2 * 4 = 2.4.
    target, weights = returns.interpolate_horizons(jnp.array([[1.0, 3.0], [2.0, 6.0]]), 0.0)
    np.testing.assert_allclose(weights, [0.8, 0.2])
    assert target == pytest.approx(2.4)
    # With a floor of 2: 1/3 and 1/6 of 1/2.
    np.testing.assert_allclose(
        returns.interpolate_horizons(jnp.array([[1.0, 3.0], [2.0, 6.0]]), 2.0)[1], [2 / 3, 1 / 3]
    )


def test_interpolate_horizons_with_a_single_source_at_depth_zero_gives_it_all_the_weight():
    values = jnp.array([[1.0, 1.0], [2.0, 6.0]])
    np.testing.assert_allclose(returns.interpolate_horizons(values)[1], [1.0, 0.0], atol=1e-8)
    # A floor of 4 makes it 1/4 against 1/8.
    np.testing.assert_allclose(returns.interpolate_horizons(values, 4.0)[1], [2 / 3, 1 / 3])


@pytest.mark.parametrize(
    "call",
    [
        lambda one: returns.discounted_sum(one[None], one[None], gamma=1.0),
        lambda one: returns.discounted_returns(one, jnp.ones(2), gamma=1.0),
        lambda one: returns.discounted_returns(one.astype(int), one.astype(int), gamma=1.0),
        lambda one: returns.lambda_returns(one, one, jnp.ones(2), gamma=1.0, lambda_=1.0),
        lambda one: returns.n_step_returns(one, one, one, gamma=1.0, num_steps=0),
        lambda one: returns.interpolate_horizons(one),
    ],
)
def test_bad_shapes_and_dtypes_are_refused(call):
    with pytest.raises((AssertionError, ValueError)):
        call(jnp.ones(3))
