from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.estimators.signal import gradient_snr

KEY = jax.random.key(3)
ROWS, PARTS, DIM, STD = 24, 8, 3, 2.0
MEAN = jnp.array([0.5, -1.0, 0.25])
PARAMS = {"w": jnp.array([1.0, 0.0]), "b": jnp.array(-0.5)}


def grad(params, batch, key):
    """Of ``|params - x|^2 / 2``, averaged over the rows ``x``."""
    del key
    loss = lambda p: jnp.mean(jnp.sum(jnp.square(jnp.append(p["w"], p["b"])[None] - batch), axis=1)) / 2  # noqa: E731
    return jax.grad(loss)(params)


def draw(key, *, num_parts=PARTS):
    batch = MEAN[None] + STD * jax.random.normal(key, (ROWS, DIM))
    return gradient_snr(grad, PARAMS, batch, key, num_parts=num_parts)[1]["snr"]


def expected():
    """``|p - mean|^2`` over the summed variance of a batch's mean, and the bias that the docstring gives."""
    gap = jnp.append(PARAMS["w"], PARAMS["b"]) - MEAN
    snr = float(gap @ gap) / (DIM * STD**2 / ROWS)
    n = DIM * (PARTS - 1)
    return snr, (snr + 1) * n / (n - 2) - 1


def z_score(estimates, truth):
    error = estimates.std(ddof=1) / len(estimates) ** 0.5
    assert error < 0.01 * truth, "a bias of 5 % would not be seen"
    return (estimates.mean() - truth) / error


def test_the_ratio_of_gaussian_gradients():
    estimates = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 20_000)))
    snr, mean = expected()
    assert abs(z_score(estimates, mean)) < 5
    # What noise alone gives, left in; and a twentieth too much.
    assert abs(z_score(estimates + 1, mean)) > 5
    assert abs(z_score(estimates * 1.05, mean)) > 5
    assert mean == pytest.approx(snr, rel=0.15)


def test_the_gradient_is_that_of_the_batch():
    batch = jax.random.normal(KEY, (ROWS, DIM))
    grads, _ = gradient_snr(grad, PARAMS, batch, KEY, num_parts=4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), grads, grad(PARAMS, batch, KEY))


def test_every_part_has_a_draw_of_its_own():
    noise = lambda params, batch, key: {"w": jax.random.normal(key, (2,)), "b": jnp.zeros(())}  # noqa: E731
    _, aux = gradient_snr(noise, PARAMS, jnp.zeros((ROWS, DIM)), KEY, num_parts=4)
    assert np.isfinite(aux["snr"])


@pytest.mark.parametrize("num_parts", [0, 1, 5])
def test_parts_that_do_not_divide_are_refused(num_parts):
    with pytest.raises(InputError, match=f"num_parts={num_parts}"):
        draw(KEY, num_parts=num_parts)
