"""Policies that are saved, read back, and exported."""

import dataclasses
import errno
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import networks
from jaxhybrid.envs import catcher, pendulum
from jaxhybrid.envs.wrappers import rescale_actions
from jaxhybrid.errors import InputError
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from jaxhybrid.ops.moments import Moments
from jaxhybrid.runtime import policies
from jaxhybrid.systems import mscv
from tests.runtime import toy

CONFIG = {"policy_hidden": (4, 5), "policy_activation": "tanh"}
OBS = jnp.array([[0.3, -0.2, 1.0], [2.0, 0.1, -0.5]])


def params_of(seed, squash=True):
    return networks.gaussian_policy(3, 1, (4, 5), activation="tanh", squash=squash).init(jax.random.key(seed))


def save(directory, seeds=(3,), **options):
    several = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(params_of, seeds))
    params = params_of(seeds[0]) if len(seeds) == 1 else several
    options = {"config": CONFIG, "spec": pendulum.make().spec, "study": "maac"} | options
    return policies.save(directory, params=params, seeds=list(seeds), iteration=7, **options)


def test_a_policy_comes_back_and_explains_itself(tmp_path):
    loaded = policies.load(save(tmp_path / "policy"))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params_of(3))
    assert loaded.config == {"policy_hidden": [4, 5], "policy_activation": "tanh"}
    assert loaded.seeds == [3] and loaded.facts == {"iteration": 7}
    assert loaded.network == {"kind": "gaussian", "hidden": [4, 5], "activation": "tanh", "squash": True}
    assert loaded.spec["name"] == "pendulum" and loaded.versions["jax"] == jax.__version__


def test_actions_are_those_of_the_network(tmp_path):
    act = policies.act_fn(policies.load(save(tmp_path / "policy")))
    distribution = networks.gaussian_policy(3, 1, (4, 5), activation="tanh").apply(params_of(3), OBS[0])
    assert isinstance(distribution, TanhGaussian)
    key = jax.random.key(1)
    np.testing.assert_array_equal(act(OBS[0], key, deterministic=True), distribution.mode())
    np.testing.assert_array_equal(act(OBS[0], key, deterministic=False), distribution.sample(key))


def test_unbounded_actions_are_not_squashed(tmp_path):
    spec = toy.env().spec._replace(obs_dim=3)
    loaded = policies.load(save(tmp_path / "policy", spec=spec))
    assert loaded.network["squash"] is False and loaded.spec["action_high"] == ["inf"]
    wanted = networks.gaussian_policy(3, 1, (4, 5), activation="tanh", squash=False).apply(params_of(3), OBS[0])
    assert isinstance(wanted, Gaussian)
    action = policies.act_fn(loaded)(OBS[0], jax.random.key(0), deterministic=True)
    np.testing.assert_array_equal(action, wanted.mean)


def test_the_normaliser_comes_first(tmp_path):
    mean, std = np.array([1.0, -2.0, 0.5], np.float32), np.array([2.0, 0.5, 4.0], np.float32)
    plain = policies.act_fn(policies.load(save(tmp_path / "plain")))
    scaled = policies.act_fn(policies.load(save(tmp_path / "scaled", normaliser={"mean": mean, "std": std})))
    key = jax.random.key(0)
    np.testing.assert_allclose(
        scaled(mean + std * OBS[0], key, deterministic=True), plain(OBS[0], key, deterministic=True), rtol=1e-5
    )


def test_a_policy_behind_a_running_filter_acts_as_its_system_did(tmp_path):
    config = mscv.presets["smoke"]
    env = pendulum.make()
    system = mscv.make(config, env)
    state = system.init(jax.random.key(0))
    seen = Moments(jnp.asarray(11.0), jnp.array([0.5, -0.5, 1.0]), jnp.array([10.0, 40.0, 0.0]))
    state = state._replace(learner=state.learner._replace(seen=seen))
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), state.learner)
    for seeds, learner in (([3], state.learner), ([3, 4], stacked)):
        params = mscv.policy_params(state._replace(learner=learner))
        path = policies.save(
            tmp_path / str(len(seeds)),
            params=params,
            study="mscv",
            config=dataclasses.asdict(config),
            spec=rescale_actions(env).spec,
            seeds=seeds,
        )
        act = policies.act_fn(policies.of_seed(policies.load(path), 3))
        # The last one is beyond the filter's limit.
        for obs in (OBS[0], OBS[1], jnp.array([0.0, 0.0, 99.0])):
            wanted = jnp.clip(system.act(state, obs, jax.random.key(1), deterministic=False), -1.0, 1.0)
            np.testing.assert_allclose(act(obs, jax.random.key(1), deterministic=False), wanted, rtol=1e-5)


