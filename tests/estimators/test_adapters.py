import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import estimators
from jaxhybrid.losses.batching import batched


def loss(params, example, key, *, scale=1.0):
    noise = jax.random.normal(key)
    return scale * jnp.sum(jnp.square(params - example)) + noise, {"noise": noise}


def test_the_estimator_ascends_where_the_loss_descends():
    params, example, key = jnp.array([1.0, 2.0]), jnp.array([0.0, 5.0]), jax.random.key(0)
    grads, aux = estimators.of_loss(loss)(params, example, key, scale=3.0)
    np.testing.assert_allclose(grads, -3.0 * 2 * (params - example))
    value, expected = loss(params, example, key, scale=3.0)
    assert aux == {"noise": expected["noise"], "loss": value}


def test_a_batched_loss_makes_an_estimator_too():
    examples = jnp.array([[0.0, 5.0], [2.0, 1.0]])
    grads, _ = estimators.of_loss(batched(loss))(jnp.array([1.0, 2.0]), examples, jax.random.key(0))
    np.testing.assert_allclose(grads, [0.0, 2.0])


def test_exported_names_are_functions():
    assert all(callable(getattr(estimators, name)) for name in estimators.__all__)
