"""Hints that divide a batch: nothing without a mesh, the same numbers with one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxhybrid.sharding import apart, divides, spread


def test_without_a_mesh_nothing_happens():
    tree = {"x": jnp.ones((4, 3)), "key": jax.random.split(jax.random.key(0), 4)}
    assert spread(tree) is tree
    assert not divides(4)


def test_without_a_mesh_functions_are_called_in_turn():
    assert apart([lambda x: x + 1, lambda x: {"twice": 2 * x}], 3) == [4, {"twice": 6}]


APART = """
import jax, jax.numpy as jnp
from jaxhybrid.sharding import apart

def loop(turns):
    # As many turns as it is told, a different number for each.
    return lambda x, n: {"x": jax.lax.fori_loop(0, turns * n, lambda i, y: jnp.sin(y) - 1e-3 * i, x), "n": turns * n}

functions = [loop(turns) for turns in (3, 1, 2)]
args = jnp.linspace(-1.0, 1.0, 5).at[0].set(jnp.nan), jnp.asarray(7)
alone = [jax.jit(f)(*args) for f in functions]
with jax.set_mesh(jax.sharding.Mesh(jax.devices(), ("batch",))):
    program = jax.jit(lambda *args: apart(functions, *args)).lower(*args).compile()
same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b, equal_nan=True)), alone, program(*args))
print("conditional" in program.as_text(), jax.tree.all(same))
"""


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_functions_are_computed_on_devices_of_their_own_with_the_same_results(devices):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", APART]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["True", "True"]


SCRIPT = """
import jax, jax.numpy as jnp
from jaxhybrid.sharding import spread

def loss(w, key):
    x = spread(jax.random.normal(key, ({rows}, 3)), axis=0)
    return jnp.mean(jnp.square(x @ w))

mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
w, key = jnp.ones(3), jax.random.key(0)
with jax.set_mesh(mesh):
    program = jax.jit(jax.grad(loss)).lower(w, key).compile()
print("all-reduce" in program.as_text(), float(jnp.max(jnp.abs(program(w, key) - jax.grad(loss)(w, key)))) < 1e-6)
"""


@pytest.mark.parametrize(("rows", "divided"), [(64, True), (63, False)])
def test_a_batch_that_divides_is_divided_and_the_gradient_stays(rows, divided):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", SCRIPT.format(rows=rows)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == [str(divided), "True"]


ENSEMBLE = """
import re
import jax, jax.numpy as jnp
from jaxhybrid.dynamics import Bootstrap
from tests.test_model_fit import compiled, splits, transitions, ROWS

ensemble, _ = compiled("rolling")
data = Bootstrap(transitions(), jnp.asarray(splits()), jnp.asarray(ROWS))
state, key = ensemble.init(jax.random.key(1)), jax.random.key(2)
alone, _ = jax.jit(ensemble.fit)(state, data, key)
with jax.set_mesh(jax.sharding.Mesh(jax.devices(), ("batch",))):
    program = jax.jit(ensemble.fit).lower(state, data, key).compile()
together, _ = program(state, data, key)
gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), alone.params, together.params)
# What the devices tell each other inside the loops: shapes of every exchange, and none has the size of a weight.
exchanged = re.findall(r"= (.*?) (?:all-reduce|all-gather|all-to-all)\\(", program.as_text())
sizes = [[int(n) for n in dims.split(",") if n] for each in exchanged for dims in re.findall(r"\\[([0-9,]*)\\]", each)]
print(len(exchanged) > 0, max(len(size) for size in sizes) < 2, max(jax.tree.leaves(gap)) < 1e-4)
"""


def test_members_of_an_ensemble_are_divided_and_exchange_no_weights():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    result = subprocess.run(
        [sys.executable, "-c", ENSEMBLE], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split() == ["True", "True", "True"]
