import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.planning import tree
from tests.oracles import finite_difference

WIDTH = 3


@functools.cache
def model(num_actions):
    """A smooth random model on ``z [3]``, with its parts as keyword arguments."""
    rng = np.random.default_rng(num_actions)
    shift, turn = rng.normal(size=(num_actions, WIDTH)), rng.normal(size=(num_actions, WIDTH, WIDTH))
    critic, reward, discount = rng.normal(size=(3, num_actions, WIDTH))

    # NumPy until a state is there, which says how wide the floats of the test are.
    def like(z, table):
        return jnp.asarray(table, z.dtype)

    return {
        "q_fn": lambda z: jnp.sin(like(z, critic) @ z + 0.3) + like(z, critic) @ jnp.square(z),
        "dynamics_fn": lambda z, a: z + 0.5 * jnp.tanh(like(z, turn)[a] @ z + like(z, shift)[a]),
        "reward_fn": lambda z, a: jnp.cos(like(z, reward)[a] @ z),
        "discount_fn": lambda z, a: 0.9 * jax.nn.sigmoid(like(z, discount)[a] @ z + 1.0),
    }


@functools.cache
def planned(num_actions, depth, branching=None):
    return jax.jit(lambda z: tree.plan_values(z, depth=depth, branching=branching, **model(num_actions)))


def best_sequences(z, depth, num_actions):
    """The largest return over all sequences of actions, by their first action; no tree, no maximum in between."""
    parts = model(num_actions)

    def total(sequence):
        x, rewards, weight = z, jnp.zeros(()), jnp.ones(())
        for a in sequence[:-1]:
            rewards += weight * parts["reward_fn"](x, a)
            weight *= parts["discount_fn"](x, a)
            x = parts["dynamics_fn"](x, a)
        return rewards + weight * parts["q_fn"](x)[sequence[-1]]

    sequences = jnp.array(list(itertools.product(range(num_actions), repeat=depth + 1)))
    returns = jax.jit(jax.vmap(total))(sequences)
    return returns.reshape(num_actions, -1).max(axis=1)


@pytest.mark.float64
@pytest.mark.parametrize(("num_actions", "depth"), [(2, 0), (2, 4), (3, 4), (4, 1), (4, 4)])
def test_full_expansion_is_brute_force(num_actions, depth):
    z = jnp.array([0.4, -0.7, 0.2])
    values = planned(num_actions, depth)(z)
    assert values.shape == (depth + 1, num_actions)
    brute = [best_sequences(z, d, num_actions) for d in range(depth + 1)]
    np.testing.assert_allclose(values, brute, rtol=1e-9)


def recursion(z, depth, num_actions, branching, level=0):
    """Equation 4, depth by depth from scratch: ``[A]``, minus infinity where an action is not expanded."""
    parts = model(num_actions)
    q = np.asarray(parts["q_fn"](z))
    if depth == 0:
        return q
    expanded = range(num_actions) if level == 0 else np.argsort(-q)[:branching]
    values = np.full(num_actions, -np.inf)
    for a in expanded:
        below = recursion(parts["dynamics_fn"](z, a), depth - 1, num_actions, branching, level + 1)
        values[a] = parts["reward_fn"](z, a) + parts["discount_fn"](z, a) * below.max()
    return values


@pytest.mark.float64
@pytest.mark.parametrize(("num_actions", "depth", "branching"), [(2, 4, 1), (3, 3, 2), (4, 4, 2)])
def test_the_best_few_are_the_recursion(num_actions, depth, branching):
    for z in jax.random.normal(jax.random.key(depth), (3, WIDTH)):
        values = planned(num_actions, depth, branching)(z)
        expected = [recursion(z, d, num_actions, branching) for d in range(depth + 1)]
        np.testing.assert_allclose(values, expected, rtol=1e-9)
        assert (values <= planned(num_actions, depth)(z) + 1e-12).all(), "a narrower tree cannot find more"


@pytest.mark.float64
def test_two_actions_keep_their_states_apart():
    """With a state that is told apart by its parts, a tree that mixes the maxima of different states is noticed."""
    parts = {
        "q_fn": lambda z: jnp.array([1.0, 2.0]) * z[0],
        "dynamics_fn": lambda z, a: jnp.where(a == 0, 2.0, -1.0) * z,
        "reward_fn": lambda z, a: 0.0 * z[0],
        "discount_fn": lambda z, a: jnp.ones(()),
    }
    # From 1: states 2 and -1; from 2: 4, -2 and from -1: -2, 1. The maxima of Q are 2z for z > 0 and z for z < 0.
    values = tree.plan_values(jnp.array([1.0]), depth=2, **parts)
    np.testing.assert_allclose(values, [[1.0, 2.0], [4.0, -1.0], [8.0, 2.0]])


