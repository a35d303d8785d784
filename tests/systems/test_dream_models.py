"""What the extensions of DREAM compute, apart from the step that they are part of."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.context_networks import CODE, dueling, make_networks
from jaxhybrid.envs import city
from jaxhybrid.systems import dream_models
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
    obs = rng.integers(0, (9, 9, 2), size=(SIZE, TOWN.horizon + 1, 3))
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
        return dream_models.read(models, reader, features)

    episode = jax.tree.map(lambda x: x[0], episodes(1))
    found, other = read(episode), with_other_padding(episode)
    assert (other.obs != episode.obs).any() and (other.action != episode.action).any()
    np.testing.assert_array_equal(read(other), found)
    # Prefixes differ up to the end and not past it.
    assert found.shape == (TOWN.horizon + 1, CODE)
    assert (found[LENGTH] != found[LENGTH - 1]).any() and (found[LENGTH:] == found[LENGTH][None]).all()


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
