import importlib
import subprocess
import sys
import types

import pytest

from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.types import Env


@pytest.mark.parametrize("name", ["lqr/double_integrator", "pendulum"])
def test_own_environments(name):
    env = envs.make(name, max_episode_steps=7)
    assert isinstance(env, Env)
    assert env.spec.name == name and env.spec.max_episode_steps == 7
    assert env.spec.differentiable_transition and env.spec.differentiable_reward
    assert name in envs.names()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("brax/hopper", ("hopper",)),
        ("brax/hopper/spring", ("hopper", "spring")),
        ("gymnasium/Hopper-v5", ("Hopper-v5",)),
        ("gymnasium/phys2d/Pendulum-v0", ("phys2d/Pendulum-v0",)),
        ("mbbl/ant/mjx", ("ant", "mjx")),
    ],
)
def test_simulators_get_the_parts_of_the_name(monkeypatch, name, parts):
    seen = []
    family = f"jaxhybrid.envs.{name.partition('/')[0]}"
    stand_in = types.ModuleType(family)
    stand_in.make = lambda *parts, **options: seen.append((parts, options))
    monkeypatch.setitem(sys.modules, family, stand_in)
    envs.make(name, speed=2)
    assert seen == [(parts, {"speed": 2})]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pendulem", "'pendulum'"),
        ("lqr/double-integrator", "'lqr/double_integrator'"),
        ("brax/hoper", "'brax/hopper'"),
        ("brax/hopper/", "'brax/hopper'"),
        ("mbbl/walker", "'mbbl/walker2d'"),
        ("gymnasium/", "'gymnasium/"),
        ("pendulum/extra", "'pendulum'"),
        ("", "choose one of"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, near):
    with pytest.raises(InputError, match="env=") as caught:
        envs.make(name)
    assert near in str(caught.value)


def test_unknown_options_are_refused_with_the_nearest():
    with pytest.raises(InputError, match="option='gama' is unknown: did you mean 'gamma'"):
        envs.make("lqr/double_integrator", gama=0.9)


def test_import_is_light():
    code = (
        "import sys, jaxhybrid.envs; jaxhybrid.envs.names();"
        "print([m for m in ('brax', 'mujoco', 'gymnasium', 'flax', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout.strip(), out.returncode) == ("[]", 0), out.stderr


@pytest.mark.parametrize(
    ("family", "module", "table"),
    [
        ("brax", "jaxhybrid.envs.brax", "SUPPORTED"),
        ("gymnasium", "jaxhybrid.envs.facts", "GYMNASIUM"),
        ("mbbl", "jaxhybrid.envs.mbbl", "MBBL_TASKS"),
        ("mujoco_v1", "jaxhybrid.envs.mujoco_v1", "TASKS"),
    ],
)
def test_listed_names_are_those_that_the_modules_know(family, module, table):
    known = getattr(importlib.import_module(module), table)
    assert {f"{family}/{member}" for member in known} == {n for n in envs.names() if n.startswith(f"{family}/")}
