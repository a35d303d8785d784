"""Products over the first rows against plain ones, with gradients of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import products

R, I, O = 384, 3, 2
KEYS = jax.random.split(jax.random.key(0), 4)


def inputs(rows):
    x, y = jax.random.normal(KEYS[0], (R, I)), jax.random.normal(KEYS[1], (R, O))
    inside = (jnp.arange(R) < rows)[:, None]
    return jnp.where(inside, x, 0.0), jax.random.normal(KEYS[2], (I, O)), jnp.where(inside, y, 0.0)


def slopes(product, gram):
    """Gradients of something of third order in each, and of the length of these gradients."""

    def total(x, kernel, y):
        out = jnp.tanh(product(x, kernel)) * y
        return jnp.sum(out**2) + jnp.sum(jnp.sin(gram(x, out)) * kernel)

    def length(*args):
        return sum(jnp.sum(g**2) for g in jax.grad(total, (0, 1, 2))(*args))

    return jax.jit(lambda *args: (jax.grad(total, (0, 1, 2))(*args), jax.grad(length, (0, 1, 2))(*args)))


@pytest.mark.float64
@pytest.mark.parametrize("rows", [None, 0, 1, 128, 130, R])
def test_products_of_the_first_rows_are_plain_products(rows):
    count = R if rows is None else rows
    x, kernel, y = inputs(count)
    limit = None if rows is None else jnp.array(rows)
    np.testing.assert_allclose(products.product(x, kernel, limit)[:count], (x @ kernel)[:count], rtol=1e-12)
    np.testing.assert_allclose(products.gram(x, y, limit), x.T @ y, rtol=1e-12, atol=1e-14)
    own = slopes(lambda x, w: products.product(x, w, limit), lambda x, y: products.gram(x, y, limit))(x, kernel, y)
    plain = slopes(lambda x, w: x @ w, lambda x, y: x.T @ y)(x, kernel, y)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(plain), strict=True):
        size = slice(0, count) if a.shape[0] == R else slice(None)
        np.testing.assert_allclose(a[size], b[size], rtol=1e-10, atol=1e-12)


def test_rows_past_the_first_ones_are_not_computed_on_a_cpu():
    x, kernel, _ = inputs(R)
    found = products.product(x, kernel, jnp.array(1))
    assert np.all(found[-1] == 0) or jax.default_backend() != "cpu"


def test_shapes_that_do_not_fit_are_refused():
    x, kernel, y = inputs(R)
    with pytest.raises(AssertionError):
        products.product(x, kernel.T)
    with pytest.raises(AssertionError):
        products.gram(x[:-1], y)
