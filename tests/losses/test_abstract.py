from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxhybrid.errors import InputError
from jaxhybrid.losses import abstract
from jaxhybrid.losses.batching import batched
from jaxhybrid.types import Transition
from tests.oracles import finite_difference

KEY = jax.random.key(0)
POSITIONS, CHANNELS, WIDTH = 2, 3, 4


def encode_fn(params, obs):
    return jnp.tanh(jnp.tensordot(params["encoder"], obs, axes=1)) * 1.5


def dynamics_fn(params, z, action):
    return z + params["dynamics"] * (action - 0.5)


def head_fn(params, z, action):
    return jnp.sum(params["head"] * z) + 0.1 * action


PARTS = {
    "transition": (abstract.transition_loss, {"encode_fn": encode_fn, "dynamics_fn": dynamics_fn}),
    "reward": (abstract.reward_loss, {"encode_fn": encode_fn, "reward_fn": head_fn}),
    "discount": (abstract.discount_loss, {"encode_fn": encode_fn, "discount_fn": head_fn, "gamma": 0.9}),
    "disambiguation": (abstract.disambiguation_loss, {"encode_fn": encode_fn}),
    "volume": (abstract.volume_loss, {"encode_fn": encode_fn}),
}


def case(seed=0):
    """Parameters and a batch of four steps, the third one terminal."""
    rng = np.random.default_rng(seed)
    shape = (POSITIONS, CHANNELS)
    params = {
        "encoder": jnp.array(rng.normal(size=(*shape, WIDTH))),
        "dynamics": jnp.array(rng.normal(size=shape)),
        "head": jnp.array(rng.normal(size=shape)),
    }
    return params, Transition(
        obs=jnp.array(rng.normal(size=(4, WIDTH))),
        action=jnp.array([0, 1, 2, 1]),
        reward=jnp.array(rng.normal(size=4)),
        discount=jnp.array([1.0, 1.0, 0.0, 1.0]),
        next_obs=jnp.array(rng.normal(size=(4, WIDTH))),
    )


def examples(name, batch):
    return {"disambiguation": abstract.rolled_pairs(batch.obs), "volume": batch.obs}.get(name, batch)


def value(name, **knobs):
    params, batch = case()
    loss, bound = PARTS[name]
    return float(batched(partial(loss, **(bound | knobs)))(params, examples(name, batch), KEY)[0])


def encodings():
    params, batch = case()
    both = [np.tanh(np.einsum("pcd,bd->bpc", params["encoder"], x)) * 1.5 for x in (batch.obs, batch.next_obs)]
    return params, batch, *both


@pytest.mark.float64
def test_the_losses_of_a_batch_by_their_formulas():
    params, batch, z, next_z = encodings()
    a = np.asarray(batch.action)
    predicted = z + np.asarray(params["dynamics"])[None] * (a - 0.5)[:, None, None]
    error = np.asarray(batch.discount)[:, None, None] * (predicted - next_z)
    assert value("transition") == pytest.approx(np.mean(error**2))
    assert value("transition", error="absolute") == pytest.approx(np.mean(np.abs(error)))
    head = np.einsum("bpc,pc->b", z, params["head"]) + 0.1 * a
    assert value("reward") == pytest.approx(np.mean((batch.reward - head) ** 2))
    assert value("discount") == pytest.approx(np.mean((0.9 * batch.discount - head) ** 2))
    assert value("discount", error="absolute") == pytest.approx(np.mean(np.abs(0.9 * batch.discount - head)))
    apart = np.sum((z - np.roll(z, 1, axis=0)) ** 2, axis=(1, 2))
    assert value("disambiguation") == pytest.approx(np.mean(np.exp(-5.0 * np.sqrt(np.minimum(apart, 10.0)))))
    unclipped = value("disambiguation", sharpness=0.5, max_square=np.inf)
    assert unclipped == pytest.approx(np.mean(np.exp(-0.5 * np.sqrt(apart))))


@pytest.mark.float64
def test_the_readings_of_the_volume():
    _, _, z, _ = encodings()
    assert np.abs(z).max() > 1.0 > np.abs(z).min()
    per_position = np.maximum(np.max(z**2, axis=-1) - 1.0, 0.0)
    assert value("volume") == pytest.approx(np.mean(per_position))
    assert value("volume", bound="whole") == pytest.approx(np.mean(np.max(z**2, axis=(1, 2)) - 1.0))
    assert value("volume", bound="printed") == pytest.approx(np.mean(np.max(np.abs(z - 1.0), axis=(1, 2))))
    capped = np.mean(np.minimum(per_position, 0.5))
    assert value("volume", max_excess=0.5) == pytest.approx(capped)
    assert capped < value("volume")


@pytest.mark.float64
@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_finite_differences(name):
    params, batch = case()
    loss, bound = PARTS[name]
    # A softer repulsion, so that its slope is not lost in rounding.
    knobs = {"sharpness": 0.5, "max_square": np.inf} if name == "disambiguation" else {}
    flat, unflatten = ravel_pytree(params)

    def total(x):
        return batched(partial(loss, **bound, **knobs))(unflatten(x), examples(name, batch), KEY)[0]

    gradient = jax.grad(total)(flat)
    np.testing.assert_allclose(gradient, finite_difference(total, flat), rtol=1e-6, atol=1e-9)
    assert np.any(unflatten(gradient)["encoder"] != 0)


@pytest.mark.float64
def test_the_encoder_is_drawn_from_both_ends_of_a_step():
    params, batch = case()
    step = jax.tree.map(lambda x: x[0], batch)
    loss, bound = PARTS["transition"]
    held = params["encoder"]

    def one_end(encoder, free):
        def encode(_, obs):  # tells the ends apart by their values, which a loss has no other use for
            weight = jnp.where(jnp.all(obs == free), encoder, held)
            return encode_fn({"encoder": weight}, obs)

        return loss(params, step, KEY, **(bound | {"encode_fn": encode}))[0]

    whole = jax.grad(lambda e: loss(params | {"encoder": e}, step, KEY, **bound)[0])(held)
    parts = [jax.grad(one_end)(held, end) for end in (step.obs, step.next_obs)]
    assert all(np.any(part != 0) for part in parts)
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-9, atol=1e-12)


def test_equal_and_distant_pairs_have_no_slope():
    params, batch = case()
    loss, bound = PARTS["disambiguation"]
    obs = batch.obs[0]
    for pair, knobs in (((obs, obs), {}), ((obs, -obs), {"max_square": 0.01})):
        gradient = jax.grad(lambda p, pair=pair, knobs=knobs: loss(p, pair, KEY, **bound, **knobs)[0])(params)
        assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(gradient))


def test_pairs_go_round():
    first, second = abstract.rolled_pairs(jnp.arange(3.0)[:, None])
    np.testing.assert_array_equal(first[:, 0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(second[:, 0], [2.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("name", "knobs", "near"),
    [("transition", {"error": "square"}, "'squared'"), ("volume", {"bound": "hole"}, "whole")],
)
def test_unknown_readings_are_refused(name, knobs, near):
    with pytest.raises(InputError, match=near):
        value(name, **knobs)
