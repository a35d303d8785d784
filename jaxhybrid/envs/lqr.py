"""Linear-quadratic regulation: the environment whose every value and gradient is known exactly.

    s_{t+1} = A s_t + B a_t + W w_t,    r_t = -1/2 (s_t' Q s_t + a_t' R a_t),    a_t = K s_t + sigma * eps_t

with ``w`` and ``eps`` standard normal. Everything below is a closed form of ``(problem, gain K)``: pure,
differentiable, jit-able and vmap-able over the gain. The closed forms are oracles, so run them in float64
(``jax.enable_x64``).

An unstable gain, one for which ``sqrt(gamma) (A + B K)`` has spectral radius 1 or more, has no finite return. It is
refused with `InputError` when the arrays are concrete; under ``jit``, ``vmap`` or ``grad`` no Python exception can
depend on a value, and every result is NaN instead.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxhybrid.envs.lqr_problems import Problem, check_problem, double_integrator, is_concrete, random_problem
from jaxhybrid.envs.matrix_equations import lyapunov, riccati
from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, EnvSpec, Key, TimeStep

__all__ = [
    "LQRState",
    "Problem",
    "double_integrator",
    "expected_return",
    "make",
    "optimal_gain",
    "policy_gradient",
    "q_value",
    "random_problem",
    "second_moments",
    "value",
]


class LQRState(NamedTuple):
    """State of the environment: the observation ``[D]`` and the number of steps taken ``[]``."""

    obs: Array
    step: Array


def value(problem: Problem, gain: Array, obs: Array, noise_std: float | Array = 0.0) -> Array:
    """Returns the value of a state under the linear-Gaussian policy.

        V(s) = -1/2 s' P s - c,    P = Q + K' R K + gamma (A + B K)' P (A + B K),
        c = (tr(R Sigma) + gamma tr(P (B Sigma B' + W W'))) / (2 (1 - gamma)),    Sigma = diag(sigma^2)

    Args:
      problem: the problem.
      gain: ``K``, ``[A, D]``.
      obs: state, ``[D]``.
      noise_std: ``sigma``, ``[]`` or ``[A]``.

    Returns:
      The value, ``[]``.

    Raises:
      InputError: on a wrong shape, a discount outside ``[0, 1)`` or an unstable gain.
    """
    problem, gain, variance = _check(problem, gain, noise_std)
    P = _cost_to_go(problem, gain)
    return -0.5 * _quadratic(P, obs) - _noise_cost(problem, P, variance)


def q_value(problem: Problem, gain: Array, obs: Array, action: Array, noise_std: float | Array = 0.0) -> Array:
    """Returns the value of an action that is followed by the linear-Gaussian policy.

        Q(s, a) = -1/2 (s' Q s + a' R a) + gamma E[V(A s + B a + W w)]

    Args:
      problem: the problem.
      gain: ``K`` of the policy that acts from the next step on, ``[A, D]``.
      obs: state, ``[D]``.
      action: action, ``[A]``.
      noise_std: ``sigma`` of that policy, ``[]`` or ``[A]``.

    Returns:
      The value, ``[]``.

    Raises:
      InputError: as for `value`.
    """
    problem, gain, variance = _check(problem, gain, noise_std)
    P = _cost_to_go(problem, gain)
    mean = problem.A @ obs + problem.B @ action
    spread = jnp.sum(P * (problem.process_scale @ problem.process_scale.T))
    expected_next_value = -0.5 * (_quadratic(P, mean) + spread) - _noise_cost(problem, P, variance)
    return _reward(problem, obs, action) + problem.gamma * expected_next_value


def expected_return(problem: Problem, gain: Array, noise_std: float | Array = 0.0) -> Array:
    """Returns the discounted return over an infinite horizon, ``J = E[V(s_0)] = -1/2 tr(P S_0) - c``.

    Args:
      problem: the problem.
      gain: ``K``, ``[A, D]``.
      noise_std: ``sigma``, ``[]`` or ``[A]``.

    Returns:
      The return, ``[]``; its derivative with respect to ``noise_std`` is exact as well.

    Raises:
      InputError: as for `value`.
    """
    problem, gain, variance = _check(problem, gain, noise_std)
    P = _cost_to_go(problem, gain)
    return -0.5 * jnp.sum(P * _start_moment(problem)) - _noise_cost(problem, P, variance)


def policy_gradient(
    problem: Problem, gain: Array, *, horizon: int | None = None, noise_std: float | Array = 0.0
) -> Array:
    """Returns the exact gradient of the return, or of the objective with a frozen critic, with respect to the gain.

        dJ/dK = -E_K sum_{t>=0} gamma^t S_t,    E_K = (R + gamma B' P B) K + gamma B' P A,    S_t = E[s_t s_t']

    With ``horizon = H`` the sum stops at ``t = H``. That is what an estimator with a perfect model *and* a perfect
    critic gives for ``sum_{t<H} gamma^t r_t + gamma^H Q(s_H, a_H)``: the critic's own dependence on the policy, which
    carries every term past ``H``, is not differentiated.

    Args:
      problem: the problem.
      gain: ``K``, ``[A, D]``.
      horizon: ``H``, a static integer of 0 or more; None for the whole gradient.
      noise_std: ``sigma``, ``[]`` or ``[A]``.

    Returns:
      The gradient, ``[A, D]``.

    Raises:
      InputError: as for `value`, and on a negative horizon.

    Source: Fazel et al. (2018), "Global convergence of policy gradient methods for the linear quadratic regulator",
    Lemma 1, with a discount; the truncation is the objective of Clavera, Fu and Abbeel (2020), Section 4.1.
    """
    if horizon is not None:
        moments = second_moments(problem, gain, horizon=horizon, noise_std=noise_std)
    problem, gain, variance = _check(problem, gain, noise_std)
    gamma, A, B = problem.gamma, problem.A, problem.B
    if horizon is None:
        # G = sum_t gamma^t S_t obeys G = S_0 + gamma A_K G A_K' + gamma/(1 - gamma) N: one more Lyapunov equation.
        noise = gamma / (1.0 - gamma) * _step_noise(problem, variance)
        visited = lyapunov(jnp.sqrt(gamma) * (A + B @ gain), _start_moment(problem) + noise)
    else:
        visited = jnp.einsum("t,tij->ij", gamma ** jnp.arange(horizon + 1), moments)
    P = _cost_to_go(problem, gain)
    return -((problem.R + gamma * B.T @ P @ B) @ gain + gamma * B.T @ P @ A) @ visited


def second_moments(problem: Problem, gain: Array, *, horizon: int, noise_std: float | Array = 0.0) -> Array:
    """Returns the second moments of the states that the policy visits.

        S_0 = m m' + L L',    S_{t+1} = (A + B K) S_t (A + B K)' + B Sigma B' + W W'

    Args:
      problem: the problem.
      gain: ``K``, ``[A, D]``.
      horizon: ``H``, a static integer of 0 or more.
      noise_std: ``sigma``, ``[]`` or ``[A]``.

    Returns:
      ``S_0 .. S_H``, ``[H + 1, D, D]``.

    Raises:
      InputError: as for `value`, and on a negative horizon.
    """
    if operator.index(horizon) < 0:
        raise InputError(f"horizon={horizon} must be 0 or more: it counts the steps before the critic takes over.")
    problem, gain, variance = _check(problem, gain, noise_std)
    closed_loop = problem.A + problem.B @ gain
    noise = _step_noise(problem, variance)
    start = _start_moment(problem)

    def advance(moment: Array, _: None) -> tuple[Array, Array]:
        moment = closed_loop @ moment @ closed_loop.T + noise
        return moment, moment

    _, later = jax.lax.scan(advance, start, None, length=horizon)
    return jnp.concatenate([start[None], later])


def optimal_gain(problem: Problem) -> Array:
    """Returns the gain of the optimal policy ``a = K s``; texts that write ``a = -K s`` have the opposite sign.

        K = -(R + gamma B' P B)^{-1} gamma B' P A,    P = Q + gamma A' P (I + gamma B R^{-1} B' P)^{-1} A

    Args:
      problem: the problem; ``gamma`` may be 1 if the pair ``(A, B)`` can be stabilised.

    Returns:
      ``K``, ``[A, D]``; independent of the start state and of every noise.

    Raises:
      InputError: on a wrong shape, a discount outside ``[0, 1]`` or an ``R`` that is not positive definite.
    """
    problem = check_problem(problem, undiscounted=True)
    if is_concrete(problem.R) and np.linalg.eigvalsh(np.asarray(problem.R)).min() <= 0:
        raise InputError("problem.R must be positive definite: with a free action the optimal gain is unbounded.")
    root = jnp.sqrt(problem.gamma)
    A, B, R = root * problem.A, root * problem.B, problem.R
    P = riccati(A, B, problem.Q, R)
    return -jnp.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)


def make(
    problem: Problem,
    name: str = "lqr",
    max_episode_steps: int = 100,
    *,
    dt: float = 1.0,
    action_bound: float = math.inf,
) -> Env:
    """Returns the problem as an environment; both the transition and the reward are differentiable.

    Args:
      problem: the problem; its discount is not applied to the rewards.
      name: name for the spec.
      max_episode_steps: steps after which an episode is truncated; it never terminates.
      dt: seconds per step, for the spec.
      action_bound: bound that the spec declares, for policies that need a range. ``step`` does not enforce it: a
        linear policy may exceed it, and the closed forms stay exact.

    Raises:
      InputError: on a wrong shape or a time limit below 1.
    """
    problem = check_problem(problem, undiscounted=True)
    if max_episode_steps < 1:
        raise InputError(f"max_episode_steps={max_episode_steps} must be at least 1.")
    obs_dim, action_dim = problem.B.shape
    dtype = problem.A.dtype

    def reset(key: Key) -> tuple[LQRState, Array]:
        obs = problem.start_mean + problem.start_scale @ jax.random.normal(key, (obs_dim,), dtype)
        return LQRState(obs, jnp.zeros((), jnp.int32)), obs

    def step(env_state: LQRState, action: Array, key: Key) -> tuple[LQRState, TimeStep]:
        noise = problem.process_scale @ jax.random.normal(key, (obs_dim,), dtype)
        obs = problem.A @ env_state.obs + problem.B @ action + noise
        count = env_state.step + 1
        reward = _reward(problem, env_state.obs, action)
        return LQRState(obs, count), TimeStep(obs, reward, jnp.zeros((), bool), count >= max_episode_steps)

    spec = EnvSpec(
        name=name,
        obs_dim=obs_dim,
        action_dim=action_dim,
        action_low=np.full(action_dim, -action_bound),
        action_high=np.full(action_dim, action_bound),
        max_episode_steps=max_episode_steps,
        dt=dt,
        reward_fn=lambda obs, action, next_obs: _reward(problem, obs, action),
        differentiable_transition=True,
        differentiable_reward=True,
        notes="Actions are never clipped, whatever bounds are declared: the system stays linear.",
    )
    return Env(reset, step, spec)


def _reward(problem: Problem, obs: Array, action: Array) -> Array:
    return -0.5 * (_quadratic(problem.Q, obs) + _quadratic(problem.R, action))


def _quadratic(matrix: Array, vector: Array) -> Array:
    return vector @ matrix @ vector


def _start_moment(problem: Problem) -> Array:
    return jnp.outer(problem.start_mean, problem.start_mean) + problem.start_scale @ problem.start_scale.T


def _step_noise(problem: Problem, variance: Array) -> Array:
    return (problem.B * variance[None]) @ problem.B.T + problem.process_scale @ problem.process_scale.T


def _noise_cost(problem: Problem, P: Array, variance: Array) -> Array:
    per_step = jnp.diag(problem.R) @ variance + problem.gamma * jnp.sum(P * _step_noise(problem, variance))
    return 0.5 * per_step / (1.0 - problem.gamma)


def _cost_to_go(problem: Problem, gain: Array) -> Array:
    closed_loop = jnp.sqrt(problem.gamma) * (problem.A + problem.B @ gain)
    return lyapunov(closed_loop.T, problem.Q + gain.T @ problem.R @ gain)


def _check(problem: Problem, gain: Array, noise_std: float | Array) -> tuple[Problem, Array, Array]:
    """Returns the checked problem, the gain and the action variances ``[A]``."""
    problem = check_problem(problem)
    obs_dim, action_dim = problem.B.shape
    if jnp.shape(gain) != (action_dim, obs_dim):
        raise InputError(f"gain has shape {jnp.shape(gain)}, want (A, D) = {(action_dim, obs_dim)} for a = gain @ obs.")
    if jnp.shape(noise_std) not in ((), (action_dim,)):
        raise InputError(f"noise_std has shape {jnp.shape(noise_std)}, want () or (A,) = {(action_dim,)}.")
    if is_concrete(gain, problem.A, problem.B, problem.gamma):
        closed_loop = np.asarray(problem.A) + np.asarray(problem.B) @ np.asarray(gain)
        radius = np.abs(np.linalg.eigvals(float(problem.gamma) ** 0.5 * closed_loop)).max()
        if not radius < 1:
            raise InputError(
                f"gain is unstable: the spectral radius of sqrt(gamma) (A + B gain) is {radius:.4g}, so the return is "
                "not finite; choose a gain with a radius below 1."
            )
    return problem, jnp.asarray(gain), jnp.broadcast_to(jnp.square(jnp.asarray(noise_std, float)), (action_dim,))
