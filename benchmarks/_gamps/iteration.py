"""The cost of one continuous iteration beside NumPy, and the memory of streamed score norms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import gamps as peer
from jaxhybrid.networks import gaussian_policy
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.ops.importance import gradient_aware_weights
from jaxhybrid.rollout_values import batch_rollout_values, score_norms
from jaxhybrid.types import Array, Key

__all__ = ["score_memory", "speed"]

_STEPS, _ROLLOUTS, _HORIZON = 20, 10, 20
_GAMMA, _LOG_STD = 0.99, -1.2
_POLICY = np.array([-0.5, 0.1], np.float32)
_MODEL = {"mean": np.array([0.02, -0.1, 0.5], np.float32), "log_std": np.array([-2.0, 0.01, 0.01], np.float32)}


def _policy(params: Array, obs: Array) -> Gaussian:
    return Gaussian(params[:1] * obs + params[1:], jnp.full((1,), _LOG_STD))


def _step(obs: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
    psi = jnp.concatenate([jnp.ones(1), obs, action])
    # Dots, not sums of products: XLA's CPU compiler (jax 0.10.2) fuses a mapped concatenation into a sum wrongly from
    # index 32,768 on.
    change = jnp.dot(_MODEL["mean"], psi) + jnp.exp(jnp.dot(_MODEL["log_std"], psi)) * noise
    return obs + change, -jnp.sum(obs**2) - 0.1 * jnp.sum(action**2), jnp.ones(())


def _iteration(
    data: tuple[Array, Array, Array], params: Array, key: Key, *, antithetic: bool = False
) -> tuple[Array, Array]:
    """Weights of equation 3, values by roll-outs, gradient of equation 5."""
    obs, action, behaviour = data
    log_prob = jax.vmap(jax.vmap(lambda s, a: _policy(params, s).log_prob(a)))
    log_ratio = jnp.cumsum(log_prob(obs, action) - behaviour, axis=1)
    flat_obs, flat_action = obs.reshape(-1, 1), action.reshape(-1, 1)
    norms = score_norms(params, flat_obs, flat_action, policy_fn=_policy).reshape(log_ratio.shape)
    weights = jax.vmap(partial(gradient_aware_weights, gamma=_GAMMA))(log_ratio, norms)
    values = batch_rollout_values(
        flat_obs,
        flat_action,
        key,
        act_fn=lambda s, e: _policy(params, s).reparameterise(e),
        step_fn=_step,
        num_rollouts=_ROLLOUTS,
        horizon=_HORIZON,
        gamma=_GAMMA,
        antithetic=antithetic,
    ).reshape(log_ratio.shape)
    coefficient = _GAMMA ** jnp.arange(_STEPS)[None] * jnp.exp(log_ratio) * values

    def surrogate(p: Array) -> Array:
        each = jax.vmap(jax.vmap(lambda s, a: _policy(p, s).log_prob(a)))(obs, action)
        return jnp.sum(coefficient * each) / obs.shape[0]

    return jax.grad(surrogate)(params), weights


def speed(recordings: int, repeats: int) -> dict[str, float]:
    """Returns seconds and model steps per second of this library, with independent and mirrored noise, and of NumPy.

    All three alternate on the same data. Seconds are those of the wall clock, and those of all cores together.
    """
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(recordings, _STEPS, 1)).astype(np.float32)
    noise = rng.normal(size=obs.shape).astype(np.float32)
    action = _POLICY[0] * obs + _POLICY[1] + np.exp(np.float32(_LOG_STD)) * noise
    behaviour = -0.5 * noise[..., 0] ** 2 - np.float32(_LOG_STD + 0.5 * np.log(2 * np.pi))
    data = tuple(map(jnp.asarray, (obs, action, behaviour)))
    params = jnp.asarray(_POLICY) + 0.01
    run, mirrored = jax.jit(_iteration), jax.jit(partial(_iteration, antithetic=True))
    numpy_run = partial(
        peer.iteration,
        (obs[..., 0], action[..., 0], behaviour),
        np.asarray(params),
        _MODEL,
        log_std=_LOG_STD,
        gamma=_GAMMA,
        rollouts=_ROLLOUTS,
        horizon=_HORIZON,
    )
    ours, halved = run(data, params, jax.random.key(0)), mirrored(data, params, jax.random.key(0))
    theirs = numpy_run(np.random.default_rng(1))
    steps = recordings * _STEPS * _ROLLOUTS * _HORIZON
    seconds: dict[str, list[tuple[float, float]]] = {"jax": [], "jax_antithetic": [], "numpy": []}
    for i in range(repeats):
        seconds["jax"].append(_seconds(partial(run, data, params, jax.random.key(i))))
        seconds["jax_antithetic"].append(_seconds(partial(mirrored, data, params, jax.random.key(i))))
        seconds["numpy"].append(_seconds(partial(numpy_run, np.random.default_rng(i))))
    found = {"model_steps": float(steps)}
    for name, taken in seconds.items():
        wall, cores = np.array(taken).T
        found[f"{name}_seconds"] = float(np.median(wall))
        found[f"{name}_best_seconds"] = float(wall.min())
        found[f"{name}_core_seconds"] = float(cores.min())
        found[f"{name}_million_steps_per_second"] = steps / float(np.median(wall)) / 1e6
        found[f"{name}_best_million_steps_per_second"] = steps / float(wall.min()) / 1e6
    for name in ("jax", "jax_antithetic"):
        ratio = np.array(seconds["numpy"]) / np.array(seconds[name])
        label = name.replace("jax", "ratio")
        found[label], found[f"{label}_of_core_seconds"] = (float(x) for x in np.median(ratio, axis=0))
    # The same estimator: the gradients differ by the noise of their roll-outs only.
    for name, gradient in (("", ours[0]), ("antithetic_", halved[0])):
        found[f"{name}gradient_difference"] = float(np.linalg.norm(gradient - theirs[0]) / np.linalg.norm(theirs[0]))
    found["weight_difference"] = float(np.abs(ours[1] - theirs[1]).max() / np.abs(theirs[1]).max())
    return found


def score_memory(hidden: int) -> dict[str, float]:
    """Returns what the compiled score norms of 1000 x 50 steps of a large policy need, streamed and all at once."""
    policy = gaussian_policy(8, 2, (hidden, hidden), squash=False)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    steps = 1000 * 50
    obs, action = (jax.ShapeDtypeStruct((steps, n), jnp.float32) for n in (8, 2))

    def bytes_of(chunk: int) -> float:
        fn = partial(score_norms, policy_fn=policy.apply, chunk=chunk)
        analysis = jax.jit(fn).lower(params, obs, action).compile().memory_analysis()
        return float(analysis.temp_size_in_bytes) if analysis else math.nan

    return {
        "parameters": float(size),
        "steps": float(steps),
        "gradients_at_once_megabytes": size * steps * 4 / 1e6,
        "streamed_by_64_megabytes": bytes_of(64) / 1e6,
        "streamed_by_1024_megabytes": bytes_of(1024) / 1e6,
    }


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the wall clock and of all cores."""
    began, began_cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - began, time.process_time() - began_cores
