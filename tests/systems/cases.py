"""Systems that several tests run, compiled once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid import envs
from jaxhybrid.systems import maac
from jaxhybrid.types import HostEnv, Transition
from tests.compilation import AS_SHIPPED


def unused(*_):
    raise AssertionError("the system must not drive the host's environment")


def host_env():
    """A host environment of which the system sees the facts only."""
    return HostEnv(unused, unused, unused, unused, num_envs=2, spec=envs.make("pendulum").spec)


@functools.cache
def build(preset, *, host=False, as_shipped=False, **changes):
    """``(config, system, jitted init, jitted step)``; the number of traces of ``step`` is ``step._cache_size()``."""
    options = AS_SHIPPED if as_shipped else None
    config = dataclasses.replace(maac.presets[preset], **changes)
    system = maac.make(config, host_env() if host else envs.make("pendulum"))
    return config, system, jax.jit(system.init), jax.jit(system.step, compiler_options=options)


@functools.cache
def run(preset, num_steps, seed=0, **changes):
    """States before and after each step on the pendulum, and the metrics of each."""
    _, _, init, step = build(preset, **changes)
    states, metrics = [init(jax.random.key(seed))], []
    for _ in range(num_steps):
        state, logged = step(states[-1], None)
        states.append(state)
        metrics.append(logged)
    return states, metrics


def host_batch(seed, num_steps=32, **changes):
    """Transitions ``[T, N, ...]`` as a host would pass them."""
    rng = np.random.default_rng(seed)
    batch = Transition(
        obs=rng.normal(size=(num_steps, 2, 3)),
        action=rng.uniform(-1, 1, size=(num_steps, 2, 1)),
        reward=rng.normal(size=(num_steps, 2)),
        discount=np.ones((num_steps, 2)),
        next_obs=rng.normal(size=(num_steps, 2, 3)),
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch._replace(**changes))
