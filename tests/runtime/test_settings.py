"""What a run was is found again from its own words: its policy acts without it, and its failures replay."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dream, gamps_search, gmas, mscv
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import export, loop, play, policies, records, replay, settings
from jaxhybrid.systems import gamps

KEY = jax.random.key(5)
# Systems whose policies no file describes.
CASES = {"dream": "city/map", "gamps": "gridworld", "gmas": "catcher"}


@pytest.fixture(scope="module", params=CASES)
def begun(request, tmp_path_factory):
    """A system, its first state, and the policy of that state on disk."""
    study = request.param
    module = importlib.import_module(f"jaxhybrid.systems.{study}")
    config = module.presets["smoke"]
    setting = module.setting(config, CASES[study])
    system = setting.make(config, setting.env)
    state = jax.jit(system.init)(KEY)
    run = tmp_path_factory.mktemp(study)
    policies.save(
        run / "policy",
        params=jax.device_get(setting.policy_params(state)),
        study=study,
        config=vars(config),
        spec=setting.env.spec,
        seeds=[7],
    )
    return setting, system, state, run


def some_obs(setting):
    return jnp.stack([setting.env.reset(key)[1] for key in jax.random.split(KEY, 3)])


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_saved_policy_does_what_the_system_does(begun, deterministic):
    setting, system, state, run = begun
    act = policies.act_fn(policies.of_run(run))
    for obs in some_obs(setting):
        wanted = system.act(state, obs, KEY, deterministic=deterministic)
        if setting.env.spec.num_actions is None:
            wanted = jnp.clip(wanted, setting.env.spec.action_low, setting.env.spec.action_high)
        np.testing.assert_allclose(act(obs, KEY, deterministic=deterministic), wanted, rtol=1e-5, atol=1e-6)


def test_the_exported_program_does_what_the_system_does(begun, tmp_path):
    setting, system, state, run = begun
    assert export.main([str(run), "--out", str(tmp_path / "program")]) == 0
    program = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    obs = some_obs(setting)
    wanted = [system.act(state, each, KEY, deterministic=True) for each in obs]
    np.testing.assert_allclose(program.call(obs), jnp.stack(wanted), rtol=1e-5, atol=1e-6)


def test_a_policy_without_a_network_of_its_own_plays_in_its_environment(begun, tmp_path, capsys):
    setting, _, _, run = begun
    assert play.main([str(run), "--episodes", "1", "--video", str(tmp_path / "film")]) == 0
    assert "return: mean" in capsys.readouterr().out
    drawn = setting.env.spec.name.partition("/")[0] in ("city", "catcher")
    assert drawn == (tmp_path / "film" / "episode.gif").exists()
    with pytest.raises(InputError, match=r"plays .* only"):
        play.main([str(run), "--env", "maze"])


def test_a_policy_of_other_shapes_is_refused(begun):
    _, _, _, run = begun
    policy = policies.of_run(run)
    first = sorted(policy.params)[0]
    with pytest.raises(InputError, match=rf"params\.{first}.* has the shape None"):
        policies.act_fn(policy._replace(params={name: x for name, x in policy.params.items() if name != first}))
    with pytest.raises(InputError, match="is no system of its own"):
        policies.act_fn(policy._replace(study=f"{policy.study}_config"))


OPTIONS = "--quiet --no-tensorboard --compile-cache off --max-nonfinite 2 --iterations 3 --parallel vmap"
TOO_LARGE = {
    "minigolf": (gamps_search, "--preset minigolf --config.trajectories 5 --config.learning-rate 1e38"),
    "catcher": (gmas, "--preset smoke --env catcher --config.learning-rate 1e38"),
    "maze": (gmas, "--preset smoke --config.learning-rate 1e38"),
    "city": (dream, "--preset smoke --config.learning-rate 1e38"),
    "pendulum": (mscv, "--preset smoke --env pendulum --config.value-learning-rate 1e38"),
    "host": (mscv, "--preset smoke --env swimmer --config.value-learning-rate 1e38"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", TOO_LARGE)
def test_steps_that_are_too_large_are_traced_to_their_line(tmp_path, capsys, case):
    study, numbers = TOO_LARGE[case]
    run = tmp_path / "run"
    assert study.main([*numbers.split(), *OPTIONS.split(), "--out", str(run)]) == loop.NONFINITE_EXIT
    (capsule,) = run.glob("capsule-*")
    capsys.readouterr()
    assert replay.main([str(capsule), "--compile-cache", "off"]) == 0
    said = capsys.readouterr().err.replace("\n", "")
    assert "updates refused" in said and ".py:" in said.rpartition("first:")[2]


@pytest.mark.parametrize("order", [1.0, np.inf])
def test_a_config_with_an_infinity_survives_the_manifest(order):
    config = gamps.Config(score_order=order)
    identity = json.loads(json.dumps(records.jsonable({"study": "gamps", "env": "gridworld", "config": vars(config)})))
    assert settings.rebuilt(identity)[1] == config
    for text in ("nan", "1.0", "Infinity"):
        with pytest.raises(InputError, match=rf"config\.score_order must be float, not '{text}'"):
            settings.rebuilt(identity | {"config": identity["config"] | {"score_order": text}})


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ({"study": "os"}, "study='os' is unknown"),
        ({"study": "gmas", "env": "pendulum", "config": {}}, "pendulum"),
        ({"study": "gmas", "env": 3, "config": {}}, r"identity\.env"),
        ({"study": "dream", "env": "catcher", "config": {}}, "has no trials"),
        ({"study": "gamps", "env": "minigolf", "config": {}}, "is not that of domain"),
        ({"study": "dream", "env": "city/map", "config": {"trials": -1}}, "trials=-1"),
    ],
)
def test_words_that_name_nothing_are_refused(identity, message):
    with pytest.raises(InputError, match=message):
        settings.rebuilt(identity)
