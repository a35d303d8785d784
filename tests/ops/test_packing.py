"""Sequences without their padding: where steps stand, there and back, and what a gradient meets on its way."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxhybrid.ops import packing

B, T = 10, 5
pack = jax.jit(functools.partial(packing.pack, horizon=T))
LENGTHS = st.lists(st.integers(0, T), min_size=B, max_size=B)


@hypothesis.given(LENGTHS)
def test_every_step_stands_once_and_after_the_step_before_it(lengths):
    places = jax.tree.map(np.asarray, pack(jnp.array(lengths)))
    width = places.sequence.shape[1]
    seen = {}
    for block in range(len(places.time)):
        for i in range(width):
            if places.used[block, i]:
                seen[places.sequence[block, i], places.time[block]] = block * width + i
    assert set(seen) == {(b, t) for b in range(B) for t in range(lengths[b])}
    for (b, t), row in seen.items():
        assert places.row[b, t] == row
        assert places.inside[b, t]
        assert row < places.blocks * width
        # A sequence stands in the same group and at the same place of it all along, the longest first.
        group = row // width - places.starts[t]
        assert (group, row % width) == divmod(seen[b, 0], width)
        assert t < places.ends[group]
    assert np.sum(places.inside) == len(seen)
    # Every time at which a number of groups has steps is among its times, and only those.
    blocks = np.bincount(places.time[: places.blocks], minlength=T)
    for groups in range(1, len(places.ends) + 1):
        first, last = places.times(groups)
        assert [t for t in range(T) if blocks[t] == groups] == list(range(first, last))
    # As few blocks as there can be.
    assert places.blocks == sum(-(-sum(n > t for n in lengths) // width) for t in range(T))


@hypothesis.given(LENGTHS)
def test_there_and_back_is_what_was_inside(lengths):
    x = jnp.arange(1.0, 1.0 + B * T * 2).reshape(B, T, 2)
    places = pack(jnp.array(lengths))
    rows = packing.take(places, x)
    inside = np.arange(T)[None, :, None] < np.array(lengths)[:, None, None]
    np.testing.assert_array_equal(packing.spread(places, rows), np.where(inside, x, 0.0))
    np.testing.assert_array_equal(np.sort(rows[rows > 0]), np.sort(x[np.broadcast_to(inside, x.shape)]))


@hypothesis.given(LENGTHS)
def test_every_prefix_has_a_row_and_the_empty_one_is_that_of_all(lengths):
    x, lengths = jnp.arange(1.0, 1.0 + B * T).reshape(B, T), jnp.array(lengths)
    places = pack(lengths)
    rows, count = packing.with_empty(places, packing.take(places, x))
    # The prefix of t steps has the number of its last one.
    expected = np.where(np.arange(T + 1)[None] <= lengths[:, None], np.pad(x, ((0, 0), (1, 0))), 0.0)
    np.testing.assert_array_equal(packing.spread_prefixes(places, rows), expected)
    last = packing.row_of_prefix(places, lengths)
    np.testing.assert_array_equal(rows[last], expected[np.arange(B), lengths])
    assert (last < count).all() and not rows[count:].any()


@pytest.mark.float64
def test_there_and_back_are_each_other_s_gradient():
    places = pack(jnp.array([3, 0, 5, 1, 2, 2, 5, 4, 1, 3]))
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (B, T, 2))
    rows = jax.random.normal(keys[1], (places.sequence.size, 2))
    # <take(x), rows> = <x, take^T(rows)>, of the maps as they are.
    back = jax.grad(lambda x: jnp.sum(packing.take(places, x) * rows))(x)
    assert float(jnp.sum(packing.take(places, x) * rows)) == pytest.approx(float(jnp.sum(x * back)), rel=1e-12)
    back = jax.grad(lambda rows: jnp.sum(packing.spread(places, rows) * x))(rows)
    assert float(jnp.sum(packing.spread(places, rows) * x)) == pytest.approx(float(jnp.sum(rows * back)), rel=1e-12)


def test_lengths_are_one_for_each_sequence():
    with pytest.raises(AssertionError):
        packing.pack(jnp.zeros((2, 3), jnp.int32), T)
