"""The policy gradient of MSCV on a batch of segments, and the step along it in the trust region."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.losses.control_variate import mscv_loss, svg_loss
from jaxhybrid.ops import trees
from jaxhybrid.ops.control_variates import optimal_coefficient
from jaxhybrid.sharding import spread
from jaxhybrid.systems.mscv_updates import Advice, Learner, Parts, bindings, policy_of, tangent
from jaxhybrid.trust_region import mean_kl, trust_region_step
from jaxhybrid.types import Array, Key, PyTree, Segment

__all__ = ["policy_gradient", "policy_step", "surrogate", "tensor_coefficients"]

# Samples of the gradient from which a coefficient per tensor is estimated.
_GROUPS = 50


def policy_step(
    parts: Parts, learner: Learner, batch: Segment, advice: Advice, key: Key
) -> tuple[PyTree, Array, dict[str, Array]]:
    """One step in the trust region along the estimated policy gradient.

    Returns:
      ``(policy_params, finite, metrics)``; without a finite gradient the policy stays.
    """
    config, batch = parts.config, spread(batch)
    loss_fn = partial(surrogate, parts, learner, batch, advice, key)
    grads = policy_gradient(parts, learner, batch, advice, key)
    policy_fn = policy_of(parts, learner.seen)
    kl_fn = partial(mean_kl, obs=batch.obs, policy_fn=policy_fn, behaviour_params=learner.policy_params)
    params, aux = trust_region_step(
        learner.policy_params,
        grads,
        loss_fn=loss_fn,
        kl_fn=kl_fn,
        max_kl=config.max_kl,
        damping=config.damping,
        iterations=config.cg_iterations,
        backtracks=config.backtracks,
        hard_kl=config.hard_kl,
    )
    metrics = {f"policy/{name}": value for name, value in aux.items()}
    metrics["policy/grad_norm"] = trees.norm(grads)
    metrics["policy/update_ratio"] = trees.relative_change(learner.policy_params, params)
    metrics["policy/log_std"] = jnp.mean(learner.policy_params["log_std"])
    if config.diagnose_parts:
        metrics["policy/snr"] = _signal(parts, learner, batch, advice, key)
    return params, trees.all_finite(grads), metrics


def surrogate(parts: Parts, learner: Learner, batch: Segment, advice: Advice, key: Key, policy_params: PyTree) -> Array:
    """Mean surrogate of a batch, ``[]``, in chunks of bounded memory; dividing a part by the scale would be a bias."""
    config = parts.config
    keys = jax.random.split(key, batch.obs.shape[0])
    chunked = jax.tree.map(lambda x: x.reshape((-1, config.segment_chunk) + x.shape[1:]), (batch, keys))
    loss = _loss(parts, learner, advice)

    # Each chunk is computed again on the way back, or all of them would be kept.
    @jax.checkpoint
    def chunk(segment_batch: Segment, segment_keys: Key) -> Array:
        return jnp.mean(jax.vmap(partial(loss, policy_params))(segment_batch, segment_keys))

    return jnp.mean(jax.lax.map(lambda x: chunk(*x), chunked))


def tensor_coefficients(parts: Parts, learner: Learner, batch: Segment, advice: Advice, key: Key) -> PyTree:
    """What a batch says about the coefficient of every tensor, from the mean gradients of groups of neighbouring steps.

    Groups, because their gradients are few, and because neighbours are correlated, which counts.
    """
    size = batch.obs.shape[0]
    group = next(n for n in range(max(size // _GROUPS, 1), 0, -1) if size % n == 0)
    keys = jax.random.split(key, size)
    grouped = jax.tree.map(lambda x: x.reshape((-1, group) + x.shape[1:]), (batch, keys))

    def both(segment_batch: Segment, segment_keys: Key) -> tuple[PyTree, PyTree]:
        def mean(policy_params: PyTree, eta: float) -> Array:
            loss = partial(_loss(parts, learner, advice._replace(eta=jnp.asarray(eta))), policy_params)
            return jnp.mean(jax.vmap(loss)(segment_batch, segment_keys))

        return jax.grad(mean)(learner.policy_params, 0.0), jax.grad(mean)(learner.policy_params, 1.0)

    without, full = jax.lax.map(lambda x: both(*x), grouped)
    return jax.tree.map(lambda x, y: optimal_coefficient(x, x - y), without, full)


def policy_gradient(parts: Parts, learner: Learner, batch: Segment, advice: Advice, key: Key) -> PyTree:
    """Gradient of the mean surrogate of a batch, with a coefficient for every tensor where the advice has them."""

    def of(eta: Array) -> PyTree:
        return jax.grad(partial(surrogate, parts, learner, batch, advice._replace(eta=eta), key))(learner.policy_params)

    if advice.tensor_eta is None:
        return of(advice.eta)
    # The estimator is linear in the coefficient, so that each tensor may have its own.
    without, full = of(jnp.zeros(())), of(jnp.ones(()))
    return jax.tree.map(lambda x, y, eta: x + eta * (y - x), without, full, advice.tensor_eta)


def _signal(parts: Parts, learner: Learner, batch: Segment, advice: Advice, key: Key) -> Array:
    """Signal-to-noise ratio of the policy gradient, ``[]``; see `gradient_snr`."""
    config = parts.config
    size = batch.obs.shape[0] // config.diagnose_parts
    fitting = parts._replace(config=dataclasses.replace(config, segment_chunk=math.gcd(size, config.segment_chunk)))

    def gradient(policy_params: PyTree, part: Segment, k: Key) -> PyTree:
        return policy_gradient(fitting, learner._replace(policy_params=policy_params), part, advice, k)

    _, aux = gradient_snr(gradient, learner.policy_params, batch, key, num_parts=config.diagnose_parts)
    return aux["snr"]


def _loss(parts: Parts, learner: Learner, advice: Advice) -> Callable[[PyTree, Segment, Key], Array]:
    """The surrogate of one segment, over the scale of the advantages."""
    config, known = parts.config, bindings(parts, learner)
    if config.estimator == "qprop":
        given: Any = partial(tangent(parts, learner), eta=advice.eta, advantage_scale=advice.scale)
        return lambda params, segment, key: given(params, segment, key)[0]
    if config.estimator == "svg":
        slope: Any = partial(svg_loss, horizon=config.horizon, fresh_paths=config.fresh_paths, **known)
        # Before the model has learnt, eta is zero and so is the step.
        return lambda params, segment, key: jnp.sign(advice.eta) * slope(params, segment, key)[0] / advice.scale

    def of_horizon(horizon: int) -> Callable[[PyTree, Segment, Key], Array]:
        loss: Any = partial(mscv_loss, horizon=horizon, eta=advice.eta, fresh_paths=config.fresh_paths, **known)
        return lambda params, segment, key: loss(params, segment, key)[0] / advice.scale

    if config.horizon_rule == "fixed":
        return of_horizon(config.horizon)
    branches = [of_horizon(h) for h in range(config.horizon + 1)]
    return lambda params, segment, key: jax.lax.switch(advice.horizon, branches, params, segment, key)
