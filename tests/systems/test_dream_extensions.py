"""The extensions of DREAM, all switched on at once in a single update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.context_networks import CODE, dueling
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError
from jaxhybrid.latent_networks import latent_model
from jaxhybrid.systems import dream_extensions, dream_updates
from jaxhybrid.systems.dream_config import VARIANTS, Config, checked, presets
from jaxhybrid.trials import Episode, Trial

KEY = jax.random.key(0)
TOWN = city.make()
ALL = {"gradient": "augment", "inner_rates": "learned", "surprise": 1.0} | VARIANTS["planning-mixed"]
SIZE, LENGTH = 4, 6


@functools.cache
def parts():
    config = dataclasses.replace(presets["smoke"], gradient_rank=2, **ALL)
    return dream_updates.make_parts(checked(config, "city/distraction"), TOWN)


@functools.cache
def agents():
    return jax.jit(functools.partial(dream_updates.init_agents, parts()))(KEY)


def episodes(seed):
    """Whatever might have happened, ``[B, ...]``, with an end after a few steps."""
    rng = np.random.default_rng(seed)
    obs = rng.integers(0, (9, 9, 2), size=(SIZE, TOWN.horizon + 1, 3))
    mask = np.tile(np.arange(TOWN.horizon) < LENGTH, (SIZE, 1)).astype(np.float32)
    action = rng.integers(0, 9, size=mask.shape)
    return Episode(*map(jnp.asarray, (obs, action, -0.1 * mask, mask, mask)))


def trials():
    return Trial(jnp.arange(SIZE), jnp.full((SIZE, 2), 8), episodes(1), episodes(2))


def test_every_extension_trains_what_it_adds():
    params, batch = agents()["execution"].params, trials()
    contexts = jnp.ones((SIZE, CODE))

    @jax.jit
    def slopes(params):
        def loss(params):
            found = [each.loss_fn(params, batch, batch.execution, contexts, KEY) for each in parts().extensions]
            return sum(value for value, _ in found), [metrics for _, metrics in found]

        return jax.grad(loss, has_aux=True)(params)

    grads, metrics = slopes(params)
    assert [set(each) for each in metrics] == [set(each.metrics) for each in parts().extensions]
    assert all(np.isfinite(value) for each in metrics for value in each.values())
    learns = {name: any(jnp.any(g != 0) for g in jax.tree.leaves(grads[name])) for name in grads}
    # The gradients' reader learns from the decoder's loss; the policy's states serve the model.
    assert learns == {name: name in ("model", "latent", "policy") for name in grads}
    assert all(g != 0 for g in jax.tree.leaves(grads["model"].log_rates))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(grads["policy"]["params"]["state"]))


@pytest.mark.slow
def test_one_update_trains_everything_and_logs_what_it_says():
    batch = trials()
    update = jax.jit(functools.partial(dream_updates.execution_update, parts()))
    after, metrics = update(agents(), (batch, batch.execution), jnp.array(False), jnp.array(16), KEY)
    assert set(metrics) == set(parts().metrics["execution"])
    assert {"adapted", "before", "support", "transition", "disambiguation", "reward", "discount"} < set(metrics)
    assert all(np.isfinite(value) for value in metrics.values())
    before = agents()["execution"].params
    changed = jax.tree.map(lambda x, y: jnp.any(x != y), after.params, before)
    for name in ("model", "reader", "join", "latent", "policy", "decoder"):
        assert any(jax.tree.leaves(changed[name])), name
    assert all(jax.tree.leaves(changed["model"].log_rates))


def test_gradients_are_read_without_bending_the_model():
    extension, episode = parts().extensions[0], jax.tree.map(lambda x: x[0], episodes(1))
    codes = jnp.zeros((TOWN.horizon + 1, CODE))

    @jax.jit
    def read(params, episode):
        def total(params):
            found = extension.read_fn(params, codes, episode)
            return jnp.sum(jnp.square(found)), found

        return jax.grad(total, has_aux=True)(params)

    params = agents()["execution"].params
    slopes, found = read(params, episode)
    assert found.shape == codes.shape
    assert not any(jnp.any(g != 0) for g in jax.tree.leaves(slopes["model"]))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(slopes["join"]))
    # The prefixes of an episode differ up to its end and not past it, whatever stands there: bit for bit.
    assert (found[LENGTH] != found[LENGTH - 1]).any() and (found[LENGTH:] == found[LENGTH][None]).all()
    garbage = jax.tree.map(lambda x: x[1], episodes(3))._replace(mask=episode.mask)
    past = [jnp.arange(len(x)) >= LENGTH + (name == "obs") for name, x in episode._asdict().items()]
    other = Episode(
        *(jnp.where(hidden.reshape(-1, *[1] * (x.ndim - 1)), y, x) for hidden, x, y in zip(past, episode, garbage))
    )
    assert (other.obs != episode.obs).any()
    np.testing.assert_array_equal(read(params, other)[1], found)


def test_one_step_ahead_is_the_reward_and_what_the_best_action_is_worth_there():
    config, nets = parts().config, parts().nets
    params, latent = agents()["execution"].params, latent_model(CODE, CODE, (9, 9), 9, gamma=config.gamma)
    obs, goal, code = jnp.array([4, 5, 1]), jnp.array([8, 8]), jnp.linspace(-1, 1, CODE)

    @jax.jit
    def both(params):
        heads = dream_extensions.planned_heads(config, TOWN, nets, params, obs, goal, code)
        x, weights = nets.embed(params["policy"], obs), params["latent"]

        def ahead(action):
            after = latent.dynamics.apply(weights["dynamics"], x, action, code)
            best = jnp.max(dueling(nets.values_of(params["policy"], after, goal, code)))
            reward = latent.reward.apply(weights["reward"], x, action, goal, code)
            return reward + latent.discount.apply(weights["discount"], x, action, goal, code) * best

        plain = nets.execution.apply(params["policy"], obs[None], goal, code)
        return (
            dueling(heads),
            jax.vmap(ahead)(jnp.arange(9)),
            dueling(plain)[0],
            dueling(nets.values_of(params["policy"], x, goal, code)),
        )

    planned, by_hand, plain, from_state = both(params)
    np.testing.assert_allclose(planned - planned.mean(), by_hand - by_hand.mean(), atol=1e-5)
    np.testing.assert_allclose(from_state, plain, atol=1e-5)
    assert jnp.max(jnp.abs(planned - plain)) > 1e-3


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"planning_depth": 2}, "planning_depth=2 plans on a task without a model"),
        ({"planning_depth": 2, "model": "shared"}, "planning_depth=2 plans on a task without a model"),
        ({"planning_depth": 1, "model": "planning", "recurrent": True}, "recurrent=True hides"),
        ({"mix": 0.5}, r"mix=0\.5 is a share of what a model learns from"),
        ({"gradient": "augment", "method": "no_exploration"}, "method='no_exploration' does without a code"),
        ({"reader": "graph"}, "reader='graph' is unknown"),
    ],
)
def test_extensions_without_what_they_extend_are_refused(fields, why):
    with pytest.raises(InputError, match=why):
        checked(Config(**fields), "city/distraction")


def test_plain_dream_has_no_extension():
    plain = dream_updates.make_parts(presets["smoke"], TOWN)
    assert plain.extensions == () and set(plain.metrics["execution"]) < set(parts().metrics["execution"])
