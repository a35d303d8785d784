import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import finite
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.rollout_values import batch_rollout_values, rollout_value, score_norms, score_weights
from tests.oracles import check_monte_carlo_mean, finite_difference

S, A = 3, 2


@pytest.mark.float64
def test_rollouts_estimate_the_value_of_the_pair():
    problem = finite.random_problem(jax.random.key(1), S, A, gamma=0.4)
    probs = jax.nn.softmax(jax.random.normal(jax.random.key(2), (S, A)))
    log_transition = jnp.log(problem.transition)

    def step_fn(s, a, key):
        return jax.random.categorical(key, log_transition[s, a]), problem.reward[s, a], jnp.ones(())

    def act_fn(s, key):
        return jax.random.categorical(key, jnp.log(probs[s]))

    def draw(key, s, a, horizon=14, value_fn=None):
        keys = tuple(jax.random.split(k, (2, horizon)) for k in jax.random.split(key))
        return rollout_value(s, a, keys, act_fn=act_fn, step_fn=step_fn, gamma=0.4, value_fn=value_fn)

    q, v = finite.q_values(problem, probs), finite.state_values(problem, probs)
    draws = jax.jit(jax.vmap(lambda k: jnp.stack([draw(k, s, a) for s in range(S) for a in range(A)])))
    keys = jax.random.split(jax.random.key(0), 60_000)
    check_monte_carlo_mean(draws(keys), q.ravel())
    # One step and the exact value after it.
    short = jax.jit(jax.vmap(lambda k: draw(k, 1, 0, horizon=1, value_fn=lambda s: v[s])))
    check_monte_carlo_mean(short(keys)[:, None], q[1, :1])
    # The policy's own first action instead of the given one is a bias that shows.
    with pytest.raises(AssertionError, match="standard errors"):
        check_monte_carlo_mean(short(keys)[:, None], v[1:2])


def test_an_end_stops_the_sum():
    def step_fn(s, a, noise):
        return s + 1.0, s, jnp.where(s >= 2.0, 0.0, 1.0)

    noise = (jnp.zeros((1, 6)), jnp.zeros((1, 6)))
    value = rollout_value(
        jnp.asarray(0.0), jnp.asarray(0.0), noise, act_fn=lambda s, e: e, step_fn=step_fn, gamma=0.5, value_fn=jnp.exp
    )
    assert value == pytest.approx(0.5 * 1.0 + 0.25 * 2.0)


@pytest.mark.float64
@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_score_norms_by_differences(order):
    obs = jax.random.normal(jax.random.key(0), (5, 2))
    action = jax.random.normal(jax.random.key(1), (5, 1))
    params = jnp.array([0.3, -0.4, 0.1])

    def policy_fn(p, s):
        return Gaussian((p[:2] @ s)[None], p[2:])

    expected = [
        np.linalg.norm(finite_difference(lambda p, i=i: policy_fn(p, obs[i]).log_prob(action[i]), params), order)
        for i in range(5)
    ]
    for chunk in (None, 2):
        found = score_norms(params, obs, action, policy_fn=policy_fn, order=order, chunk=chunk)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.float64
def test_weights_of_replayed_steps():
    """One action in state s, mean theta s, deviation 1: the norm of the score is |a - theta s| |s|."""
    obs = jnp.array([[1.0], [2.0], [-1.0], [jnp.nan]])
    action = jnp.array([[1.5], [2.0], [0.0], [0.0]])
    used = jnp.array([True, True, True, False])

    def policy_fn(theta, s):
        return Gaussian(theta * s, jnp.zeros(1))

    def weigh(behaviour, theta=0.5, **changes):
        bound = {"policy_fn": policy_fn, "max_ratio": 3.0} | changes
        return score_weights(jnp.array([theta]), obs, action, behaviour, used, **bound)

    log_prob = -0.5 * jnp.square(jnp.array([1.0, 1.0, 0.5, 0.0])) - 0.5 * np.log(2 * np.pi)
    ratio = np.array([0.5, 2.0, 4.0])
    norms = np.array([1.0, 2.0, 0.5])
    behaviour = log_prob - jnp.log(jnp.append(ratio, 1.0))
    for chunk in (None, 2):
        expected = np.minimum(ratio, 3.0) * norms
        found = weigh(behaviour, chunk=chunk)
        np.testing.assert_allclose(found[:3], expected / expected.mean(), rtol=1e-12)
        assert found[3] == 0.0
    np.testing.assert_allclose(weigh(log_prob)[:3], norms / norms.mean(), rtol=1e-12)
    # Where no action could have been another one, every step counts alike.
    still = score_weights(
        jnp.zeros(1), obs, action, log_prob, used, policy_fn=lambda p, s: Gaussian(s, s), max_ratio=3.0
    )
    np.testing.assert_array_equal(still, [1.0, 1.0, 1.0, 0.0])


