import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops import filters, moments

OBS = jnp.array([[1.0, 5.0, -2.0], [3.0, 5.0, 0.0], [8.0, 5.0, 4.0], [0.0, 5.0, 2.0]])


def test_batches_add_up_to_all_that_was_seen():
    seen = moments.merge(moments.of_batch(OBS[:1]), moments.of_batch(OBS[1:]))
    mean, std = filters.scales(seen)
    np.testing.assert_allclose(mean, np.mean(OBS, axis=0), rtol=1e-6)
    # The second coordinate never moved: nothing is known of its scale.
    np.testing.assert_allclose(std, [np.std(OBS[:, 0], ddof=1), 1.0, np.std(OBS[:, 2], ddof=1)], rtol=1e-6)
    whitened = jax.vmap(lambda o: filters.standardise(seen, o))(OBS)
    np.testing.assert_allclose(np.mean(whitened, axis=0), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(np.std(whitened, axis=0, ddof=1), [1.0, 0.0, 1.0], atol=1e-6)


def test_before_anything_was_seen_observations_pass():
    nothing = moments.empty(jnp.zeros(3))
    np.testing.assert_array_equal(filters.standardise(nothing, OBS[0]), OBS[0])
    np.testing.assert_array_equal(filters.standardise(moments.of_batch(OBS[:1]), OBS[2], limit=20.0), OBS[2])


def test_limits_and_slope():
    seen = moments.of_batch(OBS)
    std = filters.scales(seen)[1]
    far = jnp.array([1e3, 5.0, -1e3])
    np.testing.assert_array_equal(filters.standardise(seen, far, limit=4.0), [4.0, 0.0, -4.0])
    slope = jax.jacobian(lambda o: filters.standardise(seen, o))
    np.testing.assert_allclose(slope(OBS[0]), jnp.diag(1.0 / std), rtol=1e-6)
    np.testing.assert_array_equal(jnp.diag(slope(far)), jnp.array([0.0, 1.0, 0.0]))
    with pytest.raises(AssertionError):
        filters.standardise(seen, OBS)