@pytest.mark.float64
@pytest.mark.parametrize("branching", [None, 2])
def test_one_action_is_its_column_and_its_slope(branching):
    z, options = jnp.array([0.4, -0.7, 0.2]), {"depth": 3, "branching": branching, **model(4)}

    def one(z, a):
        return tree.action_values(z, a, **options)

    columns = jax.jit(jax.vmap(one, in_axes=(None, 0), out_axes=1))(z, jnp.arange(4))
    np.testing.assert_allclose(columns, planned(4, 3, branching)(z), rtol=1e-12)

    def outcome(x):  # fixed weights, so that no depth can hide behind another
        return one(x, jnp.array(1)) @ jnp.array([1.0, -0.7, 2.0, 0.4])

    np.testing.assert_allclose(jax.grad(outcome)(z), finite_difference(outcome, z), rtol=1e-7, atol=1e-9)


def test_the_slope_between_equal_actions_is_that_of_one_of_them():
    parts = {
        "q_fn": lambda z: jnp.stack([z[0], -z[0]]),
        "dynamics_fn": lambda z, a: z,
        "reward_fn": lambda z, a: 0.0 * z[0],
        "discount_fn": lambda z, a: jnp.ones(()),
    }
    slope = jax.grad(lambda z: tree.plan_values(z, depth=1, **parts)[1, 0])(jnp.zeros(1))
    assert abs(slope[0]) == 1.0


def test_states_of_any_shape_in_a_batch():
    def image(z):
        return z.reshape(1, WIDTH)

    flat = model(4)
    shaped = {
        "q_fn": lambda z: flat["q_fn"](z[0]),
        "dynamics_fn": lambda z, a: image(flat["dynamics_fn"](z[0], a)),
        "reward_fn": lambda z, a: flat["reward_fn"](z[0], a),
        "discount_fn": lambda z, a: flat["discount_fn"](z[0], a),
    }
    zs = jax.random.normal(jax.random.key(0), (2, WIDTH))
    batch = jax.jit(jax.vmap(lambda z: tree.plan_values(image(z), depth=2, branching=2, **shaped)))(zs)
    np.testing.assert_allclose(batch, jnp.stack([planned(4, 2, 2)(z) for z in zs]), rtol=1e-5)


def test_mixing_depths_by_hand():
    values = jnp.array([[1.0, 2.0], [3.0, 6.0], [5.0, -2.0]])
    np.testing.assert_allclose(tree.plan_q(values), [3.0, 2.0])
    # (4 * 1 + 2 * 3 + 1 * 5) / 7 and (8 + 12 - 2) / 7.
    np.testing.assert_allclose(tree.plan_q(values, jnp.array([4.0, 2.0, 1.0])), [15 / 7, 18 / 7], rtol=1e-6)
    with pytest.raises(AssertionError):
        tree.plan_q(values, jnp.ones(2))


def test_a_tree_beyond_memory_says_how_far_it_could_go():
    # 4 (4^0 + ... + 4^(D-1)) states of 12 bytes: 84 * 12 = 1008 at D = 3, 340 * 12 = 4080 at D = 4.
    assert [tree.tree_size(4, 4, depth) for depth in (0, 1, 3, 4)] == [0, 4, 84, 340]
    parts = model(4) | {"memory": 4000}
    z = jnp.zeros(WIDTH, jnp.float32)
    with pytest.raises(InputError, match=r"340 abstract states of 12 bytes.*largest depth that fits, 3"):
        tree.plan_values(z, depth=4, **parts)
    with pytest.raises(InputError, match="largest depth that fits, 4"):
        tree.plan_values(z, depth=400, branching=3, **(parts | {"memory": 2000}))


@pytest.mark.parametrize("bad", [{"depth": -1}, {"depth": 1, "branching": 0}, {"depth": 1, "branching": 5}])
def test_sizes_that_cannot_be_are_refused(bad):
    with pytest.raises(InputError, match=list(bad)[-1]):
        tree.plan_values(jnp.zeros(WIDTH), **bad, **model(4))
