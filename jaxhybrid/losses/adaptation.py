"""A model that is made to be adapted: what one gradient step on a few outcomes does for the prediction of others.

Outcomes are next observations made of small integers. The gradients of that step say how a task differs from what the
model expects, so they are a description of the task as well (`prefix_gradients`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.types import Array, Key, PyTree

__all__ = [
    "Adaptable",
    "Outcomes",
    "adaptation_loss",
    "adapted",
    "initial_log_rates",
    "outcome_errors",
    "outcome_loss",
    "prefix_gradients",
    "surprise_weights",
]

LogitsFn = Callable[[PyTree, Array, Array], tuple[Array, ...]]
Order = Literal["second", "first"]


class Outcomes(NamedTuple):
    """Steps of one episode and what came of them.

    Attributes:
      obs: integer ``[T, C]``.
      action: integer ``[T]``.
      next_obs: integer ``[T, C]``.
      weight: how much a step counts, 0 for one that is not to be learnt from or past the end, float ``[T]``.
    """

    obs: Array
    action: Array
    next_obs: Array
    weight: Array


class Adaptable(NamedTuple):
    """Parameters of a model, and the logarithms of its inner step sizes, one for every tensor.

    ``log_rates`` has the structure of ``model`` with scalars, from `initial_log_rates`; None where they are not learnt.
    """

    model: PyTree
    log_rates: PyTree = None


def initial_log_rates(model_params: PyTree, rate: float) -> PyTree:
    """Returns the logarithm of ``rate`` for every tensor of a model."""
    return jax.tree.map(lambda x: jnp.full((), jnp.log(rate), x.dtype), model_params)


def outcome_loss(
    model_params: PyTree, example: tuple[Array, Array, Array], key: Key, *, logits_fn: LogitsFn
) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of one outcome, ``-sum_c log p_c(s'_c | s, a)``.

    Gradient flows through: the model.

    Args:
      model_params: parameters of the model.
      example: observation ``[C]``, action ``[]`` and next observation ``[C]``, integers.
      key: unused; the signature is that of every loss.
      logits_fn: ``logits_fn(model_params, obs, action)`` -> one vector of logits for each component.

    Returns:
      ``(loss [], aux)`` with aux ``right``, 1 where the likeliest outcome is the true one.

    Raises:
      AssertionError: a batch axis, or another number of logits than of components.
    """
    del key
    obs, action, next_obs = example
    chex.assert_rank([obs, action, next_obs], [1, 0, 1])
    logits = logits_fn(model_params, obs, action)
    assert len(logits) == next_obs.shape[0], f"{len(logits)} vectors of logits for {next_obs.shape[0]} components."
    losses = [-jax.nn.log_softmax(each)[value] for each, value in zip(logits, next_obs)]
    right = jnp.stack([jnp.argmax(each) == value for each, value in zip(logits, next_obs)])
    loss = jnp.sum(jnp.stack(losses))
    return loss, {"right": jnp.all(right).astype(loss.dtype)}


def outcome_errors(model_params: PyTree, outcomes: Outcomes, *, logits_fn: LogitsFn) -> Array:
    """Returns the `outcome_loss` of every step, 0 where its weight is, ``[T]``.

    Raises:
      AssertionError: outcomes of different lengths.
    """
    chex.assert_equal_shape_prefix(list(outcomes), 1)
    steps = (outcomes.obs, outcomes.action, outcomes.next_obs)
    errors = jax.vmap(lambda *step: _error(model_params, *step, logits_fn=logits_fn))(*steps)
    # A select, not a product: past the end anything may stand.
    return jnp.where(outcomes.weight > 0, errors, 0.0)


def adapted(
    params: Adaptable,
    support: Outcomes,
    *,
    logits_fn: LogitsFn,
    rate: Array | float = 0.1,
    order: Order = "second",
    num_steps: int = 1,
) -> PyTree:
    """Returns the model after gradient steps on the mean error of ``support``, ``theta' = theta - beta grad L(theta)``.

    Gradient flows through: ``theta``, the step sizes, and with ``order="second"`` the inner gradient as well.

    Args:
      params: the model, and the step sizes if they are learnt.
      support: what to adapt to; without any weight the model stays as it is.
      logits_fn: see `outcome_loss`.
      rate: ``beta`` where ``params.log_rates`` is None.
      order: "first" takes the inner gradient as a constant: cheaper, and biased.
      num_steps: inner steps, static.

    Raises:
      InputError: an unknown ``order`` or a number of steps below 1.
    """
    if order not in ("second", "first"):
        raise unknown("order", order, ("second", "first"))
    if num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1.")
    rates = jax.tree.map(lambda _: rate, params.model) if params.log_rates is None else _exp(params.log_rates)
    model = params.model
    for _ in range(num_steps):
        grads = jax.grad(_mean_error)(model, support, logits_fn)
        if order == "first":
            grads = jax.lax.stop_gradient(grads)
        model = jax.tree.map(lambda theta, beta, g: theta - beta * g, model, rates, grads)
    return model


