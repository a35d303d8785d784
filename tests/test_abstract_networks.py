import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import abstract_networks
from jaxhybrid.errors import InputError

KEY = jax.random.key(0)


@functools.cache
def built(kind="map", compiled=False):
    """The networks with their first parameters, and an abstract state."""
    nets = {
        "map": lambda: abstract_networks.map_networks((48, 48), 4, compiled=compiled),
        "vector": lambda: abstract_networks.vector_networks((36, 36), 2, size=3, compiled=compiled),
    }[kind]()
    shapes = jax.eval_shape(lambda k: [network.init(k) for network in nets], KEY)
    # Compiling five initialisers takes longer than everything that is tested here.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.2, 0.2, x.shape), x.dtype), shapes)
    side = {"map": 48, "vector": 36}[kind]
    picture = jax.random.uniform(KEY, (side, side), minval=-1.0)
    return nets, params, picture


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_parameters_are_as_many_as_in_the_released_networks():
    _, params, _ = built()
    assert [count(p) for p in params] == [5307, 29507, 31327, 31327, 31134]


@pytest.mark.parametrize("kind", ["map", "vector"])
def test_shapes(kind):
    nets, params, picture = built(kind)
    encoder, dynamics, reward, discount, critic = params
    z, action = jax.eval_shape(nets.encoder.apply, encoder, picture), jnp.array(1)
    assert z.shape == {"map": (8, 8, 3), "vector": (3,)}[kind]
    assert jax.eval_shape(nets.dynamics.apply, dynamics, z, action).shape == z.shape
    assert jax.eval_shape(nets.reward.apply, reward, z, action).shape == ()
    assert jax.eval_shape(nets.discount.apply, discount, z, action).shape == ()
    assert jax.eval_shape(nets.critic.apply, critic, z).shape == {"map": (4,), "vector": (2,)}[kind]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_are_the_compilers_convolution(size):
    patches, compiled = (abstract_networks.Conv(5, size, flag) for flag in (False, True))
    x = jax.random.normal(KEY, (6, 7, 3))
    params = patches.init(KEY, x)
    params["params"]["bias"] = jnp.arange(5.0)
    np.testing.assert_allclose(patches.apply(params, x), compiled.apply(params, x), atol=1e-5)


def test_an_even_kernel_looks_down_and_to_the_right():
    conv = abstract_networks.Conv(1, 2)
    x = jnp.arange(6.0).reshape(2, 3, 1)
    params = {"params": {"kernel": jnp.ones((2, 2, 1, 1)), "bias": jnp.zeros(1)}}
    # Sums of 2 x 2 blocks of [[0, 1, 2], [3, 4, 5]] whose upper left corner is the pixel; zeros beyond the edge.
    np.testing.assert_array_equal(conv.apply(params, x)[..., 0], [[8.0, 12.0, 7.0], [7.0, 9.0, 5.0]])


def test_pooling_by_hand():
    x = jnp.array([[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, -1.0, -2.0]])[..., None]
    np.testing.assert_array_equal(abstract_networks.max_pool(x, 2)[..., 0], [[5.0, 2.0]])
    gradient = jax.grad(lambda y: jnp.sum(abstract_networks.max_pool(y, 2)))(x)
    np.testing.assert_array_equal(gradient[..., 0], [[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_both_kinds_of_convolution_are_one_network():
    nets, params, picture = built()
    other, _, _ = built(compiled=True)
    z = nets.encoder.apply(params[0], picture)
    np.testing.assert_allclose(other.encoder.apply(params[0], picture), z, atol=1e-5)
    np.testing.assert_allclose(
        other.dynamics.apply(params[1], z, jnp.array(2)), nets.dynamics.apply(params[1], z, jnp.array(2)), atol=1e-5
    )


def test_weights_start_as_glorot_says():
    kernel = abstract_networks.Conv(64, 3).init(KEY, jnp.zeros((8, 8, 32)))["params"]["kernel"]
    bound = math.sqrt(6.0 / (9 * 32 + 9 * 64))
    assert kernel.shape == (3, 3, 32, 64)
    assert 0.98 * bound < jnp.abs(kernel).max() <= bound
    assert float(kernel.std()) == pytest.approx(bound / math.sqrt(3.0), rel=0.03)


def test_the_action_enters_as_constant_planes_and_the_state_is_carried_on():
    nets, params, picture = built()
    z = nets.encoder.apply(params[0], picture)
    still = jax.tree.map(jnp.zeros_like, params[1])
    np.testing.assert_array_equal(nets.dynamics.apply(still, z, jnp.array(1)), z)
    # A first layer that reads the plane of action 2 alone adds the same to every position, if no other layer looks far.
    planes = jax.tree.map(jnp.zeros_like, params[1])
    planes["params"]["Conv_0"]["kernel"] = planes["params"]["Conv_0"]["kernel"].at[:, :, 2].set(1.0)
    for i, size in ((1, 2), (2, 3), (3, 2), (4, 1), (5, 1)):
        middle = (size - 1) // 2
        kernel = planes["params"][f"Conv_{i}"]["kernel"]
        planes["params"][f"Conv_{i}"]["kernel"] = kernel.at[middle, middle].set(0.1)
    change = nets.dynamics.apply(planes, z, jnp.array(2)) - z
    assert change.min() > 0
    np.testing.assert_allclose(change, jnp.full_like(change, change[0, 0, 0]), rtol=1e-3)
    np.testing.assert_array_equal(nets.dynamics.apply(planes, z, jnp.array(1)), z)


@pytest.mark.parametrize("shape", [(48, 42), (30, 30), (0, 0), (48,)])
def test_pictures_that_cannot_be_pooled_are_refused(shape):
    with pytest.raises(InputError, match="multiple of 12"):
        abstract_networks.map_networks(shape, 4)


def test_pictures_of_another_shape_are_refused():
    nets, params, _ = built()
    with pytest.raises(InputError, match=r"shape \(8, 8\), expected \(48, 48\)"):
        nets.encoder.apply(params[0], jnp.zeros((8, 8)))
