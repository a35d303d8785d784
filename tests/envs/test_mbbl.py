"""The benchmark's rewards against arithmetic by hand, and their wrappers on both kinds of physics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import mbbl
from jaxhybrid.errors import InputError

# (task, obs_dim, action_dim, index of the velocity, control cost, height target) from the published table.
TABLE = [
    ("halfcheetah", 17, 6, 8, 0.1, None),
    ("ant", 27, 8, 13, 0.1, 0.57),
    ("hopper", 11, 3, 5, 0.1, 1.3),
    ("walker2d", 17, 6, 8, 0.1, 1.3),
    ("swimmer", 8, 2, 3, 1e-4, None),
]


def by_hand(s_velocity, s_height, action, velocity_index, control_cost, height_target):
    squares = sum(max(-1.0, min(1.0, float(a))) ** 2 for a in action)
    value = float(s_velocity[velocity_index]) - control_cost * squares
    if height_target is not None:
        value += 1.0 - 3.0 * (float(s_height[0]) - height_target) ** 2
    return value


@pytest.mark.parametrize("task,obs_dim,action_dim,velocity,cost,height", TABLE)
@pytest.mark.parametrize("reward_on", ["current", "next", "released"])
def test_reward_is_the_table(task, obs_dim, action_dim, velocity, cost, height, reward_on):
    if task == "swimmer" and reward_on == "released":
        with pytest.raises(InputError, match="released"):
            mbbl.reward_fn(task, reward_on)
        return
    reward_fn = mbbl.reward_fn(task, reward_on)
    rng = np.random.default_rng(0)
    obs, next_obs = rng.normal(size=(2, 20, obs_dim)).astype(np.float32)
    action = rng.uniform(-1.5, 1.5, (20, action_dim)).astype(np.float32)
    late_velocity = reward_on == "next" or (reward_on == "released" and task in ("halfcheetah", "ant"))
    late_height = reward_on == "next" or (reward_on == "released" and task in ("halfcheetah", "ant", "walker2d"))
    expected = [
        by_hand(
            (next_obs if late_velocity else obs)[i],
            (next_obs if late_height else obs)[i],
            action[i],
            velocity,
            cost,
            height,
        )
        for i in range(20)
    ]
    np.testing.assert_allclose(reward_fn(obs, action, next_obs), expected, rtol=1e-5, atol=1e-5)
    jitted = jax.jit(jax.vmap(reward_fn))(jnp.asarray(obs), jnp.asarray(action), jnp.asarray(next_obs))
    np.testing.assert_allclose(jitted, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task,obs_dim,action_dim,velocity,cost,height", TABLE)
def test_mujoco_physics(task, obs_dim, action_dim, velocity, cost, height):
    env = mbbl.make(task, "mujoco", num_envs=2, max_episode_steps=150)
    assert (env.spec.obs_dim, env.spec.action_dim) == (obs_dim, action_dim)
    np.testing.assert_allclose(env.spec.dt, mbbl.MBBL_TASKS[task].dt)
    assert env.spec.terminated_fn is None and env.spec.observable_termination
    env_state, obs = env.reset(0)
    actions = np.random.default_rng(0).uniform(-2, 2, (150, 2, action_dim)).astype(np.float32)
    for t, action in enumerate(actions):
        saved = env_state
        env_state, after = env.step(env_state, action)
        expected = [by_hand(obs[i], obs[i], action[i], velocity, cost, height) for i in range(2)]
        np.testing.assert_allclose(after.reward, expected, rtol=1e-4, atol=1e-4)
        assert not after.terminated.any() and after.truncated.all() == (t == 149)
        obs = after.obs
    assert np.isfinite(obs).all()
    # Only the clipped action reaches the physics, and the state alone decides the step.
    _, again = env.step(jax.tree.map(np.array, saved), np.clip(action, -1, 1))
    jax.tree.map(np.testing.assert_array_equal, again, after)
    env_state, obs = env.reset_where(env_state, obs, np.array([True, False]))
    np.testing.assert_array_equal(env_state.obs, obs)
    np.testing.assert_array_equal(obs[1], after.obs[1])
    env.close()


def check_on_brax(env, task, steps, velocity, cost, height):
    actions = np.random.default_rng(0).uniform(-2, 2, (steps, env.spec.action_dim)).astype(np.float32)

    def run(key):
        def advance(carry, action):
            env_state, after = env.step(carry, action, key)
            return env_state, (carry.obs, after)

        return jax.lax.scan(advance, env.reset(key)[0], jnp.asarray(actions))[1]

    obs, after = jax.jit(run)(jax.random.key(0))
    expected = [by_hand(obs[t], obs[t], actions[t], velocity, cost, height) for t in range(steps)]
    np.testing.assert_allclose(after.reward, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(obs[1:], after.obs[:-1])
    assert np.isfinite(after.obs).all() and not after.terminated.any()
    np.testing.assert_array_equal(after.truncated, np.arange(1, steps + 1) >= env.spec.max_episode_steps)
    return after


def test_spring_hopper_outlives_its_fall():
    env = mbbl.make("hopper", max_episode_steps=290)
    assert env.spec.name == "mbbl/hopper/spring" and env.spec.obs_dim == 11
    after = check_on_brax(env, "hopper", 300, 5, 0.1, 1.3)
    assert np.asarray(after.obs[:, 0]).min() < 0.7  # below the height at which the simulator's own task ends


@pytest.mark.slow
@pytest.mark.parametrize("task,obs_dim,action_dim,velocity,cost,height", TABLE)
@pytest.mark.parametrize("physics", ["spring", "positional", "generalized", "mjx"])
def test_brax_physics(task, obs_dim, action_dim, velocity, cost, height, physics):
    if task == "swimmer" and physics != "generalized":
        return
    env = mbbl.make(task, physics, max_episode_steps=90)
    assert (env.spec.obs_dim, env.spec.action_dim) == (obs_dim, action_dim)
    check_on_brax(env, task, 100, velocity, cost, height)


def test_reward_gradient_reaches_the_action_only_through_its_cost_on_the_current_reading():
    obs = jnp.arange(11.0) / 10
    slope = functools.partial(jax.grad, argnums=(0, 1, 2))
    on_current = slope(mbbl.reward_fn("hopper"))(obs, jnp.full(3, 0.5), obs + 1)
    on_next = slope(mbbl.reward_fn("hopper", "next"))(obs, jnp.full(3, 0.5), obs + 1)
    np.testing.assert_allclose(on_current[1], -2 * 0.1 * 0.5 * np.ones(3), rtol=1e-6)
    assert on_current[0][5] == 1 and not on_current[2].any()
    assert on_next[2][5] == 1 and not on_next[0].any()


def test_refusals_name_the_fix():
    with pytest.raises(InputError, match="'hopper'"):
        mbbl.make("hoper")
    with pytest.raises(InputError, match="reward_on='old' is unknown"):
        mbbl.make("hopper", reward_on="old")
    with pytest.raises(InputError, match=r"physics of 'swimmer'='spring'.*generalized"):
        mbbl.make("swimmer", "spring")
    with pytest.raises(InputError, match="num_envs=2"):
        mbbl.make("hopper", "spring", num_envs=2)
