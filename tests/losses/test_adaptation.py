"""Adaptation against finite differences and loops, with a model small enough for both."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxhybrid.errors import InputError
from jaxhybrid.losses.adaptation import (
    Adaptable,
    Outcomes,
    adaptation_loss,
    adapted,
    initial_log_rates,
    outcome_errors,
    outcome_loss,
    prefix_gradients,
    surprise_weights,
)
from tests.oracles import finite_difference

KEY = jax.random.key(0)
SIZES, ACTIONS, STEPS = (3, 2), 2, 5


def logits_fn(params, obs, action):
    inputs = jnp.concatenate([jax.nn.one_hot(obs[0], 3), jax.nn.one_hot(obs[1], 2), jax.nn.one_hot(action, 2)])
    hidden = jnp.tanh(params["in"] @ inputs.astype(params["in"].dtype))
    return params["x"] @ hidden, params["y"] @ hidden + params["bias"]


def model(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in": (3, 7), "x": (3, 3), "y": (2, 3), "bias": (2,)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def outcomes(seed, weight=(1.0, 0.0, 1.0, 1.0, 0.0)):
    rng = np.random.default_rng(seed)
    obs, after = (rng.integers(0, SIZES, size=(STEPS, 2)) for _ in range(2))
    action = rng.integers(0, ACTIONS, STEPS)
    return Outcomes(jnp.asarray(obs), jnp.asarray(action), jnp.asarray(after), jnp.asarray(weight))


def mean_error(params, example):
    total = 0.0
    for t in np.flatnonzero(example.weight):
        step = (example.obs[t], example.action[t], example.next_obs[t])
        total = total + example.weight[t] * outcome_loss(params, step, KEY, logits_fn=logits_fn)[0]
    return total / max(float(np.sum(example.weight)), 1e-300)


SUPPORT, QUERY = outcomes(1), outcomes(2, (1.0, 1.0, 1.0, 2.0, 0.0))
LOSS = partial(adaptation_loss, logits_fn=logits_fn)


@partial(jax.jit, static_argnames="order")
def gradient(params, order):
    return jax.grad(lambda p: LOSS(p, (SUPPORT, QUERY), KEY, order=order)[0])(params)


def with_rates(rate=0.3):
    params = model()
    return Adaptable(params, initial_log_rates(params, rate))


@pytest.mark.float64
def test_ignorance_costs_the_logarithm_of_the_number_of_values():
    zeros = jax.tree.map(jnp.zeros_like, model())
    step = (SUPPORT.obs[0], SUPPORT.action[0], jnp.array([0, 0]))
    loss, aux = outcome_loss(zeros, step, KEY, logits_fn=logits_fn)
    assert loss == pytest.approx(float(np.log(3) + np.log(2)), rel=1e-12) and aux["right"] == 1.0
    assert outcome_loss(zeros, (*step[:2], jnp.array([1, 0])), KEY, logits_fn=logits_fn)[1]["right"] == 0.0


@pytest.mark.float64
@pytest.mark.parametrize("num_steps", [1, 2])
def test_the_second_order_gradient_is_that_of_finite_differences(num_steps):
    flat, unravel = ravel_pytree(with_rates())
    loss = jax.jit(lambda x: LOSS(unravel(x), (SUPPORT, QUERY), KEY, num_steps=num_steps)[0])
    np.testing.assert_allclose(jax.grad(loss)(flat), finite_difference(loss, flat, step=1e-3), rtol=1e-6, atol=1e-9)


@pytest.mark.float64
def test_the_first_order_gradient_is_that_of_the_query_at_the_adapted_model():
    params = Adaptable(model())
    grads = {
        o: jax.grad(lambda p, o=o: LOSS(p, (SUPPORT, QUERY), KEY, order=o)[0])(params) for o in ("first", "second")
    }
    theta = jax.tree.map(lambda x, g: x - 0.1 * g, params.model, jax.grad(mean_error)(params.model, SUPPORT))
    expected = jax.grad(mean_error)(theta, QUERY)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), grads["first"].model, expected)
    first, second = (ravel_pytree(grads[order].model)[0] for order in ("first", "second"))
    assert jnp.linalg.norm(first - second) > 1e-2 * jnp.linalg.norm(second)


@pytest.mark.float64
def test_every_tensor_has_a_rate_that_learns():
    params = with_rates(0.1)
    same = adapted(Adaptable(params.model), SUPPORT, logits_fn=logits_fn, rate=0.1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), adapted(params, SUPPORT, logits_fn=logits_fn), same)
    for order in ("first", "second"):
        assert all(abs(g) > 1e-6 for g in jax.tree.leaves(gradient(params, order).log_rates))


@pytest.mark.float64
def test_adaptation_helps_where_the_query_is_the_support():
    loss, aux = LOSS(Adaptable(model()), (SUPPORT, SUPPORT), KEY)
    assert loss < aux["before"] == aux["support"]
    assert aux["before"] == pytest.approx(float(mean_error(model(), SUPPORT)), rel=1e-12)
    nothing = SUPPORT._replace(weight=jnp.zeros(STEPS))
    kept, aux = LOSS(Adaptable(model()), (nothing, QUERY), KEY)
    assert kept == aux["before"] and aux["support"] == 0.0


@pytest.mark.float64
def test_prefix_gradients_are_those_of_a_loop():
    together = jax.jit(partial(prefix_gradients, logits_fn=logits_fn))(model(), QUERY)
    for t in range(STEPS + 1):
        prefix = QUERY._replace(weight=QUERY.weight * (np.arange(STEPS) < t))
        expected = jax.grad(mean_error)(model(), prefix) if t else jax.tree.map(jnp.zeros_like, model())
        jax.tree.map(lambda g, e, t=t: np.testing.assert_allclose(g[t], e, rtol=1e-10, atol=1e-12), together, expected)


def test_a_padded_step_changes_nothing():
    """Bit for bit, whatever stands in it."""
    params = jax.tree.map(lambda x: x.astype(jnp.float32), with_rates())
    support, query = (e._replace(weight=e.weight.astype(jnp.float32)) for e in (SUPPORT, QUERY))

    def other(example):
        hidden = np.asarray(example.weight) == 0
        changed = {
            name: jnp.where(hidden.reshape((-1,) + (1,) * (x.ndim - 1)), 1 - jnp.minimum(x, 1), x)
            for name, x in example._asdict().items()
            if name != "weight"
        }
        return example._replace(**changed)

    @jax.jit
    def everything(support, query):
        value, grads = jax.value_and_grad(lambda p: LOSS(p, (support, query), KEY)[0])(params)
        return value, grads, prefix_gradients(params.model, support, logits_fn=logits_fn)

    assert (other(support).obs != support.obs).any() and (other(query).action != query.action).any()
    for one, two in zip(*map(jax.tree.leaves, (everything(support, query), everything(other(support), other(query))))):
        np.testing.assert_array_equal(one, two)
    # And a step more adds nothing to the prefix before it.
    _, _, prefixes = everything(support, query)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g[-1], g[-2]), prefixes)


@pytest.mark.float64
def test_surprise_moves_weight_to_what_was_not_expected():
    errors = outcome_errors(model(), QUERY, logits_fn=logits_fn)
    assert errors[-1] == 0.0
    weights = surprise_weights(errors, QUERY.weight, exponent=1.0, floor=0.0)
    assert jnp.sum(weights) == pytest.approx(float(jnp.sum(QUERY.weight)))
    np.testing.assert_allclose(weights * jnp.sum(QUERY.weight * errors), 5.0 * QUERY.weight * errors, rtol=1e-12)
    np.testing.assert_allclose(surprise_weights(errors, QUERY.weight, exponent=0.0), QUERY.weight, rtol=1e-12)
    assert (surprise_weights(errors, jnp.zeros(STEPS)) == 0).all()


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="order='third' is unknown"):
        adapted(Adaptable(model()), SUPPORT, logits_fn=logits_fn, order="third")
    with pytest.raises(InputError, match="num_steps=0 must be at least 1"):
        adapted(Adaptable(model()), SUPPORT, logits_fn=logits_fn, num_steps=0)
    with pytest.raises(AssertionError, match="2 vectors of logits for 3 components"):
        step = (SUPPORT.obs[0], SUPPORT.action[0], jnp.zeros(3, int))
        outcome_loss(model(), step, KEY, logits_fn=logits_fn)
