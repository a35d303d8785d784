"""The Brax adapter against Brax itself, closed forms of its trivial task, and finite differences."""

import functools
import operator
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import brax
from jaxhybrid.errors import InputError
from jaxhybrid.types import Array, Env, TimeStep
from tests.compilation import AS_SHIPPED


class Rollout(NamedTuple):
    obs: Array  # before each step
    action: Array
    after: TimeStep


def rollout(env: Env, key, actions) -> Rollout:
    """Applies ``actions [T, A]`` from a fresh state."""

    def advance(carry, action):
        env_state, obs = carry
        env_state, after = env.step(env_state, action, key)
        return (env_state, after.obs), Rollout(obs, action, after)

    return jax.lax.scan(advance, env.reset(key), actions)[1]


def random_actions(env: Env, *shape: int, scale: float = 1.0):
    draws = np.random.default_rng(0).uniform(-scale, scale, (*shape, env.spec.action_dim))
    return jnp.asarray(draws, jnp.float32)


def check_facts(env: Env, out: Rollout) -> None:
    """The spec's functions of the observation are the environment's own reward and termination until it ends."""
    spec = env.spec
    terminated = np.asarray(out.after.terminated)
    alive = np.cumsum(terminated) - terminated == 0
    if spec.reward_fn is not None:
        rewards = jax.vmap(spec.reward_fn)(out.obs, out.action, out.after.obs)
        np.testing.assert_allclose(rewards[alive], out.after.reward[alive], rtol=1e-5, atol=1e-6)
    if spec.terminated_fn is not None:
        np.testing.assert_array_equal(
            jax.vmap(spec.terminated_fn)(out.obs, out.action, out.after.obs)[alive], terminated[alive]
        )
    elif spec.observable_termination:
        assert not terminated.any()


@pytest.fixture(scope="module")
def pendulum():
    env = brax.make("inverted_pendulum", max_episode_steps=40)
    actions = jnp.full((70, 1), 0.3)
    run = jax.jit(functools.partial(rollout, env), compiler_options=AS_SHIPPED)
    return env, actions, run(jax.random.key(3), actions)


@pytest.fixture(scope="module")
def hopper():
    """A hopper that falls, three instances in one program, and the program of its return."""
    env = brax.make("hopper")
    run = jax.jit(jax.vmap(functools.partial(rollout, env), in_axes=(0, None)))
    return env, run(jax.random.split(jax.random.key(1), 3), jnp.ones((120, 3)))


def test_trajectory_is_that_of_brax_itself(pendulum):
    _, actions, ours = pendulum
    with brax.quiet.loading(brax.brax_mjcf.mujoco):
        task = brax.brax_envs.get_environment("inverted_pendulum", backend="spring")
    step = jax.jit(task.step, compiler_options=AS_SHIPPED)
    with jax.numpy_rank_promotion("allow"), brax.quiet.tracing():
        # An old-style key of the same seed: both styles must start the same episode.
        state = jax.jit(task.reset, compiler_options=AS_SHIPPED)(jax.random.PRNGKey(3))
        np.testing.assert_array_equal(state.obs, ours.obs[0])
        for t in range(50):
            state = step(state, actions[t])
            np.testing.assert_allclose(state.obs, ours.after.obs[t], rtol=1e-5, atol=1e-6)
            assert float(state.reward) == float(ours.after.reward[t])
            assert bool(state.done) == bool(ours.after.terminated[t])


def test_termination_and_time_limit_are_told_apart(pendulum):
    _, _, out = pendulum
    fell = np.abs(np.asarray(out.after.obs[:, 1])) > 0.2
    assert fell.any() and not fell[0]
    np.testing.assert_array_equal(out.after.terminated, fell)
    np.testing.assert_array_equal(out.after.truncated, np.arange(1, 71) >= 40)
    assert out.after.terminated.dtype == out.after.truncated.dtype == bool


def test_pendulum_facts(pendulum):
    env, _, out = pendulum
    check_facts(env, out)
    assert env.spec.reward_fn is not None and env.spec.terminated_fn is not None


def test_truncation_keeps_the_true_observation():
    # The trivial task is v' = v + 0.02, x' = x + 0.02 v' while the action is positive: v_t = 0.02 t and
    # x_t = 0.0004 t (t + 1) / 2. A reset at the limit of 3 steps would put both back to 0.
    env = brax.make("fast", max_episode_steps=3)
    out = rollout(env, jax.random.key(0), jnp.ones((5, 1)))
    t = np.arange(1, 6)
    np.testing.assert_allclose(out.after.obs, np.stack([0.0004 * t * (t + 1) / 2, 0.02 * t], 1), rtol=1e-5)
    np.testing.assert_array_equal(out.after.truncated, [False, False, True, True, True])
    check_facts(env, out)


