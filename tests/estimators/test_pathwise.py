import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.estimators import pathwise
from jaxhybrid.ops.gaussian import Gaussian
from tests.estimators import lqr_case
from tests.oracles import check_monte_carlo_mean, finite_difference

DRAWS = 20_000


@pytest.mark.float64
def test_unbiased_with_an_exact_terminal_value():
    problem, gain = lqr_case.case()
    grads, values = lqr_case.draws(pathwise, DRAWS)
    check_monte_carlo_mean(grads, lqr_case.truncated_gradient())
    check_monte_carlo_mean(values, lqr.expected_return(problem, gain, lqr_case.NOISE))


@pytest.mark.float64
def test_unbiased_for_the_return_of_a_finite_horizon():
    _, gain = lqr_case.case()
    grads, values = lqr_case.draws(pathwise, DRAWS, value_scale=None)
    check_monte_carlo_mean(grads, jax.grad(lqr_case.finite_horizon_return)(gain))
    check_monte_carlo_mean(values, lqr_case.finite_horizon_return(gain))


@pytest.mark.float64
@pytest.mark.parametrize("mistake", [{"gamma": 1.0}, {"value_scale": None}])
def test_planted_biases_are_noticed(mistake):
    with pytest.raises(AssertionError, match="bias of"):
        # Without a discount the draws vary more.
        grads, _ = lqr_case.draws(pathwise, DRAWS, **mistake)
        check_monte_carlo_mean(grads, lqr_case.truncated_gradient(), visible_bias=0.06)


@pytest.mark.float64
def test_one_draw_is_the_derivative_of_its_own_value():
    def estimate(params):
        return pathwise(
            params,
            jnp.array([0.3, -0.4]),
            jax.random.key(0),
            policy_fn=lambda p, s: Gaussian(jnp.sin(p * s), 0.1 * p),
            step_fn=lambda s, a, key: (jnp.tanh(s + a), jnp.cos(s @ a), jnp.ones(()) * 0.5),
            horizon=4,
            gamma=0.9,
            value_fn=lambda s: s[0] ** 2,
        )

    params = jnp.array([0.7, 1.3])
    grads, _ = estimate(params)
    np.testing.assert_allclose(grads, finite_difference(lambda p: estimate(p)[1]["value"], params), rtol=1e-8)