def test_discrete_actions_have_no_dimension(tmp_path):
    spec = catcher.make().spec
    loaded = policies.load(save(tmp_path / "policy", spec=spec, config={"width": 3}))
    assert loaded.spec["action_dim"] == 0 and loaded.network is None
    with pytest.raises(InputError, match="action_dim"):
        save(tmp_path / "gaussian", spec=spec)
    assert not (tmp_path / "gaussian").exists()


def test_each_seed_is_a_policy(tmp_path):
    loaded = policies.load(save(tmp_path / "policy", seeds=(3, 4)))
    for seed in (3, 4):
        one = policies.of_seed(loaded, seed)
        assert one.seeds == [seed]
        jax.tree.map(np.testing.assert_array_equal, one.params, params_of(seed))
    assert policies.of_seed(loaded).seeds == [3]
    with pytest.raises(InputError, match="seed=5 was not trained: choose one of 3, 4"):
        policies.of_seed(loaded, 5)
    with pytest.raises(InputError, match="of_seed"):
        policies.act_fn(loaded)


def test_every_member_of_a_sweep_is_a_policy_with_its_numbers(tmp_path):
    numbers = [{"gamma": 0.9}, {"gamma": 0.99}]
    loaded = policies.load(save(tmp_path / "policy", seeds=(3, 3), numbers=numbers))
    members = policies.members(loaded)
    assert [(one.seeds, one.config["gamma"], one.facts["numbers"]) for one in members] == [
        ([3], 0.9, numbers[:1]),
        ([3], 0.99, numbers[1:]),
    ]
    for i, one in enumerate(members):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x, y[i]), one.params, loaded.params)
    assert policies.of_seed(loaded, 3).config["gamma"] == 0.9


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_exported_program_gives_the_same_actions_for_every_batch_size(tmp_path, deterministic):

    policy = policies.load(save(tmp_path / "policy", normaliser={"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}))
    program = policies.export(policy, deterministic=deterministic)
    assert program == policies.export(policy, deterministic=deterministic) and b".py" not in program
    exported = jax.export.deserialize(bytearray(program))
    assert set(exported.platforms) >= {"cpu", "cuda", "tpu"}
    act = policies.act_fn(policy)
    for obs in (OBS, OBS[:1]):
        keys = jax.random.split(jax.random.key(5), len(obs))
        wanted = jax.vmap(lambda o, k: act(o, k, deterministic=deterministic))(obs, keys)
        actions = exported.call(obs) if deterministic else exported.call(obs, np.uint32(5))
        np.testing.assert_allclose(actions, wanted, rtol=1e-6, atol=1e-7)
    if not deterministic:
        assert np.all(exported.call(OBS, np.uint32(6)) != exported.call(OBS, np.uint32(5)))


def test_a_policy_of_an_unknown_network_is_read_but_cannot_act(tmp_path):
    loaded = policies.load(save(tmp_path / "policy", config={"width": 3}))
    assert loaded.network is None
    with pytest.raises(InputError, match="config field='width' is unknown"):
        policies.act_fn(loaded)


@pytest.mark.parametrize("params", [{"a": object()}, jnp.ones(2), {"a/b": jnp.ones(2)}, {"a": jnp.asarray(jnp.nan)}])
def test_what_cannot_be_saved_is_refused(tmp_path, params):
    with pytest.raises(InputError, match="params"):
        policies.save(tmp_path / "policy", params=params, study="toy", config={}, spec=pendulum.make().spec, seeds=[0])
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"normaliser": {"mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}}, "normaliser.std"),
        ({"normaliser": {"mean": [0.0] * 2, "std": [1.0] * 2}}, "normaliser.mean"),
        ({"network": {"kind": "gaussian", "hidden": [0], "activation": "relu", "squash": True}}, "network.hidden"),
    ],
)
def test_what_could_not_be_read_back_is_not_saved(tmp_path, options, field):
    with pytest.raises(InputError, match=field):
        save(tmp_path / "policy", **options)
    assert not (tmp_path / "policy").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(InputError, match="cannot be written"):
        save(tmp_path / "policy")


def test_a_directory_without_a_policy_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no policy"):
        policies.load(tmp_path)
