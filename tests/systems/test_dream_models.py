"""What the extensions of DREAM compute, apart from the step that they are part of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.context_layers import CODE
from jaxhybrid.context_networks import dueling, make_networks
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError
from jaxhybrid.systems import dream_models, dream_parts
from jaxhybrid.systems.dream_config import VARIANTS, checked, presets
from jaxhybrid.trials import Episode, Trial

KEY = jax.random.key(0)
TOWN = city.make()
SIZE, LENGTH = 4, 6


@functools.cache
def case():
    """Numbers and networks with every extension switched on."""
    fields = {"gradient": "augment", "learned_rates": True, "surprise": 1.0} | VARIANTS["planning-mixed"]
    config = checked(dataclasses.replace(presets["smoke"], **fields), "city/distraction")
    nets = make_networks(TOWN.obs_sizes, (9, 9), num_actions=9, num_ids=576)
    return config, dream_models.make_models(config, TOWN), nets.execution


@functools.cache
def drawn():
    """Parameters of the model that is adapted, of its reader, and of the execution agent."""
    config, models, policy = case()

    @jax.jit
    def init(key):
        keys = jax.random.split(key, 4)
        executor = {"policy": policy.init(keys[0]), "latent": dream_models.init_latent(models, keys[1])}
        return dream_models.init_adaptable(models, config, keys[2]), models.reader.init(keys[3]), executor

    return init(KEY)


def episodes(seed):
    """Whatever might have happened, ``[B, ...]``, with an end after a few steps."""
    rng = np.random.default_rng(seed)
    obs = rng.choice(city.observations(TOWN), size=(SIZE, TOWN.horizon + 1))
    mask = np.tile(np.arange(TOWN.horizon) < LENGTH, (SIZE, 1)).astype(np.float32)
    action = rng.integers(0, 9, size=mask.shape)
    return Episode(*map(jnp.asarray, (obs, action, -0.1 * mask, mask, mask)))


def trials():
    return Trial(jnp.arange(SIZE), jnp.full((SIZE, 2), 8), episodes(1), episodes(2))


def with_other_padding(episode):
    """The same episode, with something else past its end."""
    other = jax.tree.map(lambda x: x[1], episodes(3))._replace(mask=episode.mask)
    past = [jnp.arange(len(x)) >= LENGTH + (name == "obs") for name, x in episode._asdict().items()]
    parts = zip(past, episode, other)
    return Episode(*(jnp.where(hidden.reshape(-1, *[1] * (x.ndim - 1)), y, x) for hidden, x, y in parts))


def test_what_is_read_of_an_episode_depends_on_its_steps_alone():
    """Bit for bit, whatever stands past its end."""
    _, models, _ = case()
    model, reader, _ = drawn()

    @jax.jit
    def read(episode):
        features = dream_models.prefix_features(models, {"dynamics": model}, episode)
        length = jnp.sum(episode.mask).astype(jnp.int32)
        batch = jax.tree.map(lambda x: x[None], features)
        prefixes = dream_models.read_packed(models, reader, batch, length[None])[0]
        return prefixes, dream_models.read_whole(models, reader, features, length)

    episode = jax.tree.map(lambda x: x[0], episodes(1))
    (found, whole), other = read(episode), with_other_padding(episode)
    assert (other.obs != episode.obs).any() and (other.action != episode.action).any()
    for one, same in zip((found, whole), read(other), strict=True):
        np.testing.assert_array_equal(one, same)
    # Prefixes differ up to the end; there are none past it.
    assert found.shape == (TOWN.horizon + 1, CODE)
    assert (found[LENGTH] != found[LENGTH - 1]).any() and (found[LENGTH + 1 :] == 0.0).all()
    np.testing.assert_allclose(whole, found[LENGTH], rtol=1e-5, atol=1e-5)


def test_every_model_learns_all_of_itself_and_the_states_of_the_policy_serve_one():
    config, models, policy = case()
    model, _, executor = drawn()
    batch, codes = trials(), jnp.ones((SIZE, CODE))
    first = jax.tree.map(lambda x: x[:, :1], batch.execution)._replace(obs=batch.execution.obs[:, :2])

    @jax.jit
    def slopes(model, executor):
        adapted = jax.grad(lambda p: dream_models.model_loss(models, config, p, batch, KEY), has_aux=True)
        latent = functools.partial(dream_models.latent_loss, models, config, policy)
        told = jax.grad(lambda p: latent(p, (batch, first), codes, KEY), has_aux=True)
        return adapted(model), told(executor)

    (of_model, adapting), (of_executor, telling) = slopes(model, executor)
    assert set(adapting) == {"after", "before", "support"} and set(telling) == set(dream_models.LATENT_METRICS)
    assert all(np.isfinite(value) for value in [*adapting.values(), *telling.values()])
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(of_model) if g.ndim > 1)
    assert all(g != 0 for g in jax.tree.leaves(of_model["log_rates"]))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(of_executor["latent"]) if g.ndim > 1)
    served = {
        name: any(jnp.any(g != 0) for g in jax.tree.leaves(part))
        for name, part in of_executor["policy"]["params"].items()
    }
    assert served == {name: name == "state" for name in served}


def test_one_step_ahead_is_the_reward_and_what_the_best_action_is_worth_there():
    config, models, policy = case()
    _, _, executor = drawn()
    obs, goal, code = jnp.array([4, 5, 1]), jnp.array([8, 8]), jnp.linspace(-1, 1, CODE)

    @jax.jit
    def both(executor):
        heads = dream_models.planned(models, config, policy, executor, obs, goal, code)
        x, latent = policy.embed(executor["policy"], obs), executor["latent"]

        def ahead(action):
            after = models.latent.dynamics.apply(latent["dynamics"], x, action, code)
            best = jnp.max(dueling(policy.values(executor["policy"], after, goal, code)))
            reward = models.latent.reward.apply(latent["reward"], x, action, goal, code)
            return reward + models.latent.discount.apply(latent["discount"], x, action, goal, code) * best

        plain = dueling(policy.apply(executor["policy"], obs[None], goal, code))[0]
        return dueling(heads), jax.vmap(ahead)(jnp.arange(9)), plain

    planned, by_hand, plain = both(executor)
    np.testing.assert_allclose(planned - planned.mean(), by_hand - by_hand.mean(), atol=1e-5)
    assert jnp.max(jnp.abs(planned - plain)) > 1e-3


def test_giving_up_shows_nothing_of_the_city():
    episode = jax.tree.map(lambda x: x[0], episodes(1))
    episode = episode._replace(action=episode.action.at[:3].set(jnp.array([city.END, city.RIDE, 0])))
    shown = dream_models.outcomes(episode)
    assert shown.weight[:3].tolist() == [0.0, 1.0, 1.0] and not shown.weight[LENGTH:].any()
    np.testing.assert_array_equal(shown.next_obs[:-1], shown.obs[1:])


def test_both_views_of_a_trajectory_add_up_and_either_can_be_left_out():
    config, models, _ = case()
    built = dream_parts.make_parts(config, TOWN)
    batch = episodes(1)
    shape = (*batch.obs.shape[:2], *models.outcome.origin["heads"].shape)
    seen = {name: jax.random.normal(KEY, shape) for name in models.outcome.origin}
    memory = {"decoder": jax.jit(built.nets.decoder.init)(KEY)}
    reader = {"reader": drawn()[1]}
    decode = jax.jit(lambda params: built.decode_fn(params, batch, seen))
    alone = decode(memory), decode(reader)
    np.testing.assert_allclose(decode(memory | reader), alone[0] + alone[1], rtol=1e-4, atol=1e-4)
    one = models.reader.apply(reader["reader"], jax.tree.map(lambda x: x[1, 2], seen))
    np.testing.assert_allclose(alone[1][1, 2], one, rtol=1e-4, atol=1e-5)
    code = jax.jit(lambda params: built.code_fn(params, batch, seen))
    np.testing.assert_allclose(code(memory | reader), decode(memory | reader)[:, LENGTH], rtol=1e-4, atol=1e-4)
    first = jax.tree.map(lambda x: x[0], (batch, seen))
    np.testing.assert_allclose(built.code_fn(memory | reader, *first), code(memory | reader)[0], rtol=1e-4, atol=1e-4)


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
        checked(dataclasses.replace(presets["smoke"], **changes), "city/distraction")


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_switches_that_fit_together(variant):
    assert checked(dataclasses.replace(presets["smoke"], **VARIANTS[variant]), "city/map")


@pytest.mark.parametrize("task", ["distraction", "map"])
@pytest.mark.parametrize("name", list(presets))
def test_every_preset_makes_sense_on_both_tasks(name, task):
    assert checked(presets[name], f"city/{task}") is presets[name]


@pytest.mark.parametrize("name", ["no-bottleneck", "no-exploration", "erl2"])
def test_a_baseline_has_the_trials_of_its_base(name):
    alone, published = presets[name], presets[f"published/{name}"]
    assert (alone.trials, published.trials) == (presets["dream"].trials, presets["published"].trials)
    sizes = {"trials", "trials_per_iteration", "recurrent"}
    assert {f for f in vars(alone) if getattr(alone, f) != getattr(published, f)} <= sizes
    assert published != presets["published"]