def test_hopper_falls_and_the_observation_tells(hopper):
    env, out = hopper
    assert out.after.terminated.any(axis=1).all()
    for i in range(3):
        check_facts(env, jax.tree.map(operator.itemgetter(i), out))
    assert not np.array_equal(out.obs[0, 0], out.obs[1, 0])
    assert env.spec.reward_fn is None and env.spec.differentiable_transition
    np.testing.assert_allclose(env.spec.dt, 0.008, rtol=1e-6)


@pytest.fixture(scope="module")
def reacher():
    """One program for the return of three steps, its gradient and the roll-out itself."""
    env = brax.make("reacher")

    def episode_return(actions):
        out = rollout(env, jax.random.key(0), actions)
        return out.after.reward.sum(), out

    return env, jax.jit(jax.value_and_grad(episode_return, has_aux=True))


def check_gradient(value_and_grad, actions, step: float) -> None:
    """The slope along the signs of the gradient against central differences."""
    (_, _), gradient = value_and_grad(actions)
    assert np.isfinite(gradient).all()
    direction = jnp.sign(gradient)
    slope = jnp.vdot(gradient, direction)
    plus, minus = (value_and_grad(actions + sign * step * direction)[0][0] for sign in (1.0, -1.0))
    # Float32 returns of size 3 round to 3e-7: less than 1e-3 of the differences taken here.
    assert abs(plus - minus) > 3e-4
    np.testing.assert_allclose(slope, (plus - minus) / (2 * step), rtol=0.02)


def test_reacher_gradient_agrees_with_finite_differences(reacher):
    env, value_and_grad = reacher
    check_gradient(value_and_grad, random_actions(env, 3, scale=0.5), step=1e-2)


def test_reacher_reward_is_a_function_of_the_observation(reacher):
    env, value_and_grad = reacher
    for scale in (0.3, 1.0):
        check_facts(env, value_and_grad(random_actions(env, 3, scale=scale))[0][1])
    # At the target the distance has no slope; the reward's gradient must not become NaN there.
    slope = jax.grad(env.spec.reward_fn, argnums=2)(jnp.zeros(11), jnp.zeros(2), jnp.zeros(11))
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.slow
def test_hopper_gradient_agrees_with_finite_differences():
    env = brax.make("hopper")

    def episode_return(actions):
        out = rollout(env, jax.random.key(0), actions)
        return out.after.reward.sum(), out

    check_gradient(jax.jit(jax.value_and_grad(episode_return, has_aux=True)), random_actions(env, 3, scale=0.5), 3e-3)


def test_swimmer_swims_with_its_only_backend():
    env = brax.make("swimmer")
    assert env.spec.name == "brax/swimmer/generalized"
    time = np.arange(250) * 0.04
    # A travelling wave from head to tail; the same one moves Gymnasium's swimmer forward, and reversed, backward.
    waves = [np.stack([np.sin(3 * time), np.sin(3 * time - phase)], axis=1) for phase in (1.0, -1.0)]
    run = jax.jit(jax.vmap(functools.partial(rollout, env), in_axes=(None, 0)))
    out = run(jax.random.key(0), jnp.asarray(np.stack(waves), jnp.float32))
    assert np.isfinite(out.after.obs).all()
    forward, backward = out.after.reward.sum(axis=1)
    assert forward > 15 and backward < -15


def test_refusals_name_the_fix():
    with pytest.raises(InputError, match="'halfcheetah'"):
        brax.make("half_cheetah")
    with pytest.raises(InputError, match=r"backend of 'swimmer'.*generalized"):
        brax.make("swimmer", "spring")
    with pytest.raises(InputError, match="max_episode_steps=0"):
        brax.make("fast", max_episode_steps=0)
    with pytest.raises(InputError, match="terminate_when_unhealthy"):
        brax.make("reacher", terminate_when_unhealthy=False)
    env = brax.make("fast")
    with pytest.raises(InputError, match="action has shape"):
        env.step(env.reset(jax.random.key(0))[0], jnp.zeros(2), jax.random.key(0))


def test_every_task_has_a_profile_of_every_backend():
    assert {name: set(profiles) for name, profiles in brax.GRADIENTS.items()} == {
        name: set(backends) for name, backends in brax.SUPPORTED.items()
    }


def test_console_stays_silent(tmp_path):
    code = "from jaxhybrid.envs import brax; brax.make('halfcheetah', 'generalized')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # MuJoCo's compiler would leave its log here


@pytest.mark.slow
@pytest.mark.parametrize("name,backend", [(n, b) for n, backends in brax.SUPPORTED.items() for b in backends])
def test_every_supported_combination_steps(name, backend):
    env = brax.make(name, backend)
    out = jax.jit(functools.partial(rollout, env))(jax.random.key(0), random_actions(env, 40))
    assert np.isfinite(out.after.obs).all() and np.isfinite(out.after.reward).all()
    assert out.after.obs.shape == (40, env.spec.obs_dim)
    check_facts(env, out)
