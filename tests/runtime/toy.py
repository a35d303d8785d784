"""A system that learns in milliseconds, and whose every leaf decides its future: key, momentum, buffer, schedule."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.runtime import cli, loop, training
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.sharding import spread
from jaxhybrid.types import Array, Env, EnvSpec, HostEnv, Key, PyTree, Setting, System, TimeStep, Transition

_SPEC = EnvSpec("toy", 1, 1, np.full(1, -np.inf), np.full(1, np.inf), max_episode_steps=5)


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "toy"
    """Environment the numbers are meant for."""
    iterations: int = 12
    """Iterations."""
    learning_rate: float = 0.1
    """Step size."""
    poison_at: int = 0
    """Iteration from which every gradient is NaN; 0: never."""
    unguarded: bool = False
    """Whether NaN gradients are applied."""
    num_envs: int = 2
    """Instances of the host environment."""
    busy: int = 0
    """Products of large matrices per iteration, which take time and change nothing."""


class State(NamedTuple):
    params: PyTree
    momentum: PyTree
    buffer: Array
    empty: Array
    key: Key
    count: Array
    streak: Array


traces = {"init": 0, "step": 0, "act": 0}


def make(config: Config, env: Env | HostEnv | None = None) -> System:
    def init(key: Key) -> State:
        traces["init"] += 1
        params_key, run_key = jax.random.split(key)
        gain = jax.random.normal(params_key, (1,))
        params = {"gain": gain}
        zero = jnp.zeros((), jnp.int32)
        return State(params, {"gain": jnp.zeros((1,))}, jnp.zeros((4,)), jnp.zeros((0, 3)), run_key, zero, zero)

    def step(state: State, batch: Transition | None) -> tuple[State, dict[str, Array]]:
        traces["step"] += 1
        next_key, draw_key, sample_key = jax.random.split(state.key, 3)
        draws = spread(jax.random.normal(draw_key, (8,)))
        draw = jnp.sum(draws) / 8**0.5 if batch is None else jnp.mean(batch.obs) + jnp.mean(batch.reward)
        buffer = state.buffer.at[state.count % 4].set(draw)
        count = state.count + 1
        target = 0.3 + 0.1 * jax.random.choice(sample_key, buffer)
        grads = state.params["gain"] - target
        poisoned = (config.poison_at > 0) & (count >= config.poison_at)
        grads = jnp.where(poisoned, jnp.nan, grads)
        if config.busy:
            work = jax.lax.fori_loop(0, config.busy, lambda _, x: x @ x / 400, jnp.ones((400, 400)) + 0 * draw)
            grads = grads + 0 * work[0, 0]
        momentum = 0.9 * state.momentum["gain"] + grads
        gain = state.params["gain"] - config.learning_rate / jnp.sqrt(count) * momentum
        refused = ~jnp.all(jnp.isfinite(gain)) & (not config.unguarded)
        new = State(
            params={"gain": jnp.where(refused, state.params["gain"], gain)},
            momentum={"gain": jnp.where(refused, state.momentum["gain"], momentum)},
            buffer=buffer,
            empty=state.empty,
            key=next_key,
            count=count,
            streak=(state.streak + 1) * refused,
        )
        return new, {
            "collect/episode_return": jnp.where(count % 2 == 0, draw, jnp.nan),
            "critic/loss": jnp.sum(grads**2),
            "env/steps": count * 5,
            "guard/nonfinite": new.streak,
            "guard/nonfinite_streak": new.streak,
        }

    def act(state: State, obs: Array, key: Key, *, deterministic: bool) -> Array:
        traces["act"] += 1
        action = state.params["gain"] * obs
        return action if deterministic else action + 0.1 * jax.random.normal(key, (1,))

    return System(init, step, act)


def env() -> Env:
    def reset(key: Key) -> tuple[PyTree, Array]:
        obs = jax.random.normal(key, (1,))
        return (obs, jnp.zeros((), jnp.int32)), obs

    def step(env_state: PyTree, action: Array, key: Key) -> tuple[PyTree, TimeStep]:
        obs, count = env_state
        obs = 0.9 * obs - action
        return (obs, count + 1), TimeStep(obs, -jnp.sum(obs**2), jnp.zeros((), bool), count + 1 >= 5)

    return Env(reset, step, _SPEC)


def host_env(num_envs: int = 2) -> HostEnv:
    """The same task on NumPy, its start states drawn from a counter that is part of the state."""

    def start(counter: np.ndarray) -> np.ndarray:
        return np.sin(counter.astype(np.float32))[:, None]

    def reset(seed: int) -> tuple[PyTree, np.ndarray]:
        counter = np.arange(num_envs, dtype=np.uint64) + np.uint64(seed)
        return (start(counter), np.zeros(num_envs, np.int32), counter), start(counter)

    def step(env_state: PyTree, action: np.ndarray) -> tuple[PyTree, TimeStep]:
        obs, count, counter = env_state
        obs = (0.9 * obs - action).astype(np.float32)
        reward = -np.sum(obs**2, axis=1, dtype=np.float32)
        return (obs, count + 1, counter), TimeStep(obs, reward, np.zeros(num_envs, bool), count + 1 >= 5)

    def reset_where(env_state: PyTree, obs: np.ndarray, mask: np.ndarray) -> tuple[PyTree, np.ndarray]:
        _, count, counter = env_state
        counter = counter + np.uint64(num_envs) * mask.astype(np.uint64)
        obs = np.where(mask[:, None], start(counter), obs)
        return (obs, np.where(mask, 0, count).astype(np.int32), counter), obs

    return HostEnv(reset, step, reset_where, lambda: None, num_envs, _SPEC)


def run(config: Config, *, host: bool = False, **options) -> loop.RunResult:
    settings = {"quiet": True, "tensorboard": False, "compile_cache": "off", "eval_every": 3, "checkpoint_every": 4}
    return training.train(
        Setting(make, host_env(config.num_envs) if host else env()),
        study="toy",
        preset="plain",
        config=config,
        options=RunOptions(**{**settings, **options}),
        iterations=config.iterations,
        num_steps=3,
    )


def main(argv: Sequence[str]) -> int:
    presets = {"plain": Config(), "other": Config(env="elsewhere")}
    arguments = cli.parse(argv, module="tests.runtime.toy", description="A toy.", presets=presets, preset="plain")
    result = training.train(
        Setting(make, env(), lambda state: state.params),
        study="toy",
        preset=arguments.preset,
        config=arguments.config,
        options=arguments.run,
        iterations=arguments.config.iterations,
        num_steps=3,
        command=arguments.command,
    )
    return result.exit_code


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
