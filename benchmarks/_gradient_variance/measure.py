"""Moments and cost of an estimator, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._gradient_variance.estimators import GAIN, NOISE_STD, Estimator, Exact
from jaxhybrid.envs import lqr
from jaxhybrid.envs.lqr_functions import policy_fn, step_fn
from jaxhybrid.estimators import pathwise
from jaxhybrid.ops import moments
from jaxhybrid.types import Array, Key

__all__ = ["measure", "recorded_noise_rate"]


def measure(
    estimator: Estimator, known: Exact, full: np.ndarray, *, draws: int, chunk: int, key: Key
) -> dict[str, Any]:
    """Returns bias, variance and cost of one estimator.

    Every estimator is given the same keys; those that split them alike see the same noise.

    Args:
      estimator: row of the benchmark.
      known: what it is given.
      full: gradient of the return without end, ``[A, D]``.
      draws: ``N``, a multiple of ``chunk``.
      chunk: draws per call of the compiled program.
      key: of all draws.

    Returns:
      The record of `statistics`, the seconds of wall clock (median over chunks) and of all cores (mean) that a draw
      takes, and the draws per second of the median and of the fastest chunk.
    """

    @jax.jit
    def run(exact: Exact, chunk_key: Key) -> moments.Moments:
        keys = jax.random.split(chunk_key, chunk)
        return moments.of_batch(jax.vmap(lambda k: estimator.draw(exact, k))(keys))

    chunk_keys = jax.random.split(key, draws // chunk)
    jax.block_until_ready(run(known, chunk_keys[0]))
    parts, wall, cpu = [], [], []
    for chunk_key in chunk_keys:
        began, began_cpu = time.perf_counter(), time.process_time()
        parts.append(jax.block_until_ready(run(known, chunk_key)))
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    cost = {
        "wall_seconds_per_draw": float(np.median(wall)) / chunk,
        "cpu_seconds_per_draw": float(np.mean(cpu)) / chunk,
    }
    rates = {"draws_per_second": chunk / float(np.median(wall)), "draws_per_second_best": chunk / min(wall)}
    return statistics(estimator, full, parts) | cost | rates


def statistics(estimator: Estimator, full: np.ndarray, parts: list[moments.Moments]) -> dict[str, Any]:
    """Returns what the moments of all chunks say, compared with both truths; merged in float64."""
    with jax.enable_x64(True):
        doubled = [jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), part) for part in parts]
        total = moments.empty(doubled[0].mean)
        for part in doubled:
            total = moments.merge(total, part)
        mean, error, variance = total.mean, moments.standard_error(total), moments.variance(total)
        snr = moments.signal_to_noise(total)
    mean, error, variance = (np.asarray(x).ravel() for x in (mean, error, variance))
    truth, reference = estimator.truth.ravel(), full.ravel()
    return {
        "estimator": estimator.name,
        "target": estimator.target,
        "draws": int(total.count),
        "mean": mean,
        "standard_error": error,
        "truth": truth,
        "full": reference,
        "bias": mean - truth,
        "bias_z": (mean - truth) / error,
        "bias_full": mean - reference,
        "bias_full_z": (mean - reference) / error,
        "relative_l1_full": float(np.abs(mean - reference).sum() / np.abs(reference).sum()),
        "cosine_full": float(mean @ reference / (np.linalg.norm(mean) * np.linalg.norm(reference))),
        "variance": variance,
        "total_variance": float(variance.sum()),
        "signal_to_noise": float(snr),
    }


class _Mean(NamedTuple):
    """The policy without its noise: the action is ``mean``, whatever the key."""

    mean: Array

    def sample(self, key: Key) -> Array:
        del key
        return self.mean


def recorded_noise_rate(known: Exact, *, horizon: int, chunk: int, repeats: int, key: Key) -> dict[str, float]:
    """Returns the pathwise draws per second when a chunk's noise is drawn at once and enters through the step.

    The policy then returns its mean and the step adds ``sigma eps_t``: the same path, without a key per draw and step.
    """
    problem, gain = lqr.double_integrator(), jnp.array(GAIN)

    def policy(params: Array, obs: Array) -> _Mean:
        return _Mean(policy_fn(params, obs, noise_std=NOISE_STD).mean)

    def step(obs: Array, action: Array, noise: Array) -> tuple[Array, Array, Array]:
        return step_fn(obs, action + NOISE_STD * noise, None, problem=problem)

    @jax.jit
    def run(exact: Exact, chunk_key: Key) -> Array:
        noise = jax.random.normal(chunk_key, (horizon, 1, chunk))

        def draw(e: Array) -> Array:
            return pathwise(
                gain,
                problem.start_mean,
                chunk_key,
                policy_fn=policy,
                step_fn=step,
                horizon=horizon,
                gamma=exact.gamma,
                step_noise=e,
            )[0]

        return jnp.mean(jax.vmap(draw, in_axes=-1)(noise), axis=0)

    normals = jax.jit(lambda k: jnp.sum(jax.random.normal(k, (horizon, chunk))))
    return {
        "pathwise_recorded_noise": chunk / _median_seconds(lambda: run(known, key), repeats),
        "normals_only": chunk / _median_seconds(lambda: normals(key), repeats),
    }


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
