from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.losses.value import weighted_td_loss
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.types import Transition
from tests.oracles import check_monte_carlo_mean

KEY = jax.random.key(0)
STEP = Transition(jnp.array([1.0, 2.0]), jnp.array([0.5]), jnp.array(0.3), jnp.array(1.0), jnp.array([0.5, -1.0]))


def value_fn(params, obs):
    return params @ obs


loss = partial(weighted_td_loss, value_fn=value_fn, target_fn=lambda s: 2.0 * s[0], gamma=0.9)


@pytest.mark.parametrize(("discount", "target"), [(1.0, 0.3 + 0.9), (0.0, 0.3)])
def test_by_hand(discount, target):
    params, weight = jnp.array([1.0, -1.0]), jnp.array(3.0)
    step = STEP._replace(discount=jnp.array(discount))
    (value, aux), slope = jax.value_and_grad(loss, has_aux=True)(params, (step, weight), KEY)
    # V = 1 - 2 = -1.
    np.testing.assert_allclose(value, 3.0 * (-1.0 - target) ** 2, rtol=1e-6)
    np.testing.assert_allclose(slope, 6.0 * (-1.0 - target) * STEP.obs, rtol=1e-6)
    np.testing.assert_allclose([aux["value"], aux["target"]], [-1.0, target], rtol=1e-6)


@pytest.mark.float64
def test_weights_turn_the_old_policys_steps_into_the_new_ones():
    """Reward ``a``: under ``pi`` of mean 0.5 the slope at ``V = 0`` is ``-2 E_pi[a] s = -s``."""
    old, new = Gaussian(jnp.zeros(1), jnp.zeros(1)), Gaussian(jnp.full(1, 0.5), jnp.zeros(1))

    def draw(key, weighted):
        action = old.sample(key)
        step = STEP._replace(action=action, reward=action[0], discount=jnp.zeros(()))
        weight = jnp.exp(new.log_prob(action) - old.log_prob(action)) if weighted else jnp.ones(())
        return jax.grad(loss, has_aux=True)(jnp.zeros(2), (step, weight), KEY)[0]

    keys = jax.random.split(KEY, 100_000)
    check_monte_carlo_mean(jax.vmap(partial(draw, weighted=True))(keys), -STEP.obs)
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(jax.vmap(partial(draw, weighted=False))(keys), -STEP.obs)


def test_a_batch_axis_is_refused():
    with pytest.raises(AssertionError):
        loss(jnp.zeros(2), (STEP, jnp.ones(1)), KEY)
