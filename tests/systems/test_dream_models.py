"""The extensions of DREAM: what their switches add, what they leave alone, and that padding says nothing to them."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.context_networks import CODE, dueling
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError
from jaxhybrid.losses import adaptation
from jaxhybrid.systems import dream, dream_models, dream_updates
from jaxhybrid.systems.dream_config import VARIANTS, checked
from jaxhybrid.trials import Episode, Trial

KEY = jax.random.key(0)
TOWN = city.make("distraction")
T = TOWN.horizon


def config(**changes):
    return dataclasses.replace(dream.presets["smoke"], **changes)


def walked(actions, task_id, goal, *, exploring):
    """An episode of these actions in plain Python."""
    state, obs = city.reset(TOWN, task_id, jnp.asarray(goal), exploring=exploring)
    seen, steps = [obs], []
    for action in actions:
        state, after = city.step(TOWN, state, jnp.asarray(action))
        seen.append(after.obs)
        steps.append((action, after.reward, 1.0 - after.terminated, 1.0))
    padding = T - len(steps)
    columns = [np.asarray(column + (0,) * padding, np.float32) for column in zip(*steps)]
    obs = jnp.stack(seen + [seen[-1]] * padding)
    return Episode(obs, jnp.asarray(columns[0], jnp.int32), *map(jnp.asarray, columns[1:]))


@functools.cache
def trials():
    """Two trials: one looks where a bus goes, the other gives up at once."""
    made = []
    for task_id, look in ((100, [1, city.RIDE, city.END]), (3, [city.END])):
        exploration = walked(look, task_id, (0, 0), exploring=True)
        execution = walked([1, city.RIDE, 3, 3], task_id, (8, 8), exploring=False)
        made.append(Trial(jnp.array(task_id), jnp.array([8, 8]), exploration, execution))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)


@functools.cache
def adapted_case():
    settings = config(gradient="augment")
    models = dream_models.make_models(settings, TOWN)
    params = jax.jit(partial(dream_models.init_adaptable, models, settings))(KEY)
    features = jax.jit(lambda p, e: jax.vmap(partial(dream_models.prefix_features, models, {"dynamics": p}))(e))
    return models, params, features


def test_every_prefix_has_the_gradient_it_would_adapt_by():
    models, params, features = adapted_case()
    found = features(params, trials().exploration)
    # In the other trial the only step is giving up, which shows nothing.
    assert not any(np.any(leaf[1]) for leaf in jax.tree.leaves(found))
    episode = jax.tree.map(lambda x: x[0], trials().exploration)

    def error(at, t):
        step = (episode.obs[t], episode.action[t], episode.obs[t + 1])
        shifted = partial(models.outcome.shifted, params["model"])
        return adaptation.outcome_loss(at, step, KEY, logits_fn=shifted)[0]

    each = [jax.grad(error)(models.outcome.origin, t) for t in range(2)]
    for name in models.outcome.origin:
        leaf = found[name][0]
        assert not np.any(leaf[0])
        np.testing.assert_allclose(leaf[1], each[0][name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(leaf[2], (each[0][name] + each[1][name]) / 2.0, rtol=1e-4, atol=1e-5)
        # The last step gives up, and what follows is padding.
        np.testing.assert_array_equal(leaf[3:], np.broadcast_to(leaf[2], leaf[3:].shape))


def test_padding_says_nothing_to_the_reader():
    _, params, features = adapted_case()
    episodes = trials().exploration
    past = jnp.concatenate([jnp.zeros((2, 1)), 1.0 - episodes.mask], axis=1)[..., None] > 0
    spoilt = episodes._replace(
        obs=jnp.where(past, 0, episodes.obs), action=jnp.where(episodes.mask > 0, episodes.action, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, features(params, episodes), features(params, spoilt))


def test_both_views_add_up_and_either_can_be_left_out():
    built = dream_updates.make_parts(config(gradient="augment"), TOWN)
    models, params, features = adapted_case()
    seen = features(params, trials().exploration)
    known = {
        "decoder": jax.jit(built.nets.decoder.init)(KEY),
        "reader": jax.jit(models.reader.init)(KEY),
    }
    decode = jax.jit(lambda p: built.decode_fn(p, trials().exploration, seen))
    both, memory, reader = (decode(p) for p in (known, {"decoder": known["decoder"]}, {"reader": known["reader"]}))
    assert both.shape == (2, T + 1, CODE)
    np.testing.assert_allclose(both, memory + reader, rtol=1e-4, atol=1e-4)
    one = models.reader.apply(known["reader"], jax.tree.map(lambda x: x[0, 2], seen))
    np.testing.assert_allclose(reader[0, 2], one, rtol=1e-4, atol=1e-5)


def test_adaptation_learns_from_exploration_what_execution_shows():
    settings = config(gradient="augment", inner_rate=0.1)
    models, params, _ = adapted_case()
    value, aux = jax.jit(lambda p: dream_models.model_loss(models, settings, p, trials(), KEY))(params)
    assert value == aux["after"]
    # The second trial shows nothing to adapt to; in the first, execution repeats what exploration saw.
    assert value < aux["before"]
    support = jax.vmap(dream_models.outcomes)(trials().exploration)
    assert support.weight.sum(axis=1).tolist() == [2.0, 0.0]


@functools.cache
def told_case(**changes):
    settings = config(shared=True, **changes)
    built = dream_updates.make_parts(settings, TOWN)
    policy = built.nets.execution
    execute_key, latent_key = jax.random.split(KEY)
    params = jax.jit(
        lambda: {"policy": policy.init(execute_key), "latent": dream_models.init_latent(built.models, latent_key)}
    )()
    return settings, built, params


def test_a_model_that_is_told_shares_the_embedding_and_not_the_policy():
    settings, built, params = told_case(plan_depth=1)
    steps = jax.tree.map(lambda x: x[:, :1], trials().execution)._replace(obs=trials().execution.obs[:, :2])
    codes = jax.random.normal(KEY, (2, CODE))

    def loss(params, codes, mix):
        numbers = dataclasses.replace(settings, mix=mix)
        batch = (trials(), steps)
        return dream_models.latent_loss(built.models, numbers, built.nets.execution, params, batch, codes, KEY)

    grads, aux = jax.jit(jax.grad(partial(loss, mix=0.5), argnums=(0, 1), has_aux=True))(params, codes)
    assert set(aux) == set(dream_models.LATENT_METRICS)
    policy = grads[0]["policy"]["params"]
    moved = {name: any(np.any(leaf) for leaf in jax.tree.leaves(policy[name])) for name in policy}
    assert moved == {name: name == "state" for name in policy}
    assert all(any(np.any(leaf) for leaf in jax.tree.leaves(part)) for part in grads[0]["latent"].values())
    assert np.any(grads[1])


def test_planning_is_one_step_of_the_model_by_hand():
    settings, built, params = told_case(plan_depth=1)
    policy, latent = built.nets.execution, built.models.latent
    obs, goal, code = jnp.array([4, 5, 1]), jnp.array([8, 8]), jax.random.normal(KEY, (CODE,))

    @jax.jit
    def by_hand(params):
        x, values = policy.embed(params["policy"], obs), []
        for action in range(TOWN.num_actions):
            known = params["latent"]
            after = latent.dynamics.apply(known["dynamics"], x, action, code)
            reward = latent.reward.apply(known["reward"], x, action, goal, code)
            discount = latent.discount.apply(known["discount"], x, action, goal, code)
            values.append(reward + discount * jnp.max(dueling(policy.values(params["policy"], after, goal, code))))
        return jnp.stack(values)

    planned = jax.jit(lambda p: dream_models.planned(built.models, settings, policy, p, obs, goal, code).advantage)(
        params
    )
    np.testing.assert_allclose(planned, by_hand(params), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"plan_depth": 2}, "plan_depth=2 plans without a model"),
        ({"mix": 0.5}, "mix=0.5"),
        ({"shared": True, "recurrent": True}, "shared=True"),
        ({"gradient": "augment", "method": "no_exploration"}, "no context to extend"),
        ({"gradient": "replace_all"}, "gradient='replace_all'"),
        ({"reader": "mlp", "gradient": "augment"}, "reader='mlp'"),
    ],
)
def test_bad_input_is_refused(changes, field):
    with pytest.raises(InputError, match=field):
        checked(config(**changes), "city/distraction")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_switches_that_fit_together(variant):
    assert checked(config(**VARIANTS[variant]), "city/map")
