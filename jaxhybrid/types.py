"""Records and protocols that every layer shares.

Axes are named once for the whole library: ``T`` time, ``H`` model horizon, ``N`` draws, ``B`` batch, ``A`` action,
``D`` observation, ``M`` ensemble members, ``S`` seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

__all__ = [
    "Array",
    "Env",
    "EnvSpec",
    "Estimator",
    "HostEnv",
    "Key",
    "Loss",
    "Metrics",
    "PolicyFn",
    "PyTree",
    "QFn",
    "RewardFn",
    "Segment",
    "Setting",
    "StepFn",
    "System",
    "TerminatedFn",
    "TimeStep",
    "Transition",
    "ValueFn",
]

Array = jax.Array
Key = jax.Array
PyTree = Any
Metrics = Mapping[str, Array]
StateT = TypeVar("StateT")


class Transition(NamedTuple):
    """One step of experience, without a batch axis.

    Attributes:
      obs: observation the action was taken in, ``[D]``.
      action: action, ``[A]``.
      reward: reward of the step, ``[]``.
      discount: 0 iff the step terminated the episode, else 1 (the problem's gamma is not in it), ``[]``.
      next_obs: observation after the step and before any reset, ``[D]``.
    """

    obs: Array
    action: Array
    reward: Array
    discount: Array
    next_obs: Array


class Segment(NamedTuple):
    """One time step with the noise recorded from it on, without a batch axis.

    Attributes:
      obs: observation the action was taken in, ``[D]``.
      action: action, ``[A]``.
      noise: noise of the policy at this step and the ones after it, ``[k, A]``; row 0 belongs to ``action``.
      empirical_return: discounted return of the episode from this step on, ``[]``.
      mask: 1 for the steps of the episode, 0 past its end, where ``noise`` means nothing, float ``[k]``.
    """

    obs: Array
    action: Array
    noise: Array
    empirical_return: Array
    mask: Array


class TimeStep(NamedTuple):
    """What an environment returns for one action.

    Attributes:
      obs: true next observation, *before* any reset, ``[D]``.
      reward: reward of the step, ``[]``.
      terminated: whether the task ended (the value of ``obs`` is zero), boolean ``[]``.
      truncated: whether the time limit was reached (the value of ``obs`` is to be bootstrapped), boolean ``[]``.
    """

    obs: Array
    reward: Array
    terminated: Array
    truncated: Array


class PolicyFn(Protocol):
    """``policy_fn(policy_params, obs [D])`` -> a distribution record such as ``ops.gaussian.TanhGaussian``."""

    def __call__(self, policy_params: PyTree, obs: Array, /) -> Any: ...


class ValueFn(Protocol):
    """``value_fn(obs [D]) -> []``."""

    def __call__(self, obs: Array, /) -> Array: ...


class QFn(Protocol):
    """``q_fn(obs [D], action [A]) -> []``; some losses also take ``[C]``, one value per critic, and say so."""

    def __call__(self, obs: Array, action: Array, /) -> Array: ...


class StepFn(Protocol):
    """``step_fn(obs [D], action [A], key_or_noise) -> (next_obs [D], reward [], discount [])``."""

    def __call__(self, obs: Array, action: Array, key_or_noise: PyTree, /) -> tuple[Array, Array, Array]: ...


class RewardFn(Protocol):
    """``reward_fn(obs [D], action [A], next_obs [D]) -> []``."""

    def __call__(self, obs: Array, action: Array, next_obs: Array, /) -> Array: ...


class TerminatedFn(Protocol):
    """``terminated_fn(obs [D], action [A], next_obs [D]) ->`` boolean ``[]``."""

    def __call__(self, obs: Array, action: Array, next_obs: Array, /) -> Array: ...


class Loss(Protocol):
    """``loss(params, example, key, **bound) -> (loss [], aux)``; what matters is its gradient in ``params``."""

    def __call__(self, params: PyTree, example: PyTree, key: Key, /) -> tuple[Array, dict[str, Array]]: ...


class Estimator(Protocol):
    """``estimator(params, example, key, **bound) -> (grads, aux)``: ``grads`` has the structure of ``params``."""

    def __call__(self, params: PyTree, example: PyTree, key: Key, /) -> tuple[PyTree, dict[str, Array]]: ...


class EnvSpec(NamedTuple):
    """Facts about an environment that the rest of the library relies on.

    Attributes:
      name: the name given to ``envs.make``.
      obs_dim: size ``D`` of the observation.
      action_dim: size ``A`` of the action vector; 0 where actions are discrete.
      action_low: lower bounds of the action, float ``[A]``.
      action_high: upper bounds of the action, float ``[A]``.
      max_episode_steps: steps after which an episode is truncated.
      dt: simulated seconds per step.
      reward_fn: the reward as a pure function of ``(obs, action, next_obs)``, or None when the observation does not
        determine it (a model must then learn it).
      terminated_fn: the termination as a pure function of ``(obs, action, next_obs)``; None when episodes never
        terminate.
      observable_termination: False when episodes can terminate in a way that no function of the observation tells.
      differentiable_transition: whether reverse mode through ``step`` gives the gradient of the transition.
      differentiable_reward: whether reverse mode through ``step`` gives the (non-zero) gradient of the reward.
      notes: what a user must know before comparing numbers, in one or two sentences.
      num_actions: number of discrete actions, an action is then an integer ``[]``; None where it is a float vector.
      obs_shape: shape of an observation that is no vector; None where it is ``(D,)``.
    """

    name: str
    obs_dim: int
    action_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    max_episode_steps: int
    dt: float = 1.0
    reward_fn: RewardFn | None = None
    terminated_fn: TerminatedFn | None = None
    observable_termination: bool = True
    differentiable_transition: bool = False
    differentiable_reward: bool = False
    notes: str = ""
    num_actions: int | None = None
    obs_shape: tuple[int, ...] | None = None

    @property
    def bounded(self) -> bool:
        """Whether every action bound is finite."""
        return bool(np.all(np.isfinite([self.action_low, self.action_high])))


class Env(NamedTuple):
    """A pure environment: one instance, no batch axis, no hidden state; ``jax.vmap`` gives a batch.

    Attributes:
      reset: ``reset(key) -> (env_state, obs [D])``.
      step: ``step(env_state, action [A], key) -> (env_state, TimeStep)``. Never resets: past the end of an episode the
        result is unspecified. Use ``envs.episodes.auto_reset`` to collect without end.
      spec: the facts above.
    """

    reset: Callable[[Key], tuple[PyTree, Array]]
    step: Callable[[PyTree, Array, Key], tuple[PyTree, TimeStep]]
    spec: EnvSpec


class HostEnv(NamedTuple):
    """A batch of ``num_envs`` environments that run on the host (MuJoCo through Gymnasium), outside jit.

    The contract is that of `Env` with a leading axis ``N = num_envs`` on NumPy arrays and an explicit state: whatever
    decides the future is in ``env_state``, a pytree of arrays, so that a run can be saved and resumed exactly.

    Attributes:
      reset: ``reset(seed: int) -> (env_state, obs [N, D])``.
      step: ``step(env_state, action [N, A]) -> (env_state, TimeStep of [N, ...])``; never resets.
      reset_where: ``reset_where(env_state, obs [N, D], mask [N]) -> (env_state, obs [N, D])`` resets the instances
        whose mask is True and leaves the state and observation of the others as they are.
      close: frees the simulators.
      num_envs: ``N``.
      spec: as for `Env`.
    """

    reset: Callable[[int], tuple[PyTree, np.ndarray]]
    step: Callable[[PyTree, np.ndarray], tuple[PyTree, TimeStep]]
    reset_where: Callable[[PyTree, np.ndarray, np.ndarray], tuple[PyTree, np.ndarray]]
    close: Callable[[], None]
    num_envs: int
    spec: EnvSpec


class System(NamedTuple):
    """A learning system: three pure functions over one ``State`` that holds everything that persists.

    Attributes:
      init: ``init(key) -> State``.
      step: ``step(state, batch) -> (state, metrics)``, one iteration of the algorithm, of the shape that
        ``jax.lax.scan`` takes. ``batch`` is None where the system collects its own experience inside the step (pure
        environments) and the ``Transition`` of ``[T, N, ...]`` that the host collected otherwise.
      act: ``act(state, obs [D], key, *, deterministic) -> action [A]``; ``deterministic`` is a static boolean.
    """

    init: Callable[[Key], Any]
    step: Callable[[Any, Any], tuple[Any, Metrics]]
    act: Callable[..., Array]


class Setting(NamedTuple):
    """What a config and the name of an environment decide of a run, so that its replay and its player share it.

    Attributes:
      make: ``make(config, env) -> System``, also for other numbers of the same structure.
      env: collected inside ``System.step`` if it is an `Env`, by the loop if it is a `HostEnv`; where the policy is
        evaluated.
      policy_params: ``policy_params(state)`` are the parameters to keep in the end, with a leading axis ``S`` if the
        state has one; None keeps none.
      act: ``act(policy_params, obs, key, *, deterministic) -> action``; None where a saved policy says what
        network it is.
    """

    make: Callable[[Any, Any], System]
    env: Env | HostEnv
    policy_params: Callable[[Any], PyTree] | None = None
    act: Callable[..., Array] | None = None
