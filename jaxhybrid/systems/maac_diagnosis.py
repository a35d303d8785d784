"""How much of each gradient of MAAC is signal: opt-in, and it changes nothing else."""

from __future__ import annotations

from functools import partial

import jax

from jaxhybrid.estimators.signal import gradient_snr
from jaxhybrid.losses import critic as critic_losses
from jaxhybrid.losses.batching import batched
from jaxhybrid.systems import maac_updates as updates
from jaxhybrid.systems.maac_updates import Learner, Parts
from jaxhybrid.types import Array, Key, PyTree, StepFn, Transition

__all__ = ["DIAGNOSIS_METRICS", "diagnose"]

DIAGNOSIS_METRICS = ("actor/snr", "critic/snr")

# Keeps the draws of the diagnosis apart from those of the update that it looks at.
_STREAM = 0xD1A6


def diagnose(parts: Parts, step_fn: StepFn, learner: Learner, batch: Transition, key: Key) -> dict[str, Array]:
    """Signal-to-noise ratios of the gradients that an update of ``batch`` would take, see `gradient_snr`.

    Args:
      parts: of the system; ``config.diagnose_parts`` parts of the batch are compared.
      step_fn: the model.
      learner: before the update.
      batch: rows ``[B, ...]``.
      key: of the update.
    """
    actor_key, critic_key = jax.random.split(jax.random.fold_in(key, _STREAM))
    num_parts = parts.config.diagnose_parts
    # Real rows come first in a batch, and every part should see as many of them.
    batch = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), updates.grouped(batch, num_parts))

    def actor_grad(params: PyTree, rows: Transition, k: Key) -> PyTree:
        loss = partial(updates.actor_loss, parts=parts, step_fn=step_fn, learner=learner)
        return jax.grad(loss, has_aux=True)(params, rows.obs, k)[0]

    def critic_grad(params: PyTree, rows: Transition, k: Key) -> PyTree:
        target_key, loss_key = jax.random.split(k)
        targets, _ = updates.critic_targets(parts, step_fn, learner, rows, target_key)
        loss = batched(partial(critic_losses.squared_error, q_fn=parts.critic.apply))
        return jax.grad(loss, has_aux=True)(params, (rows.obs, rows.action, targets), loss_key)[0]

    _, actor = gradient_snr(actor_grad, learner.policy_params, batch, actor_key, num_parts=num_parts)
    _, critic = gradient_snr(critic_grad, learner.critic_params, batch, critic_key, num_parts=num_parts)
    return {"actor/snr": actor["snr"], "critic/snr": critic["snr"]}
