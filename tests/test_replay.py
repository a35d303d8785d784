import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid.errors import InputError
from jaxhybrid.replay import make_replay

REPLAY = make_replay(5)


def filled(*batches):
    state = REPLAY.init((jnp.zeros(2), jnp.zeros((), bool)))
    add = jax.jit(REPLAY.add)
    for batch in batches:
        values = jnp.asarray(batch, jnp.float32)
        state = add(state, (jnp.stack([values, -values], axis=1), values % 2 == 0))
    return state


def held(state):
    (rows, even), size = REPLAY.contents(state)
    rows, even = rows[: int(size)], even[: int(size)]
    np.testing.assert_array_equal(rows[:, 1], -rows[:, 0])
    np.testing.assert_array_equal(even, rows[:, 0] % 2 == 0)
    return sorted(rows[:, 0].tolist())


def test_the_last_items_are_kept():
    assert held(filled()) == []
    assert held(filled([1, 2, 3])) == [1, 2, 3]
    assert held(filled([1, 2, 3], [4, 5])) == [1, 2, 3, 4, 5]
    # 3 + 3 does not divide the capacity: the second batch wraps around.
    assert held(filled([1, 2, 3], [4, 5, 6])) == [2, 3, 4, 5, 6]
    assert held(filled([1, 2, 3], [4, 5, 6], [7, 8, 9])) == [5, 6, 7, 8, 9]
    # More than fit at once: the newest stay.
    assert held(filled([1, 2, 3], [4, 5, 6, 7, 8, 9, 10])) == [6, 7, 8, 9, 10]


def test_samples_are_uniform_over_what_is_there():
    state = filled([1, 2, 3])
    sample = jax.jit(REPLAY.sample, static_argnums=2)
    rows, _ = sample(state, jax.random.key(0), 3000)  # many more than the capacity
    assert sample(state, jax.random.key(0), 4)[0].shape == (4, 2)
    counts = np.bincount(rows[:, 0].astype(int), minlength=6)
    assert counts[1:4].sum() == 3000
    assert scipy.stats.chisquare(counts[1:4]).pvalue > 1e-6
    np.testing.assert_array_equal(rows, sample(state, jax.random.key(0), 3000)[0])


def test_an_empty_buffer_draws_zeros():
    rows, _ = REPLAY.sample(filled(), jax.random.key(0), 4)
    np.testing.assert_array_equal(rows, np.zeros((4, 2)))


@pytest.mark.parametrize("capacity", [0, -3])
def test_capacity_is_checked(capacity):
    with pytest.raises(InputError, match="capacity"):
        make_replay(capacity)
