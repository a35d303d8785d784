"""One iteration of gradient-aware search in vectorised NumPy, for a linear policy and a linear Gaussian model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["iteration"]


def iteration(
    data: tuple[np.ndarray, np.ndarray, np.ndarray],
    params: np.ndarray,
    model: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    *,
    log_std: float,
    gamma: float,
    rollouts: int,
    horizon: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradient of equation 5 ``[2]`` and the weights of equation 3 ``[N, T]``.

    Args:
      data: observations, actions and behaviour log-probabilities, float32 ``[N, T]`` each.
      params: slope and offset of the policy.
      model: ``mean`` and ``log_std`` of the change, each linear in ``(1, s, a)``.
      rng: of the roll-outs.
      log_std: of the policy.
      gamma: discount factor.
      rollouts: ``M``.
      horizon: ``H``.
    """
    obs, action, behaviour = data
    std, discount = np.float32(np.exp(log_std)), np.float32(gamma)
    noise = (action - params[0] * obs - params[1]) / std
    log_prob = np.float32(-0.5) * noise**2 - np.float32(log_std + 0.5 * np.log(2 * np.pi))
    log_ratio = np.cumsum(log_prob - behaviour, axis=1)
    score = np.stack([noise * obs, noise], axis=-1) / std
    discounts = discount ** np.arange(obs.shape[1], dtype=np.float32)
    weights = discounts * np.exp(log_ratio) * np.cumsum(np.linalg.norm(score, axis=-1), axis=1)

    s, a = (np.repeat(x.ravel()[None], rollouts, axis=0) for x in (obs, action))
    total, weight = np.zeros_like(s), np.float32(1.0)
    mean, spread = model["mean"], model["log_std"]
    for _ in range(horizon):
        total += weight * -(s * s + np.float32(0.1) * a * a)
        eps = rng.standard_normal(s.shape, dtype=np.float32)
        s = s + mean[0] + mean[1] * s + mean[2] * a + np.exp(spread[0] + spread[1] * s + spread[2] * a) * eps
        a = params[0] * s + params[1] + std * rng.standard_normal(s.shape, dtype=np.float32)
        weight *= discount
    values = total.mean(axis=0).reshape(obs.shape)
    coefficient = discounts * np.exp(log_ratio) * values
    return np.einsum("nt,ntd->d", coefficient, score) / obs.shape[0], weights
