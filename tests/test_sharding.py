"""Hints that divide a batch: nothing without a mesh, the same numbers with one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxhybrid.sharding import spread


def test_without_a_mesh_nothing_happens():
    tree = {"x": jnp.ones((4, 3)), "key": jax.random.split(jax.random.key(0), 4)}
    assert spread(tree) is tree


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
