import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid.ops.categorical import Categorical

PROBS = np.array([0.5, 0.3, 0.2])


@pytest.mark.float64
def test_against_scipy():
    record, other = Categorical(jnp.log(PROBS) + 3.0), Categorical(jnp.zeros(3))
    np.testing.assert_allclose(record.probs(), PROBS, rtol=1e-12)
    assert record.log_prob(jnp.asarray(2)) == pytest.approx(np.log(0.2))
    assert record.entropy() == pytest.approx(scipy.stats.entropy(PROBS))
    assert record.kl(other) == pytest.approx(scipy.stats.entropy(PROBS, np.full(3, 1 / 3)))
    assert record.mode() == 0


def test_sampling_frequencies_and_convention():
    record = Categorical(jnp.log(PROBS))
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions, log_probs = jax.vmap(record.sample_and_log_prob)(keys)
    assert scipy.stats.chisquare(np.bincount(actions, minlength=3), 20_000 * PROBS).pvalue > 1e-6
    np.testing.assert_allclose(log_probs, np.log(PROBS)[np.asarray(actions)], rtol=1e-5)
    assert jax.vmap(record.sample)(keys[:5]).tolist() == actions[:5].tolist()


def test_forbidden_actions_have_no_part_in_anything():
    logits = jnp.array([0.0, -jnp.inf, 0.0])
    record = Categorical(logits)
    np.testing.assert_allclose(record.probs(), [0.5, 0.0, 0.5])
    assert record.entropy() == pytest.approx(np.log(2))
    assert record.kl(Categorical(jnp.zeros(3))) == pytest.approx(np.log(1.5))
    assert record.kl(record) == 0
    assert Categorical(jnp.zeros(3)).kl(record) == jnp.inf
    assert record.log_prob(jnp.asarray(1)) == -jnp.inf
    assert 1 not in jax.vmap(record.sample)(jax.random.split(jax.random.key(0), 1000))


@pytest.mark.parametrize(
    "fn",
    [Categorical.entropy, lambda c: c.kl(Categorical(jnp.zeros(3))), lambda c: c.log_prob(jnp.asarray(0))],
)
def test_gradients_next_to_a_forbidden_action_are_finite(fn):
    grad = jax.grad(lambda logits: fn(Categorical(logits)))(jnp.array([0.0, -jnp.inf, 1.0]))
    assert np.isfinite(grad).all()
