"""What is kept of real steps for a fit with gradient-aware weights, and that nothing else of the system changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.rollout_values import score_norms
from jaxhybrid.systems import maac, maac_replay, maac_updates
from jaxhybrid.types import Transition

SPEC = envs.make("pendulum").spec
CONFIG = dataclasses.replace(maac.presets["smoke"], model_weights="own_score", real_capacity=150)
KEY = jax.random.key(0)


@functools.cache
def parts(**changes):
    return maac_updates.make_parts(dataclasses.replace(CONFIG, **changes), SPEC)


@functools.cache
def learner(seed=0):
    return maac_updates.init_learner(parts(), jax.random.key(seed))


def steps(count=128):
    keys = jax.random.split(KEY, 2)
    obs = jax.random.normal(keys[0], (count, 3))
    action = jnp.tanh(jax.random.normal(keys[1], (count, 1)))
    return Transition(obs, action, obs[:, 0], jnp.ones(count), 0.5 * obs)


def kept(explored, seed=0):
    p = parts()
    items = maac_replay.items(p, learner(seed).policy_params, jnp.asarray(explored), steps(), KEY)
    return p.real_replay.add(p.real_replay.init(maac_replay.blank_item(p)), items)


def policy_fn(params, obs):
    return parts().policy.apply(params, obs)


@functools.cache
def norms():
    rows = steps()
    return np.asarray(jax.jit(functools.partial(score_norms, policy_fn=policy_fn))(
        learner().policy_params, rows.obs, rows.action
    ))  # fmt: skip


def test_on_policy_a_step_weighs_its_score():
    data = jax.jit(functools.partial(maac_replay.bootstrap, parts()))(learner(), kept(False))
    np.testing.assert_allclose(data.weight[:128], norms() / norms().mean(), rtol=1e-4)
    np.testing.assert_array_equal(data.weight[128:], np.zeros(22))
    assert data.size == 128


@pytest.mark.parametrize("explored", [True, False])
def test_off_policy_its_truncated_ratio_counts_too(explored):
    replay = kept(explored, seed=1)
    rows = steps()
    target = jax.vmap(lambda s, a: policy_fn(learner().policy_params, s).log_prob(a))(rows.obs, rows.action)
    other = jax.vmap(lambda s, a: policy_fn(learner(1).policy_params, s).log_prob(a))(rows.obs, rows.action)
    # Random actions are uniform in [-1, 1].
    ratio = np.exp(target - (np.log(0.5) if explored else other))
    for bound in (1.1, 10.0):
        data = jax.jit(functools.partial(maac_replay.bootstrap, parts(model_max_ratio=bound)))(learner(), replay)
        expected = np.minimum(ratio, bound) * norms()
        np.testing.assert_allclose(data.weight[:128], expected / expected.mean(), rtol=2e-3)


def test_an_unbounded_action_is_explored_as_a_normal_one():
    spec = SPEC._replace(action_low=np.full(2, -np.inf), action_high=np.full(2, np.inf), action_dim=2)
    found = maac_replay.random_log_prob(spec, jnp.array([1.0, -2.0]))
    assert found == pytest.approx(-np.log(2 * np.pi) - 2.5, rel=1e-6)
    assert maac_replay.random_action(spec, KEY).shape == (2,)


def test_the_step_keeps_its_structure_and_the_default_keeps_nothing_more():
    system = maac.make(dataclasses.replace(CONFIG, real_capacity=1024), envs.make("pendulum"))
    state = jax.eval_shape(system.init, KEY)
    after, _ = jax.eval_shape(lambda s: system.step(s, None), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert len(maac_replay.blank_item(parts())) == 3
    assert len(maac_replay.blank_item(parts(model_weights="uniform"))) == 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_weights": "own"}, "model_weights='own' is unknown: did you mean 'own_score'"),
        ({"model_max_ratio": 0.0}, "model_max_ratio=0.0 must be positive"),
    ],
)
def test_senseless_numbers_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        maac.make(dataclasses.replace(CONFIG, **changes), envs.make("pendulum"))
