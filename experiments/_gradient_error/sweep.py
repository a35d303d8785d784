"""Every configuration of the gradient-error study, as records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments._gradient_error.estimates import COMBINATIONS, Result, gradients
from experiments._gradient_error.fits import fit_critics, fit_models
from experiments._gradient_error.lemma import Constants, lemma_bound, lemma_constants
from experiments._gradient_error.problem import Sizes, Truth, truth

if TYPE_CHECKING:
    from experiments.gradient_error import Config

__all__ = ["configurations", "errors", "sweep"]


def configurations(config: Config) -> int:
    """Returns how many groups `sweep` yields."""
    return len(config.transitions) * len(config.gammas) * len(config.horizons)


def sweep(config: Config, first_seed: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of one data-set size, discount and horizon at a time: all combinations and seeds.

    Random numbers are shared as far as they can be: the data sets of a seed are nested, and every data set, discount
    and combination sees the same action noise.
    """
    sizes = Sizes(epochs=config.epochs, updates=config.updates, draws=config.draws)
    exact = {gamma: truth(gamma, config.horizons) for gamma in config.gammas}
    roots = jax.vmap(jax.random.key)(jnp.arange(first_seed, first_seed + config.seeds))
    model_keys, critic_keys, path_keys, draw_keys = jnp.moveaxis(
        jax.vmap(lambda k: jax.random.split(k, 4))(roots), 1, 0
    )
    for count in config.transitions:
        size = jnp.asarray(count)
        data, model = fit_models(model_keys, size, capacity=max(config.transitions), sizes=sizes)
        for gamma, known in exact.items():
            critic = fit_critics(data, critic_keys, size, known.gamma, sizes=sizes)
            constants = lemma_constants(known, model, critic, path_keys, horizons=config.horizons, sizes=sizes)
            constants = jax.tree.map(np.asarray, constants)
            for i, horizon in enumerate(config.horizons):
                keys = jax.vmap(lambda k, h=horizon: jax.random.fold_in(k, h))(draw_keys)
                result = gradients(known, known.truncated[i], model, critic, keys, horizon=horizon, sizes=sizes)
                yield _records(gamma, count, i, horizon, first_seed, known, result, constants)


def errors(gradient: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Returns the relative L1 error ``sum |g - g*| / sum |g*|`` and the cosine of two gradients."""
    g, r = np.asarray(gradient, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    norms = float(np.linalg.norm(g) * np.linalg.norm(r))
    return float(np.abs(g - r).sum() / np.abs(r).sum()), float(g @ r / norms) if norms > 0 else 0.0


def _records(
    gamma: float,
    count: int,
    index: int,
    horizon: int,
    first_seed: int,
    exact: Truth,
    result: Result,
    constants: Constants,
) -> list[dict[str, Any]]:
    gradient, standard_error = np.asarray(result.gradient), np.asarray(result.standard_error)
    truncated, full = np.asarray(exact.truncated[index]), np.asarray(exact.full)
    rows = []
    for seed in range(gradient.shape[0]):
        for combination, (learned_model, learned_critic) in enumerate(COMBINATIONS.values()):
            g = gradient[seed, combination]
            l1_truncated, cosine_truncated = errors(g, truncated)
            l1_full, cosine_full = errors(g, full)
            bound = lemma_bound(
                horizon,
                gamma,
                model_error=learned_model * float(constants.model_error[seed]),
                critic_error=learned_critic * float(constants.critic_error[seed, index]),
                critic_slope=float(constants.critic_slope[seed, int(learned_critic)]),
                reward_slope=float(constants.reward_slope[seed]),
                growth=float(constants.growth[seed]),
            )
            rows.append(
                {
                    "gamma": gamma,
                    "transitions": count,
                    "model": "learned" if learned_model else "true",
                    "critic": "learned" if learned_critic else "exact",
                    "horizon": horizon,
                    "seed": first_seed + seed,
                    "gradient": g.ravel(),
                    "standard_error": standard_error[seed, combination].ravel(),
                    "truncated": truncated.ravel(),
                    "full": full.ravel(),
                    "l1_truncated": l1_truncated,
                    "l1_full": l1_full,
                    "cosine_truncated": cosine_truncated,
                    "cosine_full": cosine_full,
                    "l2_truncated": float(np.linalg.norm(g - truncated)),
                    "lemma_bound": bound,
                    "model_error": float(constants.model_error[seed]),
                    "critic_error": float(constants.critic_error[seed, index]),
                }
            )
    return rows