def test_certain_actions_have_no_score():
    def policy_fn(p, s):
        return Categorical(jnp.where(s[0] > 0, p, jnp.array([0.0, -jnp.inf])))

    norms = score_norms(jnp.array([0.2, 0.4]), jnp.array([[1.0], [-1.0]]), jnp.array([0, 0]), policy_fn=policy_fn)
    assert norms[0] > 0.1
    assert norms[1] == 0.0


def test_other_orders_are_refused():
    with pytest.raises(AssertionError, match="order=3"):
        score_norms(jnp.ones(1), jnp.ones((1, 1)), jnp.ones((1, 1)), policy_fn=None, order=3)


def test_a_batch_of_values_is_that_of_its_pairs():
    def step_fn(s, a, e):
        following = 0.9 * s + 0.2 * a[0] + 0.1 * e
        return following, -jnp.sum(s**2) + a[0], jnp.where(following[0] > 1.5, 0.0, 1.0)

    def act_fn(s, e):
        return -0.3 * s[:1] + 0.5 * e

    obs, action = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.normal(jax.random.key(1), (4, 1))
    key, bound = jax.random.key(2), {"act_fn": act_fn, "step_fn": step_fn, "gamma": 0.9, "value_fn": jnp.sum}
    found = batch_rollout_values(obs, action, key, num_rollouts=3, horizon=5, **bound)
    # The same noise, drawn from where the batch draws it: [H, M, B, ...].
    keys = jax.vmap(jax.random.split)(jax.random.split(key, 5))
    steps = jax.vmap(lambda k: jax.random.normal(k, (3, 4, 2)))(keys[:, 0])
    acts = jax.vmap(lambda k: jax.random.normal(k, (3, 4, 1)))(keys[:, 1])
    # There the noise of an action is drawn with the step before it, the last one's is not used.
    acts = jnp.roll(acts, 1, axis=0)
    each = [
        rollout_value(obs[b], action[b], (acts[:, :, b].swapaxes(0, 1), steps[:, :, b].swapaxes(0, 1)), **bound)
        for b in range(4)
    ]
    np.testing.assert_allclose(found, each, rtol=1e-5)
    # Mirrored: the same noise as of one roll-out, and its opposite.
    mirrored = batch_rollout_values(obs, action, key, num_rollouts=2, horizon=5, antithetic=True, **bound)
    steps = jax.vmap(lambda k: jax.random.normal(k, (1, 4, 2)))(keys[:, 0])
    acts = jnp.roll(jax.vmap(lambda k: jax.random.normal(k, (1, 4, 1)))(keys[:, 1]), 1, axis=0)
    acts, steps = (jnp.concatenate([x, -x], axis=1) for x in (acts, steps))
    each = [
        rollout_value(obs[b], action[b], (acts[:, :, b].swapaxes(0, 1), steps[:, :, b].swapaxes(0, 1)), **bound)
        for b in range(4)
    ]
    np.testing.assert_allclose(mirrored, each, rtol=1e-5)
    with pytest.raises(AssertionError, match="num_rollouts=3 must be even"):
        batch_rollout_values(obs, action, key, num_rollouts=3, horizon=5, antithetic=True, **bound)
