"""Failures that replay: where the first value came from that was not finite, on functions, the toy and MAAC."""

import dataclasses
import errno
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import blame, cli, loop, replay, schema, training
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.systems import maac
from jaxhybrid.systems.maac_config import Config, RolloutSchedule
from jaxhybrid.types import Setting
from tests.runtime import toy


def where(fn, args, target, compiled=True):
    return blame.first_nonfinite(fn, args, target, compiled=compiled)


def recurrence(x):
    """NaN from the fourth of six turns on; one result that is meant to be NaN comes before all others."""

    def turn(carry, t):
        carry = jnp.where(t == 3, jnp.log(t - 4.0) * carry, carry + 1.0)
        return carry, carry

    meant = jnp.where(x > 0, jnp.nan, x)
    carry, values = jax.lax.scan(turn, x, jnp.arange(6.0))
    return {"carry": carry, "refused": jnp.sum(~jnp.isfinite(values)), "meant": meant}


@pytest.mark.parametrize("target", ["['carry']", "['refused']"])
def test_the_turn_of_a_loop_is_named(target):
    origin = where(recurrence, (jnp.ones(()),), target)
    assert origin.what == "nan from log" and origin.turns == ("turn 3 of 6",)
    assert "test_replay.py" in origin.where and "turn" in origin.where


def test_an_argument_is_named():
    origin = where(lambda a: {"y": jnp.sum(a["x"] * 2.0)}, ({"x": jnp.array([[1.0, 2.0], [3.0, jnp.inf]])},), "['y']")
    assert origin.what == "[0]['x'][1, 1], which was not finite before"


def small(y):
    return y < 1e35


@pytest.mark.parametrize(
    ("fn", "what", "turns"),
    [
        (lambda x: jax.grad(jnp.sqrt)(x - 1.0), "inf from ", ()),
        (lambda x: jax.lax.cond(x > 0, lambda y: 1.0 / (y - y), lambda y: y, x), "inf from div", ()),
        (lambda x: jax.lax.while_loop(small, lambda y: y * 1e30, x), "inf from mul", ("turn 1",)),
        (
            lambda x: jax.lax.scan(lambda c, _: (c - 1.0, 1.0 / c), x, None, 3, reverse=True)[1],
            "inf from div",
            ("turn 1 of 3",),
        ),
        (lambda x: jnp.min(jax.vmap(lambda y: jnp.log(y * x))(jnp.arange(3.0))), "-inf from log", ()),
        (lambda x: jnp.where(x > 0, jnp.nan, x), "nan from select_n", ()),
    ],
    ids=["gradient", "cond", "while", "reverse", "vmap", "constant"],
)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "unjitted"])
def test_origins(fn, what, turns, compiled):
    origin = where(fn, (jnp.ones(()),), "", compiled)
    assert origin.what.startswith(what) and origin.turns == turns


def test_a_finite_result_has_no_origin():
    with pytest.raises(ValueError, match=r"no check"):
        where(lambda x: x + 1.0, (jnp.ones(()),), "")


@pytest.mark.parametrize(("chunk", "seeds"), [(1, 1), (2, 1), (1, 2)])
def test_the_toy_replays(tmp_path, chunk, seeds):
    config = toy.Config(poison_at=5)
    result = toy.run(
        config, out=str(tmp_path / "run"), max_nonfinite=3, checkpoint_every=2, eval_every=6, chunk=chunk, seeds=seeds
    )
    assert result.exit_code == loop.NONFINITE_EXIT
    (path,) = result.directory.glob("capsule-*")
    capsule = replay.read(path)
    finding = replay.replay(capsule, Setting(toy.make, toy.env()), config, compiled=chunk == 1)
    assert finding.iteration == 5 and finding.refused == 1 and finding.leaves == ()
    assert finding.origin.what == "nan from select_n" and "toy.py" in finding.origin.where


def test_a_host_environment_replays(tmp_path):
    config = toy.Config(poison_at=5, unguarded=True)
    result = toy.run(config, out=str(tmp_path / "run"), host=True, checkpoint_every=2)
    (path,) = result.directory.glob("capsule-*")
    finding = replay.replay(replay.read(path), Setting(toy.make, toy.host_env()), config)
    assert finding.iteration == 5 and finding.leaves == (".params['gain'][0]", ".momentum['gain'][0]")
    assert finding.origin.what == "nan from select_n"


def test_a_capsule_that_finds_no_room_is_said_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    result = toy.run(toy.Config(poison_at=5), out=str(tmp_path / "run"), max_nonfinite=3, checkpoint_every=2)
    assert result.exit_code == loop.NONFINITE_EXIT
    assert "no capsule could be written (No space left on device)" in capsys.readouterr().err
    assert not [path for path in result.directory.iterdir() if "capsule" in path.name]


TINY = {"model_max_epochs": 1, "updates_per_iteration": 4, "policy_hidden": (8,), "critic_hidden": (8,)}


