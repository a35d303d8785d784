"""Multi-step control variates: the score term on what a model roll-out does not explain, and the roll-out's slope."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxhybrid.errors import InputError, unknown
from jaxhybrid.ops import trees
from jaxhybrid.ops.returns import discounted_sum
from jaxhybrid.rollout import unroll
from jaxhybrid.types import Array, Key, PolicyFn, PyTree, QFn, Segment, StepFn, ValueFn

__all__ = ["Tail", "mscv_loss", "qprop_loss", "svg_loss"]

Tail = Literal["fresh", "cut"]
Reading = Literal["unbiased", "released"]


def mscv_loss(
    policy_params: PyTree,
    segment: Segment,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    value_fn: ValueFn,
    horizon: int,
    gamma: Array | float,
    eta: Array | float = 1.0,
    behaviour_params: PyTree = None,
    fresh_paths: int = 0,
    tail: Tail = "fresh",
) -> tuple[Array, dict[str, Array]]:
    """Surrogate of the policy gradient with a multi-step control variate: its slope is the estimator.

    ``-[rho (A - eta A_hat) + eta Q_hat(s, mu(s, eps_0), eps_{1..k-1})]`` with ``A = R - V(s)``, ``A_hat = Q_hat(s, a,
    eps_{1..k-1}) - V(s)``, ``Q_hat = sum_{j<k} gamma^j r_j + gamma^k V(s_k)`` along the model from ``s`` with the
    recorded noise, and ``rho = pi(a | s) / b(a | s)``. ``horizon=0`` or ``eta=0`` is the surrogate of TRPO.

    Estimates: minus ``E[grad log pi(a | s) Q(s, a)]`` over the states of the recording.
    Unbiased when: for any model, value and ``eta``, however wrong, if

      - ``empirical_return`` is the return itself; a bootstrapped one, or GAE below 1, brings in the bias of its value;
      - model, value, ``eta`` and ``horizon`` do not depend on this segment: fit and choose on past data;
      - ``step_fn`` draws its noise from the keys it is handed; noise inferred from the observation that really followed
        depends on the action;
      - every step of an episode counts, the last ones too; with ``tail="cut"``, the action does not decide the end;
      - whatever scales the advantages divides the whole loss.

    Gradient flows through: ``log pi`` at the recorded action; in ``Q_hat`` the first action only. Later actions follow
      the state they are taken in, but not the parameters: their own segments differentiate those.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      segment: one recorded step. Of a step past the end (``mask[0] = 0``) the loss is zero.
      key: one draw of the model's noise, of the fresh paths and of the noise that the record lacks.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)`` and ``reparameterise(noise)`` of
        standard normal noise.
      step_fn: model step with bound parameters, ``(obs, action, key) -> (next_obs, reward, discount)``.
      value_fn: value with bound parameters, ``obs -> []``, at the end of the roll-out and as baseline.
      horizon: ``k >= 0``, static, at most the rows of ``segment.noise``; the paper used 2.
      gamma: discount factor.
      eta: coefficient of the control variate, 1 in the paper; see `ops.control_variates.optimal_coefficient` for the
        one of least variance.
      behaviour_params: parameters that recorded the segment, for the value of the surrogate away from them (line
        search); None: ``policy_params``.
      fresh_paths: roll-outs with fresh noise over which the slope is averaged, static; 0 takes the recorded noise.
      tail: what follows the recorded episode's end within the horizon. "fresh" walks on in the model with fresh noise.
        "cut" bootstraps with ``V`` there, a shortened k: biased where an action can end an episode.

    Returns:
      ``(loss [], aux)`` with aux ``advantage``, ``embedded_advantage`` (A_hat) and ``ratio``.

    Raises:
      AssertionError: a batch axis on ``segment``, or a negative horizon.
      InputError: a horizon longer than the segment, or an unknown ``tail``.

    Source: Combining model-based and model-free RL via multi-step control variates (ICLR 2018 submission), equation 5
      and algorithm 1.
    """
    bound: dict[str, Any] = {"step_fn": step_fn, "value_fn": value_fn, "horizon": horizon, "gamma": gamma, "tail": tail}
    held, segment = _held(policy_params, behaviour_params), _emptied(segment)
    slope_loss, _ = svg_loss(
        policy_params, segment, key, policy_fn=policy_fn, behaviour_params=held, fresh_paths=fresh_paths, **bound
    )
    noise, step_keys, _ = _noise(segment, key, horizon=horizon, tail=tail)
    embedded = _embedded_value(
        segment.action, segment, noise, step_keys, act_fn=_act(partial(policy_fn, held)), **bound
    )
    baseline = value_fn(segment.obs)
    advantage, embedded_advantage = segment.empirical_return - baseline, embedded - baseline
    score_loss, ratio = _score_loss(policy_params, held, segment, advantage - eta * embedded_advantage, policy_fn)
    aux = {"advantage": advantage, "embedded_advantage": embedded_advantage, "ratio": ratio}
    return score_loss + eta * slope_loss, aux


def svg_loss(
    policy_params: PyTree,
    segment: Segment,
    key: Key,
    *,
    policy_fn: PolicyFn,
    step_fn: StepFn,
    value_fn: ValueFn,
    horizon: int,
    gamma: Array | float,
    behaviour_params: PyTree = None,
    fresh_paths: int = 0,
    tail: Tail = "fresh",
) -> tuple[Array, dict[str, Array]]:
    """Stochastic value gradient of one recorded step, SVG(k): the control variate's slope without its correction.

    ``-Q_hat(s, mu(s, eps_0), eps_{1..k-1})``, the embedded roll-out of `mscv_loss`.

    Estimates: minus ``E[grad log pi(a | s) Q_hat(s, a)]``; for the policy gradient it has the bias of model and value.
    Unbiased when: the model and the slope of the value are exact; otherwise not.
    Gradient flows through: the first action, the model steps, the rewards, the states that later actions follow and
      the input of ``value_fn``; not through the parameters of later actions.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      segment: as for `mscv_loss`; the return is not used.
      key: as for `mscv_loss`; the same key gives the same draw.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``reparameterise(noise)``.
      step_fn: model step with bound parameters.
      value_fn: value with bound parameters.
      horizon: ``k >= 0``, static; 0 has no slope.
      gamma: discount factor.
      behaviour_params: parameters of the later actions; None: ``policy_params``, held constant.
      fresh_paths: roll-outs with fresh noise that are averaged, static; 0 takes the recorded noise.
      tail: as for `mscv_loss`.

    Returns:
      ``(loss [], aux)`` with aux ``embedded_value``.

    Raises:
      As for `mscv_loss`.

    Source: Heess et al. 2015, Learning continuous control policies by stochastic value gradients, section 4; the
      embedding of recorded noise is theirs too.
    """
    chex.assert_scalar_non_negative(fresh_paths)
    segment = _emptied(segment)
    # The later actions' parameters are constants: differentiated here they would count once for every earlier step.
    later_fn = partial(policy_fn, _held(policy_params, behaviour_params))
    noise, step_keys, path_key = _noise(segment, key, horizon=horizon, tail=tail)

    def value(first_noise: Array, later_noise: Array, keys: Key) -> Array:
        first_action = policy_fn(policy_params, segment.obs).reparameterise(first_noise)
        return _embedded_value(
            first_action,
            segment,
            later_noise,
            keys,
            act_fn=_act(later_fn),
            step_fn=step_fn,
            value_fn=value_fn,
            horizon=horizon,
            gamma=gamma,
            tail=tail,
        )

    if fresh_paths == 0 or horizon == 0:
        embedded = value(segment.noise[0], noise, step_keys)
    else:
        normal_key, model_key = jax.random.split(path_key)
        fresh = jax.random.normal(normal_key, (fresh_paths, *noise.shape), noise.dtype)
        model_keys = jax.random.split(model_key, (fresh_paths, horizon))
        embedded = jnp.mean(jax.vmap(lambda n, k: value(n[0], n, k))(fresh, model_keys))
    return jnp.where(segment.mask[0] > 0, -embedded, 0.0), {"embedded_value": embedded}


def qprop_loss(
    policy_params: PyTree,
    segment: Segment,
    key: Key,
    *,
    policy_fn: PolicyFn,
    q_fn: QFn,
    value_fn: ValueFn,
    eta: Array | float = 1.0,
    advantage_scale: Array | float = 1.0,
    behaviour_params: PyTree = None,
    reading: Reading = "unbiased",
) -> tuple[Array, dict[str, Array]]:
    """Surrogate of Q-Prop: the control variate is the critic's tangent at the mean action, its slope is analytic.

    ``-[rho (A - eta A_hat) + eta q' mu(s)] / scale`` with ``A = R - V(s)``, ``q = grad_a Q(s, mu(s))`` constant and
    ``A_hat = q' (a - mu(s))``.

    Estimates: minus ``E[grad log pi(a | s) Q(s, a)] / scale`` over the states of the recording.
    Unbiased when: the reading is "unbiased", the mode of the policy is its mean (a Gaussian), ``eta`` and the critic do
      not depend on this segment, and ``empirical_return`` is the return itself.
    Gradient flows through: ``log pi`` at the recorded action and the mean action; not through ``q``.

    Args:
      policy_params: parameters of the policy, what is differentiated.
      segment: one recorded step; of ``noise`` nothing is used.
      key: unused, the recording is the draw.
      policy_fn: ``policy_fn(policy_params, obs)`` -> record with ``log_prob(action)`` and ``mode()``.
      q_fn: critic with bound parameters, ``(obs, action) -> []``.
      value_fn: baseline with bound parameters, ``obs -> []``.
      eta: coefficient of the control variate.
      advantage_scale: what standardises the advantages, in units of the return.
      behaviour_params: parameters that recorded the segment; None: ``policy_params``.
      reading: "unbiased", or "released", which is biased twice: ``eta`` counts only where ``A A_hat > 0``, a condition
        on the sample's own action, and the slope of the mean action is not divided by the scale.

    Returns:
      ``(loss [], aux)`` with aux ``advantage``, ``embedded_advantage`` (A_hat) and ``ratio``.

    Raises:
      AssertionError: a batch axis on ``segment``.
      InputError: an unknown ``reading``.

    Source: Gu et al. 2017, Q-Prop: sample-efficient policy gradient with an off-policy critic, section 3; the biases:
      Tucker et al. 2018, The mirage of action-dependent baselines in reinforcement learning.
    """
    del key
    if reading not in ("unbiased", "released"):
        raise unknown("reading", reading, ("unbiased", "released"))
    held, segment = _held(policy_params, behaviour_params), _emptied(segment)
    centre = policy_fn(held, segment.obs).mode()
    slope = jax.grad(q_fn, argnums=1)(segment.obs, centre)
    advantage = segment.empirical_return - value_fn(segment.obs)
    embedded_advantage = jnp.sum(slope * (segment.action - centre))
    slope_scale = advantage_scale
    if reading == "released":
        eta = jnp.where(advantage * embedded_advantage > 0, eta, 0.0)
        slope_scale = 1.0
    coefficient = (advantage - eta * embedded_advantage) / advantage_scale
    score_loss, ratio = _score_loss(policy_params, held, segment, coefficient, policy_fn)
    mean_action = policy_fn(policy_params, segment.obs).mode()
    slope_loss = jnp.where(segment.mask[0] > 0, -eta * jnp.sum(slope * mean_action) / slope_scale, 0.0)
    aux = {"advantage": advantage, "embedded_advantage": embedded_advantage, "ratio": ratio}
    return score_loss + slope_loss, aux


def _held(policy_params: PyTree, behaviour_params: PyTree) -> PyTree:
    # At the parameters that recorded the segment, those parameters are a constant of the same parameters.
    return jax.lax.stop_gradient(policy_params) if behaviour_params is None else behaviour_params


def _emptied(segment: Segment) -> Segment:
    """The segment, all zeros if its step is past the end: of what stands there no function may see anything."""
    _check(segment)
    return trees.where(segment.mask[0] > 0, segment, jax.tree.map(jnp.zeros_like, segment))


def _score_loss(
    policy_params: PyTree, held: PyTree, segment: Segment, coefficient: Array, policy_fn: PolicyFn
) -> tuple[Array, Array]:
    """``-pi(a | s) / b(a | s) coefficient`` and the ratio; at the behaviour's parameters the slope is the score's."""
    log_prob = policy_fn(policy_params, segment.obs).log_prob(segment.action)
    ratio = jnp.exp(log_prob - policy_fn(held, segment.obs).log_prob(segment.action))
    return jnp.where(segment.mask[0] > 0, -ratio * coefficient, 0.0), ratio


def _act(policy_fn: Any) -> Any:
    return lambda obs, noise: policy_fn(obs).reparameterise(noise)


def _noise(segment: Segment, key: Key, *, horizon: int, tail: Tail) -> tuple[Array, Key, Key]:
    """Noise of the recorded path ``[k, A]``, keys of its model steps ``[k]`` and a key for fresh paths."""
    chex.assert_scalar_non_negative(horizon)
    rows = segment.noise.shape[0]
    if horizon > rows:
        raise InputError(
            f"horizon={horizon} is longer than the segment, which has the noise of {rows} steps: record more of them, "
            "or shorten the horizon."
        )
    if tail not in ("fresh", "cut"):
        raise unknown("tail", tail, ("fresh", "cut"))
    tail_key, model_key, path_key = jax.random.split(key, 3)
    # Whether step j was reached is decided before its noise is drawn. So filled up with fresh noise the record is
    # independent of the action; cut short or filled with zeros it is not.
    missing = jax.random.normal(tail_key, segment.noise.shape, segment.noise.dtype)
    noise = jnp.where(segment.mask[:, None] > 0, segment.noise, missing)
    return noise[:horizon], jax.random.split(model_key, horizon), path_key


def _embedded_value(
    first_action: Array,
    segment: Segment,
    noise: Array,
    step_keys: Key,
    *,
    act_fn: Any,
    step_fn: StepFn,
    value_fn: ValueFn,
    horizon: int,
    gamma: Array | float,
    tail: Tail,
) -> Array:
    """``Q_hat``: the value of an action along the model, later actions by the noise, ``[]``."""
    if horizon == 0:
        return value_fn(segment.obs)
    path = unroll(
        segment.obs,
        ((jnp.arange(horizon) == 0, noise), step_keys),
        act_fn=lambda s, step: jnp.where(step[0], first_action, act_fn(s, step[1])),
        step_fn=step_fn,
    )
    if tail == "fresh":
        return discounted_sum(path.reward, path.discount, gamma=gamma, bootstrap=value_fn(path.final_obs))
    inside = segment.mask[:horizon] > 0
    end = jnp.concatenate([path.obs, path.final_obs[None]])[jnp.sum(inside)]
    return discounted_sum(
        jnp.where(inside, path.reward, 0.0),
        jnp.where(inside, path.discount, 1.0),
        gamma=jnp.where(inside, gamma, 1.0),
        bootstrap=value_fn(end),
    )


def _check(segment: Segment) -> None:
    chex.assert_rank([segment.obs, segment.action, segment.mask], 1)
    chex.assert_rank([segment.noise, segment.empirical_return], [2, 0])
    chex.assert_shape(segment.noise, (segment.mask.shape[0], segment.action.shape[0]))
    chex.assert_type([segment.obs, segment.action, segment.noise, segment.empirical_return, segment.mask], float)
