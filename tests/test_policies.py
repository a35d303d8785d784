import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import policies

KEY = jax.random.key(0)


def test_tabular_softmax_is_certain_where_it_is_fixed():
    policy = policies.tabular_softmax(np.array([-1, 2]), 3)
    table = policy.init(KEY)
    assert table.shape == (2, 3)
    np.testing.assert_allclose(policy.apply(table, jnp.asarray(0)).probs(), jax.nn.softmax(table[0]), rtol=1e-6)
    fixed = policy.apply(table, jnp.asarray(1))
    np.testing.assert_array_equal(fixed.probs(), [0.0, 0.0, 1.0])
    assert fixed.sample(KEY) == 2
    slope = jax.grad(lambda t: policy.apply(t, jnp.asarray(1)).log_prob(jnp.asarray(2)))(table)
    np.testing.assert_array_equal(slope, np.zeros((2, 3)))


def test_radial_mean_by_hand():
    policy = policies.radial_gaussian([0.0, 4.0], width=2.0, std=0.1)
    distribution = policy.apply(jnp.array([1.0, 3.0]), jnp.array([4.0]))
    # exp(-16 / 8) + 3
    assert distribution.mean[0] == pytest.approx(np.exp(-2.0) + 3.0, rel=1e-6)
    assert np.exp(distribution.log_std[0]) == pytest.approx(0.1, rel=1e-6)
    start = policies.radial_gaussian([0.0, 4.0], width=2.0, std=0.1, initial=0.5).init(KEY)
    np.testing.assert_array_equal(start, [0.5, 0.5])


def test_linear_gaussian_by_hand():
    policy = policies.linear_gaussian(2, 1, log_std=-0.5)
    distribution = policy.apply({"gain": jnp.array([[1.0, 2.0]]), "bias": jnp.array([0.5])}, jnp.array([3.0, -1.0]))
    assert distribution.mean[0] == pytest.approx(1.5)
    assert distribution.log_std[0] == pytest.approx(-0.5)
    assert policy.init(KEY)["gain"].shape == (1, 2)


def test_network_gaussian():
    network = policies.mlp_gaussian(3, 2, (8, 8), log_std=-0.5)
    params = network.init(KEY)
    distribution = network.apply(params, jnp.ones(3))
    np.testing.assert_allclose(distribution.log_std, [-0.5, -0.5])
    # Means start near zero: the last layer is a tenth of what it would be.
    wide = policies.mlp_gaussian(3, 2, (8, 8), out_scale=1.0)
    untouched = wide.apply(wide.init(KEY), jnp.ones(3)).mean
    np.testing.assert_allclose(10.0 * distribution.mean, untouched, rtol=1e-4)
    # The deviation is a parameter of its own.
    slope = jax.grad(lambda p: jnp.sum(network.apply(p, jnp.ones(3)).log_std))(params)
    np.testing.assert_array_equal(slope["log_std"], [1.0, 1.0])
    assert not np.any(jax.tree.leaves(slope["mean"])[0])