def breaking(env):
    """Fast pendulums have a reward that divides nothing by nothing."""

    def step(env_state, action, key):
        env_state, time_step = env.step(env_state, action, key)
        still = time_step.obs[0] - time_step.obs[0]
        return env_state, time_step._replace(
            reward=jnp.where(jnp.abs(time_step.obs[2]) > 3.0, still / still, time_step.reward)
        )

    return env._replace(step=step)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """SAC on an environment that returns NaN when the pendulum is fast, stopped after a few refused updates."""
    config = dataclasses.replace(maac.presets["smoke/sac"], **TINY)
    env = breaking(envs.make("pendulum"))
    out = tmp_path_factory.mktemp("broken") / "run"
    options = RunOptions(out=str(out), quiet=True, tensorboard=False, compile_cache="off", max_nonfinite=2)
    result = training.train(
        Setting(maac.make, env), study="maac", preset="smoke/sac", config=config, options=options, iterations=9
    )
    assert result.exit_code == loop.NONFINITE_EXIT
    (path,) = out.glob("capsule-*")
    return path, config, env


def test_a_reward_that_is_nan_is_traced_to_the_step_of_the_environment(broken):
    path, config, env = broken
    finding = replay.replay(replay.read(path), Setting(maac.make, env), config)
    assert ".real.experience[0].reward" in finding.leaves[0]
    assert finding.origin.what == "nan from div" and "breaking" in finding.origin.where
    (turn,) = finding.origin.turns
    assert turn.endswith(" of 32")


def test_the_command_rebuilds_the_system_and_compiles_as_the_run_did(broken, capsys):
    # The environment of this library is sound, so the same capsule replays without a failure.
    path, _, _ = broken
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, not before)
    try:
        assert replay.main([str(path), "--compile-cache", "off"]) == 1
        assert jax.config.values[option] == before
    finally:
        jax.config.update(option, before)
    assert "every value was finite" in capsys.readouterr().err


def changed(path, tmp_path, **facts):
    shutil.copytree(path, tmp_path / "capsule")
    capsule = json.loads((tmp_path / "capsule" / "capsule.json").read_text())
    for name, value in facts.items():
        capsule = (
            capsule | {name: value} if name in capsule else capsule | {"identity": capsule["identity"] | {name: value}}
        )
    (tmp_path / "capsule" / "capsule.json").write_text(json.dumps(capsule))
    return [str(tmp_path / "capsule")]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"study": "os"}, "study='os' is unknown"),
        ({"study": "maac_updates"}, "no system of its own"),
        ({"env": "pendulun"}, "did you mean 'pendulum'"),
        ({"env": ["pendulum"]}, r"identity\.env must be"),
        ({"config": {"hiden": 3}}, "config field='hiden' is unknown"),
        ({"config": {"gamma": "0.9"}}, r"config\.gamma must be float, not '0\.9'"),
        ({"config": [1]}, "config must be an object"),
        ({"members": 1.5}, "capsule.members of type float"),
        ({"chunk": True}, r"identity\.chunk must be int, not True"),
        ({"format": 2}, "another format"),
        ({"iterations_to_replay": 0}, "nothing to replay"),
        ({"reason": None}, "capsule.reason of type NoneType"),
    ],
)
def test_a_capsule_that_is_none_is_refused(broken, tmp_path, facts, message):
    with pytest.raises(InputError, match=message) as raised:
        replay.main(changed(broken[0], tmp_path, **facts))
    assert "\n" not in str(raised.value)


def test_a_directory_without_capsule_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"capsule\.json' is missing"):
        replay.main([str(tmp_path)])


@pytest.mark.parametrize("name", ["paper-ant", "released", "demo", "smoke/sac"])
def test_configs_survive_json(name):
    config = maac.presets[name]
    assert schema.from_json(Config, json.loads(json.dumps(dataclasses.asdict(config))), "config") == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"rollout_schedule": {"first": 1.5}}, r"config\.rollout_schedule\.first must be int"),
        ({"rollout_schedule": {"frist": 1}}, "did you mean 'first'"),
        ({"model_hidden": [200, "x"]}, r"config\.model_hidden\[1\] must be int"),
        ({"model_hidden": 200}, r"config\.model_hidden must be"),
        ({"trajectory_sampling": "ts2"}, "'ts1'"),
        ({"target_entropy": "low"}, r"config\.target_entropy must be float"),
        ({"released_steve": 1}, r"config\.released_steve must be bool"),
        ({"batch_size": True}, r"config\.batch_size must be int, not True"),
    ],
)
def test_fields_of_another_type_are_refused(value, message):
    with pytest.raises(InputError, match=message):
        schema.from_json(Config, value, "config")
    assert schema.from_json(Config, {"rollout_schedule": {"first": 1}}, "config").rollout_schedule == RolloutSchedule(1)
    assert cli.studies("jaxhybrid.systems").keys() >= {"maac"}
