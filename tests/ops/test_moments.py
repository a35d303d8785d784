import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import moments

pytestmark = pytest.mark.float64

RNG = np.random.default_rng(0)
# A mean of a thousand standard deviations: a one-pass sum of squares would lose six digits.
DRAWS = {"a": RNG.normal(1000.0, 1.0, (40, 3)), "b": RNG.normal(size=(40,))}


def part(start, stop):
    return moments.of_batch(jax.tree.map(lambda x: jnp.asarray(x[start:stop]), DRAWS))


def test_merged_batches_equal_numpy():
    start = moments.empty(jax.tree.map(lambda x: jnp.asarray(x[0]), DRAWS))
    merged = start
    for a, b in ((0, 7), (7, 8), (8, 40)):
        merged = moments.merge(merged, part(a, b))
    assert merged.count == 40
    for name, draws in DRAWS.items():
        np.testing.assert_allclose(merged.mean[name], draws.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.variance(merged)[name], draws.var(0, ddof=1), rtol=1e-10)
        se = draws.std(0, ddof=1) / 40**0.5
        np.testing.assert_allclose(moments.standard_error(merged)[name], se, rtol=1e-10)
    z = moments.z_score(merged, {"a": np.full(3, 1000.0), "b": np.zeros(())})
    np.testing.assert_allclose(z["b"], DRAWS["b"].mean() / (DRAWS["b"].std(ddof=1) / 40**0.5), rtol=1e-9)


def test_merging_with_nothing_changes_nothing():
    some = part(0, 9)
    nothing = moments.empty(some.mean)
    for merged in (moments.merge(nothing, some), moments.merge(some, nothing)):
        np.testing.assert_allclose(merged.mean["a"], some.mean["a"], rtol=1e-14)
        np.testing.assert_allclose(merged.squared_deviation["a"], some.squared_deviation["a"], rtol=1e-12)
    assert np.isfinite(moments.merge(nothing, nothing).mean["a"]).all()


def test_signal_to_noise():
    both = part(0, 40)
    signal = sum((d.mean(0) ** 2).sum() for d in DRAWS.values())
    noise = sum(d.var(0, ddof=1).sum() for d in DRAWS.values())
    assert moments.signal_to_noise(both) == pytest.approx(signal / noise)


def test_one_draw_has_no_variance():
    assert np.isnan(moments.variance(part(0, 1))["b"])
