"""Stopping and resuming MAAC: every preset that differs in structure, to the bit, and what the comparison notices."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.runtime import checkpoint, loop, training
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.systems import maac
from jaxhybrid.types import Setting
from tests.runtime.test_loop import content, same

# Two iterations explore and two learn; no part of the system is left out by being small.
TINY = {"iterations": 4, "steps_per_iteration": 64, "model_max_epochs": 1, "updates_per_iteration": 4}
PRESETS = ("smoke/sac", "smoke/mbpo", "smoke/steve", "smoke/maac-h0", "smoke", "released")
RELEASED = ("released_steve", "noise_exp_log_variance", "one_step_rollouts", "delayed_replay", "stochastic_evaluation")


def tiny(preset):
    """The preset at the size of a test; ``released`` is the smoke preset with the slips of the released code."""
    config = maac.presets["smoke" if preset == "released" else preset]
    if preset == "released":
        config = dataclasses.replace(config, num_paths=1, num_terminal_actions=5, restore_best=False)
        config = dataclasses.replace(config, **dict.fromkeys(RELEASED, True))
    return dataclasses.replace(config, **TINY)


@pytest.fixture(scope="module", autouse=True)
def _programs_compiled_once():
    """Lets runs of the same numbers share their programs: these are pure functions, and compiling takes a minute."""
    compile_programs, lower_init = loop.compile_programs, loop.lower_init
    shared = {}

    def once(of, system_fn, *arguments, options, group, **rest):
        key = (of, system_of[system_fn({}).step], len(group))
        if key not in shared:
            shared[key] = of(system_fn, *arguments, options, group, **rest)
        return shared[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop,
            "compile_programs",
            lambda s, e, o, g, **rest: once(compile_programs, s, e, options=o, group=g, **rest),
        )
        patch.setattr(loop, "lower_init", lambda s, o, g: once(lower_init, s, options=o, group=g))
        yield


system_of = {}


@functools.cache
def system(preset):
    made = maac.make(tiny(preset), envs.make("pendulum"))
    system_of[made.step] = preset
    return made


def run(preset, out, **options):
    settings = {"quiet": True, "tensorboard": False, "compile_cache": "off", "eval_every": 2, "checkpoint_every": 1}
    return training.train(
        Setting(lambda config, env: system(preset), envs.make("pendulum")),
        study="maac",
        preset=preset,
        config=tiny(preset),
        options=RunOptions(**{**settings, **options}, out=str(out)),
        iterations=TINY["iterations"],
    )


SLOW = [pytest.param(preset, 1, marks=pytest.mark.slow) for preset in PRESETS if preset not in ("smoke", "smoke/sac")]


@pytest.mark.parametrize(("preset", "seeds"), [("smoke/sac", 1), ("smoke/sac", 2), ("smoke", 1), *SLOW])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, preset, seeds):
    whole = run(preset, tmp_path / "whole", seeds=seeds)
    assert np.all(np.asarray(whole.state.updates) == 3 * TINY["updates_per_iteration"])
    run(preset, tmp_path / "run", seeds=seeds, iterations=2)
    resumed = run(preset, tmp_path / "run", seeds=seeds, iterations=TINY["iterations"], resume=True)
    assert same(resumed.state, whole.state)
    assert content(resumed.directory) == content(whole.directory)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """An uninterrupted run of the preset that has every part, with a checkpoint of each iteration."""
    return run("smoke", tmp_path_factory.mktemp("stopped") / "run", keep_last=9)


LOST = (
    "key",
    "learner.policy_params",
    "learner.policy_opt",
    "learner.critic_opt",
    "learner.target_params",
    "learner.log_temperature",
    "real",
    "imagined",
    "ensemble.params",
    "ensemble.optimiser",
    "ensemble.normaliser",
    "workers",
    "updates",
)


def without(state, part):
    """The state with zeros, or another key, in the place of a part of it."""
    name, _, rest = part.partition(".")
    if rest:
        return state._replace(**{name: without(getattr(state, name), rest)})
    lost = jax.random.key(99) if name == "key" else jax.tree.map(zeros_or_key, getattr(state, name))
    return state._replace(**{name: lost})


def zeros_or_key(leaf):
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros_like(leaf)


@pytest.mark.parametrize("lost", ["nothing", *LOST])
def test_a_restore_that_loses_a_part_is_noticed(tmp_path, monkeypatch, stopped, lost):
    # Every fit computes the normaliser anew, so that its loss shows at the last checkpoint only.
    newest = 4 if lost == "ensemble.normaliser" else 3
    shutil.copytree(stopped.directory, tmp_path / "run")
    for iteration in range(newest + 1, 5):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{iteration:08d}")
    restore = checkpoint.restore

    def forgetful(*arguments, **options):
        restored = restore(*arguments, **options)
        state = restored.tree["state"]
        return restored._replace(tree={"state": state if lost == "nothing" else without(state, lost)})

    monkeypatch.setattr(checkpoint, "restore", forgetful)
    resumed = run("smoke", tmp_path / "run", keep_last=9, resume=True)
    assert same(resumed.state, stopped.state) == (lost == "nothing")
