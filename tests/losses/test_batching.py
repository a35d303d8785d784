import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.losses.batching import batched


def noisy_loss(params, example, key):
    x, y = example
    value = params * x + y + jax.random.normal(key)
    return value, {"x": x, "twice": 2 * value}


def test_mean_over_examples_with_one_draw_each():
    key = jax.random.key(0)
    examples = (jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, -1.0]))
    loss, aux = batched(noisy_loss)(2.0, examples, key)
    singles = [noisy_loss(2.0, (x, y), k)[0] for x, y, k in zip(*examples, jax.random.split(key, 3))]
    assert len({round(float(s - 2 * x - y), 6) for s, x, y in zip(singles, *examples)}) == 3
    assert loss == pytest.approx(np.mean(singles), rel=1e-6)
    assert aux["x"] == 2.0
    assert aux["twice"] == pytest.approx(2 * float(loss), rel=1e-6)
