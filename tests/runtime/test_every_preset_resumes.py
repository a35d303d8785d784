"""Every preset of every system, at the size of a test: stopped, resumed and compared to the bit with one that was not.

What makes presets differ in structure is kept (words, switches, and the numbers named below); sizes are those of the
system's smoke preset. Presets that are the same then are run once.
"""

import dataclasses
import importlib

import jax
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import catcher, city, city_trials
from jaxhybrid.runtime import training
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.types import Setting
from tests.runtime.test_loop import content, same

# Per system: numbers that decide its structure, at most as large as here, and words that do not, or that the small
# environment has no use for.
STRUCTURE = {
    "maac": (
        {"horizon": 2, "num_paths": 2, "steve_horizon": 1, "num_terminal_actions": 2, "real_ratio": 1.0},
        {"policy_activation", "critic_activation", "model_activation", "model_reward_on"},
    ),
    "gmas": ({"alpha": 0.05}, {"abstract", "generator"}),
    "mscv": ({"eta": 1.0, "horizon": 2}, {"activation", "model_activation"}),
    "dream": ({}, set()),
}


def environment(system, config):
    if system == "gmas":
        return catcher.make()
    if system == "dream":
        return city_trials.environment(city.make("distraction", split=config.split, hidden_goal=config.hidden_goal))
    return envs.make("pendulum")


def made(system, config, env):
    module = importlib.import_module(f"jaxhybrid.systems.{system}")
    return module.make(config, env, test_env=env) if system == "gmas" else module.make(config, env)


def small(system, preset):
    """The preset's structure at the size of the smoke preset."""
    presets = importlib.import_module(f"jaxhybrid.systems.{system}").presets
    numbers, ignored = STRUCTURE[system]
    smoke, full = presets["smoke"], presets[preset]
    kept = {name: min(getattr(full, name), largest) for name, largest in numbers.items()}
    if 0 < kept.get("real_ratio", 0) < 1:
        kept["real_ratio"] = smoke.real_ratio
    for field in dataclasses.fields(full):
        value = getattr(full, field.name)
        if isinstance(value, str | bool) and field.name not in ignored:
            kept[field.name] = value
    return dataclasses.replace(smoke, **kept | {"env": ""})


def cases():
    for system in STRUCTURE:
        seen = []
        for preset in importlib.import_module(f"jaxhybrid.systems.{system}").presets:
            config = small(system, preset)
            if config not in seen:
                seen.append(config)
                yield pytest.param(system, preset, config, 1, id=f"{system}-{preset}")
        # What seeds side by side change is the same for all presets of a system.
        yield pytest.param(system, "smoke", seen[0], 2, id=f"{system}-two seeds")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("system", "preset", "config", "seeds"), list(cases()))
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, system, preset, config, seeds):
    env = environment(system, config)
    whole_system = made(system, config, env)

    def run(name, **options):
        settings = RunOptions(
            out=str(tmp_path / name),
            seeds=seeds,
            parallel="vmap",
            quiet=True,
            tensorboard=False,
            compile_cache=jax.config.jax_compilation_cache_dir,
            eval_every=2,
            checkpoint_every=1,
            **options,
        )
        return training.train(
            Setting(lambda *_: whole_system, env),
            study=system,
            preset=preset,
            config=config,
            options=settings,
            iterations=3,
        )

    whole = run("whole")
    run("run", iterations=2)
    resumed = run("run", iterations=3, resume=True)
    assert same(resumed.state, whole.state)
    assert content(resumed.directory) == content(whole.directory)