def adaptation_loss(
    params: Adaptable,
    example: tuple[Outcomes, Outcomes],
    key: Key,
    *,
    logits_fn: LogitsFn,
    rate: Array | float = 0.1,
    order: Order = "second",
    num_steps: int = 1,
) -> tuple[Array, dict[str, Array]]:
    """Error on execution after adaptation to exploration, ``L_query(theta - beta grad L_support(theta))``.

    Gradient flows through: see `adapted`.

    Args:
      params: the model, and the step sizes if they are learnt.
      example: outcomes of exploration, to adapt to, and of execution, to predict.
      key: unused; the signature is that of every loss.
      logits_fn: see `outcome_loss`.
      rate: see `adapted`, and so are those that follow.
      order: of the gradient.
      num_steps: inner steps.

    Returns:
      ``(loss [], aux)`` with aux ``before``, the error on execution without adaptation, and ``support``, that on
      exploration. Where ``before`` is small without adaptation, the outcomes do not tell tasks apart; where ``loss`` is
      no smaller, exploration did not.

    Raises:
      InputError: see `adapted`.

    Source: Finn et al. 2017 (MAML), section 2.2; learned step sizes: Antoniou et al. 2019 (MAML++), section 4.
    """
    del key
    support, query = example
    model = adapted(params, support, logits_fn=logits_fn, rate=rate, order=order, num_steps=num_steps)
    before = jax.lax.stop_gradient(params.model)
    return _mean_error(model, query, logits_fn), {
        "before": _mean_error(before, query, logits_fn),
        "support": _mean_error(before, support, logits_fn),
    }


def prefix_gradients(params: PyTree, outcomes: Outcomes, *, logits_fn: LogitsFn) -> PyTree:
    """Gradients of the mean error over every prefix of an episode, one leading axis ``T+1`` on every leaf.

    ``G_t = sum_{i<t} w_i grad l_i / sum_{i<t} w_i``: what `adapted` would step along after ``t`` steps. They cost one
    gradient per step and a cumulative sum; that of the empty prefix is zero.

    Args:
      params: what the gradients are taken in: all parameters of a model or, with the others bound in ``logits_fn``,
        some of them or a few coordinates (`integer_dynamics.OutcomeModel.shifted`).
      outcomes: of one episode; steps without weight change nothing.
      logits_fn: see `outcome_loss`.
    """

    def gradient(obs: Array, action: Array, next_obs: Array) -> PyTree:
        return jax.grad(lambda p: _error(p, obs, action, next_obs, logits_fn=logits_fn))(params)

    each = jax.vmap(gradient)(outcomes.obs, outcomes.action, outcomes.next_obs)
    total = jnp.cumsum(outcomes.weight)
    triangle = jnp.tril(jnp.ones((outcomes.weight.shape[0],) * 2))

    def means(gradients: Array) -> Array:
        shape = (-1,) + (1,) * (gradients.ndim - 1)
        weight = outcomes.weight.reshape(shape)
        counted = jnp.where(weight > 0, weight * gradients, 0.0)
        # A product with a triangle of ones: a CPU is slow at adding up as it goes.
        sums = jnp.tensordot(triangle, counted, 1, precision="highest")
        divisor = jnp.where(total > 0, total, 1.0).reshape(shape)
        return jnp.concatenate([jnp.zeros_like(sums[:1]), sums / divisor])

    return jax.tree.map(means, each)


def surprise_weights(errors: Array, weight: Array, *, exponent: float = 1.0, floor: float = 1e-3) -> Array:
    """Gives steps that the model predicts badly more weight, ``w_t (l_t + floor)^exponent`` up to a factor.

    The total stays what it was. It is meant for the outcomes that a model is trained on, most of which say nothing
    about the task; it makes the loss one of another distribution of steps, on purpose.

    Args:
      errors: of `outcome_errors`, ``[T]``; taken as constants.
      weight: of the steps, ``[T]``.
      exponent: 0 leaves the weights alone.
      floor: so that a step that is predicted well does not vanish.

    Source: after Schaul et al. 2016, Prioritized experience replay, equation 1.
    """
    raised = weight * (jax.lax.stop_gradient(errors) + floor) ** exponent
    total = jnp.sum(raised)
    return raised * jnp.sum(weight) / jnp.where(total > 0, total, 1.0)


def _error(params: PyTree, obs: Array, action: Array, next_obs: Array, *, logits_fn: LogitsFn) -> Array:
    # The loss has no draw.
    return outcome_loss(params, (obs, action, next_obs), jax.random.key(0), logits_fn=logits_fn)[0]


def _mean_error(model_params: PyTree, outcomes: Outcomes, logits_fn: LogitsFn) -> Array:
    errors = outcome_errors(model_params, outcomes, logits_fn=logits_fn)
    total = jnp.sum(outcomes.weight)
    return jnp.sum(outcomes.weight * errors) / jnp.where(total > 0, total, 1.0)


def _exp(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.exp, tree)
