import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.losses import context
from jaxhybrid.losses.batching import batched
from tests.oracles import finite_difference

T, Z = 5, 3
KEY = jax.random.key(0)


def trajectory(length, seed=0):
    rng = np.random.default_rng(seed)
    codes, code = rng.normal(size=(T + 1, Z)), rng.normal(size=Z)
    mask = (np.arange(T) < length).astype(float)
    return tuple(jnp.asarray(x, jnp.float32) for x in (codes, code, mask))


@pytest.mark.parametrize("length", [0, 1, 3, T])
def test_exploration_rewards_telescope(length):
    codes, code, mask = trajectory(length)
    rewards = context.exploration_rewards(codes, code, mask, penalty=0.1)
    first, last = (float(jnp.sum((codes[t] - code) ** 2)) for t in (0, length))
    assert float(jnp.sum(rewards)) == pytest.approx(first - last - 0.1 * length, abs=1e-5)
    assert np.all(rewards[length:] == 0.0)


def test_the_reward_of_every_step_is_what_it_adds():
    codes, code, mask = trajectory(T)
    rewards = context.exploration_rewards(codes, code, mask, penalty=0.2)
    for t in range(T):
        gained = np.sum((codes[t] - code) ** 2) - np.sum((codes[t + 1] - code) ** 2)
        assert float(rewards[t]) == pytest.approx(float(gained) - 0.2, abs=1e-5)


def decode(params, trajectory):
    return jnp.sin(trajectory @ params)


def examples():
    rng = np.random.default_rng(1)
    mask = np.arange(T)[None] < np.array([[2], [5]])
    return tuple(jnp.asarray(x, float) for x in (rng.normal(size=(2, T + 1, 2)), mask, rng.normal(size=(2, Z))))


@pytest.mark.float64
def test_the_decoder_loss_is_the_mean_over_all_prefixes_of_a_batch():
    params = jnp.asarray(np.random.default_rng(2).normal(size=(2, Z)))
    inputs, mask, code = examples()
    lengths = np.sum(np.asarray(mask), axis=1).astype(int)
    loss = functools.partial(context.decoder_loss, decode_fn=decode, num_prefixes=np.mean(lengths + 1.0))
    errors = [
        np.sum((np.sin(np.asarray(inputs[i, t]) @ np.asarray(params)) - np.asarray(code[i])) ** 2)
        for i in range(2)
        for t in range(lengths[i] + 1)
    ]
    value, aux = batched(loss)(params, (inputs, mask, code), KEY)
    assert float(value) == pytest.approx(np.mean(errors), rel=1e-12)
    assert float(aux["first_error"]) == pytest.approx(np.mean([errors[0], errors[lengths[0] + 1]]), rel=1e-12)
    assert float(aux["last_error"]) == pytest.approx(np.mean([errors[lengths[0]], errors[-1]]), rel=1e-12)

    def total(p):
        return batched(loss)(p, (inputs, mask, code), KEY)[0]

    np.testing.assert_allclose(jax.grad(total)(params), finite_difference(total, params), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("padding", [1e30, jnp.inf, jnp.nan])
def test_padding_changes_nothing(padding):
    params = jnp.asarray(np.random.default_rng(2).normal(size=(2, Z)), jnp.float32)
    inputs, mask, code = (x.astype(jnp.float32)[0] for x in examples())
    grad_fn = jax.jit(
        jax.value_and_grad(lambda p, codes: context.decoder_loss(p, (codes, mask, code), KEY, decode_fn=decode)[0])
    )
    clean, spoilt = grad_fn(params, inputs), grad_fn(params, inputs.at[3:].add(7.0))
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)
    past = jnp.where(jnp.arange(T + 1) < 3, 0.0, padding)[:, None]
    spoilt = jax.jit(
        jax.value_and_grad(
            lambda p: context.decoder_loss(p, (inputs, mask, code), KEY, decode_fn=lambda p, x: decode(p, x) + past)[0]
        )
    )(params)
    jax.tree.map(np.testing.assert_array_equal, clean, spoilt)
    codes = decode(params, inputs)
    rewards = [context.exploration_rewards(c, code, mask, penalty=0.1) for c in (codes, codes.at[3:].set(padding))]
    np.testing.assert_array_equal(*rewards)


@pytest.mark.float64
@pytest.mark.parametrize(("scale", "pulled"), [(1.0, False), (2.0, True)])
def test_the_bottleneck_pulls_long_codes_only(scale, pulled):
    table = scale * jnp.array([[1.0, 2.0, 2.0]])
    loss = functools.partial(context.bottleneck_loss, encode_fn=lambda p, i: p[i], bound=10.0)
    (value, aux), grad = jax.value_and_grad(loss, has_aux=True)(table, jnp.array(0), KEY)
    square = 9.0 * scale**2
    assert float(aux["square"]) == pytest.approx(square)
    assert float(value) == max(square, 10.0)
    np.testing.assert_allclose(grad, 2.0 * table if pulled else jnp.zeros_like(table))


def test_lengths_that_do_not_fit_are_refused():
    codes, code, mask = trajectory(2)
    with pytest.raises(AssertionError):
        context.prefix_errors(codes[:-1], code, mask)
