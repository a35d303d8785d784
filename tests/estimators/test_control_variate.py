from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.estimators import control_variate, of_loss
from jaxhybrid.losses.control_variate import mscv_loss
from jaxhybrid.ops.control_variates import optimal_coefficient
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Segment
from tests.oracles import check_monte_carlo_mean

pytestmark = pytest.mark.float64

# One decision a ~ N(theta, 1) at theta = 1, its return a^2 and a model that knows 4 a; the baseline is E[a^2] = 2. With
# a = 1 + e the gradient without the control variate is g = e (a^2 - 2) = e^3 + 2 e^2 - e, of mean 2 and variance
# E[e^6] + 2 E[e^4] + E[e^2] - 4 = 15 + 6 + 1 - 4 = 18. The control variate is h = e (4 a - 2) - 4 = 4 e^2 + 2 e - 4, of
# mean 0 and variance 16 * 2 + 4 = 36, and E[g h] = 2 * 3 + 8 * 3 - 8 - 2 = 20. So eta* = 20 / 36.
THETA, OPTIMUM = 1.0, 20 / 36
FUNCTIONS = {
    "policy_fn": lambda theta, s: Gaussian(theta[None], jnp.zeros(1)),
    "step_fn": lambda s, a, key: (s, 4.0 * a[0], jnp.zeros(())),
    "value_fn": lambda s: 2.0 * s[0],
    "horizon": 1,
    "gamma": 0.9,
}


@jax.jit
def draws(key, eta):
    def one(key):
        noise = jax.random.normal(key, (1, 1))
        segment = Segment(jnp.ones(1), THETA + noise[0], noise, (THETA + noise[0, 0]) ** 2, jnp.ones(1))
        return control_variate(jnp.asarray(THETA), segment, key, eta=eta, **FUNCTIONS)

    return jax.vmap(one)(jax.random.split(key, 100_000))


def test_the_coefficient_of_a_past_batch_has_least_variance_and_no_bias():
    past, now = jax.random.split(jax.random.key(0))
    without, aux = draws(past, 0.0)
    eta = optimal_coefficient(without, without - draws(past, 1.0)[0])
    assert eta == pytest.approx(OPTIMUM, abs=0.02)
    # Of the advantages alone: A = e^2 + 2 e - 1, A_hat = 4 e + 2, so 2 * 4 / 16.
    assert optimal_coefficient(aux["advantage"], aux["embedded_advantage"]) == pytest.approx(0.5, abs=0.02)
    # 18 - 2 eta 20 + eta^2 36.
    for coefficient, variance in ((0.0, 18.0), (1.0, 14.0), (eta, 18 - 400 / 36)):
        grads, _ = draws(now, coefficient)
        check_monte_carlo_mean(grads, 2.0 * THETA)
        assert grads.var() == pytest.approx(variance, rel=0.05)


def linear(params, obs):
    return Gaussian(params["gain"] @ obs, params["log_std"])


def test_every_tensor_has_its_own_coefficient():
    params = {"gain": jnp.array([[0.3, -0.2]]), "log_std": jnp.array([-0.5])}
    noise = jnp.array([[0.4], [-1.1]])
    obs = jnp.array([0.5, -1.0])
    segment = Segment(obs, linear(params, obs).reparameterise(noise[0]), noise, jnp.array(1.7), jnp.ones(2))
    knobs = FUNCTIONS | {"policy_fn": linear, "step_fn": lambda s, a, key: (s + a, a[0] * s[0], jnp.ones(()))}
    knobs |= {"horizon": 2, "tail": "cut"}
    key = jax.random.key(0)
    own, _ = jax.jit(partial(control_variate, eta={"gain": 0.3, "log_std": 0.8}, **knobs))(params, segment, key)
    for name, eta in (("gain", 0.3), ("log_std", 0.8)):
        one = of_loss(partial(mscv_loss, eta=eta, **knobs))(params, segment, key)[0]
        np.testing.assert_allclose(own[name], one[name], rtol=1e-10)
    single, _ = control_variate(params, segment, key, eta=0.3, **knobs)
    np.testing.assert_allclose(single["gain"], own["gain"], rtol=1e-10)
