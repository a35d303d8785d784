"""The memory's own reverse pass against automatic differentiation of the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import memory, packing

T, B, H, I = 4, 3, 2, 3
KEY = jax.random.key(0)


def inputs(dtype=jnp.float64):
    x_key, kernel_key = jax.random.split(KEY)
    return jax.random.normal(x_key, (B, T, 4 * H), dtype), jax.random.normal(kernel_key, (H, 4 * H), dtype)


def plain(projected, kernel):
    """The same as a loop over steps of one sequence."""
    output, cell, found = jnp.zeros(H), jnp.zeros(H), []
    for x in projected:
        output, cell = memory.advance(output, cell, x, kernel)
        found.append(output)
    return jnp.stack(found)


def by_hand(projected, kernel):
    """One sequence in NumPy, gate by gate."""
    output, cell, found = np.zeros(H), np.zeros(H), []
    for x in np.asarray(projected):
        summed = x + output @ np.asarray(kernel)
        write, keep, show = (1.0 / (1.0 + np.exp(-summed[i * H : (i + 1) * H])) for i in range(3))
        cell = keep * cell + write * np.tanh(summed[3 * H :])
        output = show * np.tanh(cell)
        found.append(output)
    return np.stack(found)


@pytest.mark.float64
def test_outputs_are_those_of_the_formulas():
    x, kernel = inputs()
    found = memory.lstm(x, kernel)
    for i in range(B):
        np.testing.assert_allclose(found[i], by_hand(x[i], kernel), rtol=1e-12)


@pytest.mark.float64
def test_gradients_are_those_of_the_steps_for_batches_and_under_vmap():
    x, kernel = inputs()
    weights = jax.random.normal(jax.random.key(1), (B, T, H))

    def total(fn):
        return jax.grad(lambda x, kernel: jnp.sum(weights * fn(x, kernel)), (0, 1))

    @jax.jit
    def gradients(x, kernel):
        # Two leading axes at once, and two kernels side by side.
        twice = jax.grad(lambda x: jnp.sum(weights * memory.lstm(jnp.stack([x, x]), kernel)[1]))
        side_by_side = jax.vmap(total(memory.lstm), in_axes=(None, 0))(x, jnp.stack([-kernel, kernel]))
        automatic = total(jax.vmap(plain, in_axes=(0, None)))(x, kernel)
        return twice(x), jax.tree.map(lambda g: g[1], side_by_side), automatic

    twice, own, automatic = gradients(x, kernel)
    for a, b in zip((twice, *own), (automatic[0], *automatic), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_kernel_of_another_width_is_refused():
    x, kernel = inputs(jnp.float32)
    with pytest.raises(AssertionError):
        memory.lstm(x, kernel[:, :-1])


@pytest.mark.float64
@pytest.mark.parametrize("way", ["loops", "steps"])
def test_packed_sequences_have_the_outputs_and_gradients_of_padded_ones(way, monkeypatch):
    if way == "steps":
        # As on a device that is no CPU.
        monkeypatch.setattr(memory, "_loops_forward", memory._steps_forward)
        monkeypatch.setattr(memory, "_loops_backward", memory._steps_backward)
    lengths = jnp.array([2, 4, 0, 1, 4, 3, 2, 2, 1, 3])
    x_key, project_key, bias_key, kernel_key, weights_key = jax.random.split(KEY, 5)
    x = jax.random.normal(x_key, (10, T, I))
    learnt = memory.Weights(
        jax.random.normal(project_key, (I, 4 * H)),
        jax.random.normal(bias_key, (4 * H,)),
        jax.random.normal(kernel_key, (H, 4 * H)),
    )
    weights = jnp.where(
        (jnp.arange(T)[None] < lengths[:, None])[..., None], jax.random.normal(weights_key, (10, T, H)), 0
    )

    def padded(x, learnt):
        return jnp.sum(weights * memory.lstm(x @ learnt.project + learnt.bias[None, None], learnt.kernel))

    def packed(x, learnt):
        places = packing.pack(lengths, T)
        outputs = memory.packed_lstm(packing.take(places, x), learnt, places)
        return jnp.sum(weights * packing.spread(places, outputs))

    expected, found = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, learnt) for f in (padded, packed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, expected)


def test_rows_that_do_not_fit_the_packing_are_refused():
    places = packing.pack(jnp.array([1, 2]), T)
    weights = memory.Weights(jnp.zeros((I, 4 * H)), jnp.zeros(4 * H), jnp.zeros((H, 4 * H)))
    for rows, inputs in ((places.sequence.size + 1, I), (places.sequence.size, I + 1)):
        with pytest.raises(AssertionError):
            memory.packed_lstm(jnp.zeros((rows, inputs)), weights, places)
