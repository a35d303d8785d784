import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.ops.gaussian import TanhGaussian
from jaxhybrid.rollout import noise_keys, unroll

WEIGHTS = 0.3 * jax.random.normal(jax.random.key(9), (8, 256))


def step_fn(obs, action, key):
    hidden = jnp.tanh(jnp.tanh(obs @ WEIGHTS) @ WEIGHTS.T)
    noise = 0.1 * jax.random.normal(key, obs.shape)
    return 0.9 * obs + 0.1 * hidden + action[0] + noise, -jnp.sum(obs**2), jnp.ones(())


def policy(gain, obs):
    return TanhGaussian((gain * obs[:2]), jnp.full(2, -0.5))


@functools.partial(jax.jit, static_argnums=2)
def roll(gain, noise, checkpoint=None):
    return unroll(
        jnp.linspace(-1, 1, 8),
        noise,
        act_fn=lambda s, k: policy(gain, s).sample(k),
        step_fn=step_fn,
        checkpoint=checkpoint,
    )


def mean_reward(gain, noise, checkpoint=None):
    path = roll(gain, noise, checkpoint)
    return jnp.mean(path.reward), path


def test_steps_are_those_of_a_loop():
    keys = noise_keys(jax.random.key(0), 6)
    path = roll(0.5, keys)
    obs = jnp.linspace(-1, 1, 8)

    @jax.jit
    def once(obs, action_key, step_key):
        action = policy(0.5, obs).sample(action_key)
        return action, *step_fn(obs, action, step_key)

    for t in range(6):
        np.testing.assert_allclose(path.obs[t], obs, rtol=1e-5)
        action, obs, reward, _ = once(obs, keys[0][t], keys[1][t])
        np.testing.assert_allclose(path.action[t], action, rtol=1e-5)
        assert path.reward[t] == pytest.approx(float(reward), rel=1e-5)
    np.testing.assert_allclose(path.final_obs, obs, rtol=1e-5)
    assert path.discount.shape == (6,)


# 64 steps are eight whole segments, 70 leave a rest of six; both are long enough to be checkpointed by default.
@pytest.mark.parametrize("horizon", [64, 70])
def test_checkpointing_changes_neither_values_nor_gradients(horizon):
    noise = noise_keys(jax.random.key(1), horizon)

    @jax.jit
    def both(gain):
        return tuple(jax.value_and_grad(mean_reward, has_aux=True)(gain, noise, option) for option in (False, None))

    plain, checkpointed = both(0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, checkpointed)


def test_memory_of_the_gradient_grows_like_the_square_root_of_the_length():
    def temp_bytes(horizon, checkpoint):
        noise = noise_keys(jax.random.key(0), horizon)
        gradient = jax.grad(lambda gain, noise: mean_reward(gain, noise, checkpoint)[0])
        return jax.jit(gradient).lower(0.5, noise).compile().memory_analysis().temp_size_in_bytes

    short, long = temp_bytes(256, None), temp_bytes(1024, None)
    assert long <= 2.5 * short
    assert long < 0.2 * temp_bytes(1024, False)


def test_recorded_noise_reproduces_the_sampled_actions():
    keys = noise_keys(jax.random.key(2), 6)
    path = roll(0.5, keys)
    noise = jax.vmap(lambda s, a: policy(0.5, s).infer_noise(a))(path.obs, path.action)
    embed = functools.partial(unroll, act_fn=lambda s, e: policy(0.5, s).reparameterise(e), step_fn=step_fn)
    embedded = jax.jit(embed)(path.obs[0], (noise, keys[1]))
    np.testing.assert_allclose(embedded.action, path.action, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedded.final_obs, path.final_obs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("obs", "noise"),
    [
        (jnp.zeros(8, int), (jnp.zeros(3), jnp.zeros(3))),
        (jnp.zeros((2, 8)), (jnp.zeros(3), jnp.zeros(3))),
        (jnp.zeros(8), (jnp.zeros(3), jnp.zeros(4))),
        (jnp.zeros(8), (jnp.zeros(0), jnp.zeros(0))),
    ],
)
def test_bad_input_is_refused(obs, noise):
    with pytest.raises((AssertionError, ValueError)):
        unroll(obs, noise, act_fn=lambda s, e: s[:2], step_fn=lambda s, a, e: (s, s[0], s[0]))
