import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import trees

X = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array([[3.0]]),)}
Y = {"a": jnp.array([4.0, -1.0]), "b": (jnp.array([[2.0]]),)}
ZERO = jax.tree.map(jnp.zeros_like, X)


def test_products_and_angles():
    assert trees.dot(X, Y) == 1 * 4 - 2 * 1 + 3 * 2
    assert trees.norm(X) == pytest.approx(14**0.5)
    assert trees.cosine(X, Y) == pytest.approx(8 / (14 * 21) ** 0.5)
    assert trees.cosine(X, ZERO) == 0
    assert trees.cosine(ZERO, ZERO) == 0
    assert trees.cosine(X, X, epsilon=14.0) == pytest.approx(0.5)


def test_relative_change():
    assert trees.relative_change(X, Y) == pytest.approx((3**2 + 3**2 + 1) ** 0.5 / 14**0.5)
    assert trees.relative_change(X, X) == 0
    assert trees.relative_change(ZERO, X) == 0
    assert np.isnan(trees.relative_change(X, {"a": jnp.array([jnp.nan, 2.0]), "b": (jnp.array([[3.0]]),)}))


def test_empty_trees():
    assert trees.dot({}, {}) == 0
    assert bool(trees.all_finite({}))


@pytest.mark.parametrize("fn", [trees.norm, lambda x: trees.cosine(x, X)])
def test_gradients_at_the_origin_are_finite(fn):
    assert bool(trees.all_finite(jax.grad(fn)(ZERO)))


def test_norm_gradient_at_the_origin_is_zero():
    assert trees.norm(jax.grad(trees.norm)(ZERO)) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    broken = {"a": jnp.array([1.0, bad]), "b": (jnp.array([[3.0]]),)}
    assert not np.isfinite(trees.norm(broken))
    assert np.isnan(trees.cosine(broken, X))


def test_linear_combinations():
    np.testing.assert_allclose(trees.axpy(2.0, X, Y)["a"], [6.0, 3.0])
    np.testing.assert_allclose(trees.lerp(X, Y, 0.25)["a"], [1.75, 1.25])
    np.testing.assert_array_equal(trees.lerp(X, Y, 0.0)["b"][0], X["b"][0])


def test_where_selects_leaves_and_keys():
    keys = jax.random.key(0), jax.random.key(1)
    picked = trees.where(jnp.asarray(False), (X, keys[0]), (Y, keys[1]))
    np.testing.assert_array_equal(picked[0]["a"], Y["a"])
    assert picked[1] == keys[1]


def test_fill_lets_the_first_row_inside_stand_for_the_others():
    rows = {"a": jnp.array([[9.0], [1.0], [jnp.nan], [2.0]]), "b": np.array([9, 1, 9, 2])}
    inside = jnp.array([False, True, False, True])
    filled = trees.fill(inside, rows)
    np.testing.assert_array_equal(filled["a"], [[1.0], [1.0], [1.0], [2.0]])
    np.testing.assert_array_equal(filled["b"], [1, 1, 1, 2])
    # The square root has no slope at 0, the padding here.
    slope = jax.grad(lambda x: jnp.sum(jnp.where(inside, jnp.sqrt(trees.fill(inside, x)), 0.0)))(
        jnp.array([0.0, 1.0, 0.0, 4.0])
    )
    np.testing.assert_array_equal(slope, [0.0, 0.5, 0.0, 0.25])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite(bad):
    assert bool(trees.all_finite((X, jnp.arange(3), jnp.array([True]))))
    assert not bool(trees.all_finite((X, jnp.array([0.0, bad]))))
