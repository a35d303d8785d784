"""Acting with a trained MAAC by planning: policy, model and critic together instead of the policy alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

from jaxhybrid.dynamics import StepNoise
from jaxhybrid.envs.wrappers import rescale_actions
from jaxhybrid.errors import InputError
from jaxhybrid.planning import cem
from jaxhybrid.systems import maac_updates as updates
from jaxhybrid.systems.maac import State
from jaxhybrid.systems.maac_config import Config, checked
from jaxhybrid.types import Array, Env, HostEnv, Key

__all__ = ["planned_act"]


def planned_act(
    config: Config,
    env: Env | HostEnv,
    *,
    horizon: int = 5,
    num_candidates: int = 256,
    num_iterations: int = 5,
    num_elites: int = 25,
) -> Callable[..., Array]:
    """Returns ``act(state, obs [D], key) -> action [A]`` that plans with everything a state of MAAC holds.

    Each model step of an iteration is predicted by one random member of the ensemble.

    Args:
      config: of the run that made the state.
      env: its environment.
      horizon: model steps of a plan, ``H``.
      num_candidates: sequences per iteration.
      num_iterations: refits per action.
      num_elites: sequences that a refit uses, at most ``num_candidates``.

    Raises:
      InputError: the configuration has no model, or does not fit the environment.

    Source: Clavera, Fu and Abbeel 2020 (MAAC), section 5.4 and table 1.
    """
    parts = updates.make_parts(checked(config, env.spec), rescale_actions(env).spec)
    if not config.needs_model:
        raise InputError(
            "this configuration fits no model, so there is nothing to plan with: use a model-based preset."
        )

    def act(state: State, obs: Array, key: Key) -> Array:
        member_key, model_key, plan_key = jax.random.split(key, 3)
        shape = (num_iterations + 1, horizon)
        noise = StepNoise(
            jax.random.randint(member_key, shape, 0, parts.ensemble.num_members), jax.random.split(model_key, shape)
        )
        return cem.plan(
            obs,
            plan_key,
            policy_fn=partial(parts.policy.apply, state.learner.policy_params),
            step_fn=updates.make_step_fn(parts, state.ensemble),
            q_fn=partial(parts.critic.apply, state.learner.critic_params),
            horizon=horizon,
            gamma=config.gamma,
            num_candidates=num_candidates,
            num_iterations=num_iterations,
            num_elites=num_elites,
            step_noise=noise,
        )[0]

    return act
