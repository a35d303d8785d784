import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import importance
from jaxhybrid.ops.gaussian import Gaussian
from tests.oracles import check_monte_carlo_mean


def test_per_decision_ratios_are_products():
    target, behaviour = jnp.log(jnp.array([0.5, 0.2, 0.9])), jnp.log(jnp.array([0.25, 0.4, 0.3]))
    ratios = jnp.exp(importance.per_decision_log_ratios(target, behaviour))
    np.testing.assert_allclose(ratios, [2.0, 1.0, 3.0], rtol=1e-6)


@pytest.mark.float64
def test_ratios_reweigh_one_gaussian_into_another():
    behaviour, target = Gaussian(jnp.zeros(1), jnp.zeros(1)), Gaussian(jnp.array([0.5]), jnp.array([-0.2]))
    x = jax.vmap(behaviour.sample)(jax.random.split(jax.random.key(0), 50_000))
    log_ratio = jax.vmap(target.log_prob)(x) - jax.vmap(behaviour.log_prob)(x)
    draws = jnp.stack([jnp.exp(log_ratio), jnp.exp(log_ratio) * x[:, 0]], axis=1)
    check_monte_carlo_mean(draws, np.array([1.0, 0.5]))
    normalised = jnp.exp(importance.self_normalised_log_ratios(log_ratio))
    assert jnp.mean(normalised) == pytest.approx(1.0)
    assert jnp.mean(normalised * x[:, 0]) == pytest.approx(0.5, abs=0.02)


def test_weights_of_huge_ratios_do_not_overflow():
    log_ratio = jnp.array([1000.0, 1000.0, -1000.0, 0.0])
    log_normalised = importance.self_normalised_log_ratios(log_ratio)
    # exp(-2000) is no float, its logarithm is.
    np.testing.assert_allclose(log_normalised, np.log(2.0) + np.array([0.0, 0.0, -2000.0, -1000.0]), rtol=1e-6)
    np.testing.assert_allclose(importance.truncated_weights(log_ratio, maximum=5.0), [5.0, 5.0, 0.0, 1.0], rtol=1e-6)
    assert importance.effective_sample_size(log_ratio) == pytest.approx(2.0)


def test_effective_sample_size_by_hand():
    # (1 + 2 + 3)^2 / (1 + 4 + 9) = 36 / 14
    log_ratio = jnp.log(jnp.array([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]]))
    np.testing.assert_allclose(importance.effective_sample_size(log_ratio, axis=1), [36 / 14, 3.0], rtol=1e-6)
    np.testing.assert_allclose(importance.effective_sample_size(log_ratio.T), [36 / 14, 3.0], rtol=1e-6)


def test_trajectories_without_weight_do_not_count():
    log_ratio = jnp.log(jnp.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(importance.effective_sample_size(log_ratio, axis=1), [16 / 10, 0.0], rtol=1e-6)
    normalised = jnp.exp(importance.self_normalised_log_ratios(log_ratio, axis=1))
    np.testing.assert_allclose(normalised, [[0.75, 0.0, 2.25], [0.0, 0.0, 0.0]], rtol=1e-6)
    # What is no number stays none.
    assert jnp.isnan(importance.effective_sample_size(jnp.array([jnp.nan, -jnp.inf])))


def test_gradient_aware_weights_by_hand():
    log_ratio, norm = jnp.log(jnp.array([2.0, 1.0, 3.0])), jnp.array([1.0, 2.0, 4.0])
    # gamma^t * (2, 1, 3) * (1, 3, 7)
    np.testing.assert_allclose(
        importance.gradient_aware_weights(log_ratio, norm, gamma=0.5), [2.0, 1.5, 0.25 * 21], rtol=1e-6
    )
    np.testing.assert_allclose(
        importance.gradient_aware_weights(log_ratio, norm, gamma=0.5, cumulative=False), [2.0, 1.0, 3.0], rtol=1e-6
    )
    np.testing.assert_array_equal(importance.gradient_aware_weights(jnp.zeros(2), jnp.zeros(2), gamma=0.9), [0.0, 0.0])


def test_gradient_aware_weights_of_a_thousand_steps_neither_over_nor_underflow():
    # gamma^t falls below float32's smallest number at t = 840, the ratio grows past its largest at t = 850.
    t = np.arange(1000)
    log_ratio = jnp.asarray(-np.log(0.9) * (t + 1), jnp.float32)
    weights = importance.gradient_aware_weights(log_ratio, jnp.ones(1000), gamma=0.9)
    # 0.9^t * 0.9^-(t + 1) * (t + 1) = (t + 1) / 0.9
    np.testing.assert_allclose(weights, (t + 1) / 0.9, rtol=1e-3)


def test_an_action_that_the_target_never_takes_ends_the_weight():
    log_ratio = jnp.log(jnp.array([2.0, 0.0, 0.0]))
    for cumulative in (True, False):
        found = importance.gradient_aware_weights(log_ratio, jnp.ones(3), gamma=0.5, cumulative=cumulative)
        np.testing.assert_allclose(found, [2.0, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: importance.per_decision_log_ratios(jnp.ones((2, 2)), jnp.ones((2, 2))),
        lambda: importance.per_decision_log_ratios(jnp.ones(2), jnp.ones(3)),
        lambda: importance.gradient_aware_weights(jnp.ones(2), jnp.ones(2, int), gamma=0.9),
    ],
)
def test_bad_shapes_and_dtypes_are_refused(call):
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gradient_aware_weights_down_to_no_discount_at_all(gamma):
    weights = importance.gradient_aware_weights(jnp.zeros(3), jnp.ones(3), gamma=gamma)
    np.testing.assert_allclose(weights, [1.0, 2 * gamma, 3 * gamma**2], rtol=1e-6)


def test_per_decision_coefficients_by_hand():
    log_ratio, reward = jnp.log(jnp.array([2.0, 1.0, 3.0])), jnp.array([1.0, 10.0, 100.0])
    # gamma^k rho_{0:k} r_k = 2, 5, 75; sums to go. The rewards before t, gamma^k r_k = 1, 5, 25, weigh rho_{0:t}.
    found = importance.per_decision_coefficients(log_ratio, reward, gamma=0.5)
    np.testing.assert_allclose(found, [82.0, 80.0, 75.0], rtol=1e-6)
    found = importance.per_decision_coefficients(log_ratio, reward, gamma=0.5, past_rewards=True)
    np.testing.assert_allclose(found, [82.0, 80.0 + 1.0 * 1.0, 75.0 + 3.0 * 6.0], rtol=1e-6)
