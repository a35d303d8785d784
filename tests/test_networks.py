import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import networks
from jaxhybrid.errors import InputError
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian

KEY = jax.random.key(0)
OBS, ACTION = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.1, 0.2])


@pytest.mark.parametrize("activation", sorted(networks.ACTIVATIONS))
def test_mlp_is_its_matrices(activation):
    network = networks.mlp(3, (4,), 2, activation=activation)
    params = network.init(KEY)
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = networks.ACTIVATIONS[activation](OBS @ first["kernel"] + first["bias"])
    np.testing.assert_allclose(network.apply(params, OBS), hidden @ last["kernel"] + last["bias"], rtol=1e-5)


def test_initial_weights_are_glorot_uniform():
    params = networks.mlp(100, (200,), 50, out_scale=0.1).init(KEY)["params"]
    for layer, fans, scale in (("Dense_0", 300, 1.0), ("Dense_1", 250, 0.1)):
        bound = scale * (6 / fans) ** 0.5
        kernel = np.abs(params[layer]["kernel"])
        assert 0.99 * bound < kernel.max() <= bound
        assert kernel.mean() == pytest.approx(bound / 2, rel=0.02)
        assert not np.any(params[layer]["bias"])


@pytest.mark.parametrize(("squash", "record"), [(True, TanhGaussian), (False, Gaussian)])
def test_policy_returns_a_record_with_a_bounded_scale(squash, record):
    policy = networks.gaussian_policy(3, 2, (8,), squash=squash, log_std_min=-1.0, log_std_max=0.5)
    params = policy.init(KEY)
    got = policy.apply(params, OBS)
    assert isinstance(got, record)
    assert got.mean.shape == got.log_std.shape == (2,)
    for factor, bound in ((1e4, 0.5), (-1e4, -1.0)):
        extreme = jax.tree.map(lambda x, f=factor: x + f, params)
        np.testing.assert_array_equal(policy.apply(extreme, jnp.abs(OBS)).log_std, jnp.full(2, bound))


def test_critics_and_ensembles_are_independent_copies():
    critic = networks.critics(3, 2, (8,), num_critics=3)
    params = jax.jit(critic.init)(KEY)
    values = critic.apply(params, OBS, ACTION)
    assert values.shape == (3,)
    assert len(set(values.tolist())) == 3
    single = networks.mlp(5, (8,), 1)
    for c in range(3):
        one = single.apply(jax.tree.map(lambda x, c=c: x[c], params), jnp.concatenate([OBS, ACTION]))
        np.testing.assert_allclose(values[c], one[0], rtol=1e-5)
    several = networks.ensemble(single, 4)
    outputs = several.apply(several.init(KEY), jnp.ones(5))
    assert outputs.shape == (4, 1)
    np.testing.assert_allclose(
        outputs[2], single.apply(single.init(jax.random.split(KEY, 4)[2]), jnp.ones(5)), rtol=1e-5
    )


def test_unknown_activation_names_the_nearest():
    with pytest.raises(InputError, match=r"activation='swoosh'.*'swish'"):
        networks.mlp(3, (8,), 1, activation="swoosh")
