"""The host adapter against Gymnasium itself, and its promise that the state is all there is."""

import subprocess
import sys

import gymnasium as reference
import jax
import numpy as np
import pytest

from jaxhybrid.envs import gymnasium
from jaxhybrid.envs.facts import GYMNASIUM
from jaxhybrid.errors import InputError


def actions(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    low, high = env.spec.action_low, env.spec.action_high
    return rng.uniform(low, high, (steps, env.num_envs, env.spec.action_dim)).astype(np.float32)


def assert_same(left, right):
    """Bitwise equality of two pytrees of arrays."""
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Ant-v5"])
def test_trajectory_is_that_of_gymnasium(env_id):
    env = gymnasium.make(env_id, num_envs=2, max_episode_steps=30)
    with gymnasium.quiet.loading(gymnasium.mujoco):
        theirs = [reference.make(env_id, max_episode_steps=30) for _ in range(2)]
    env_state, obs = env.reset(7)
    start = [one.reset(seed=seed)[0] for one, seed in zip(theirs, gymnasium.instance_seeds(7, 2))]
    np.testing.assert_array_equal(obs, np.float32(start))
    alive = np.ones(2, bool)
    for action in actions(env, 30):
        env_state, after = env.step(env_state, action)
        for i in np.flatnonzero(alive):
            their_obs, reward, terminated, truncated, _ = theirs[i].step(action[i])
            np.testing.assert_array_equal(after.obs[i], np.float32(their_obs))
            assert (after.reward[i], after.terminated[i], after.truncated[i]) == (
                np.float32(reward),
                terminated,
                truncated,
            )
            alive[i] = not terminated
    assert alive.any() and after.truncated[alive].all()
    env.close()


@pytest.mark.parametrize("env_id", sorted(GYMNASIUM))
def test_saved_state_continues_bit_exactly_in_a_fresh_object(env_id):
    env = gymnasium.make(env_id, num_envs=2)
    env_state, obs = env.reset(5)
    warm_up, measured = np.split(actions(env, 40), 2)
    for action in warm_up:
        env_state, after = env.step(env_state, action)
        env_state, obs = env.reset_where(env_state, after.obs, after.terminated)
    saved = jax.tree.map(np.array, env_state)
    fresh = gymnasium.make(env_id, num_envs=2)
    for t, action in enumerate(measured):
        env_state, after = env.step(env_state, action)
        saved, after_saved = fresh.step(saved, action)
        assert_same(after_saved, after)
        # Resets draw from the saved generator too.
        mask = after.terminated | np.array([t == 10, False])
        env_state, obs = env.reset_where(env_state, after.obs, mask)
        saved, obs_saved = fresh.reset_where(saved, after_saved.obs, mask)
        assert_same((saved, obs_saved), (env_state, obs))
    env.close()
    fresh.close()


@pytest.mark.parametrize("env_id", sorted(GYMNASIUM))
def test_facts_are_the_reward_and_termination_of_the_task(env_id):
    env = gymnasium.make(env_id, num_envs=3)
    spec = env.spec
    reward_fn = jax.jit(jax.vmap(spec.reward_fn)) if spec.reward_fn else None
    terminated_fn = jax.jit(jax.vmap(spec.terminated_fn)) if spec.terminated_fn else None
    env_state, obs = env.reset(0)
    for action in actions(env, 100):
        env_state, after = env.step(env_state, action)
        if reward_fn:
            np.testing.assert_allclose(reward_fn(obs, action, after.obs), after.reward, rtol=1e-5, atol=5e-6)
        if terminated_fn:
            np.testing.assert_array_equal(terminated_fn(obs, action, after.obs), after.terminated)
        elif spec.observable_termination:
            assert not after.terminated.any()
        env_state, obs = env.reset_where(env_state, after.obs, after.terminated | after.truncated)
    env.close()


def test_the_top_of_the_hill_ends_and_is_paid():
    env = gymnasium.make("MountainCarContinuous-v0", num_envs=1)
    env_state, obs = env.reset(0)
    for _ in range(200):
        # Along its velocity the car gains height with every swing.
        action = np.where(obs[:, 1:] < 0, -1.0, 1.0)
        env_state, after = env.step(env_state, action)
        last, obs = obs, after.obs
        if after.terminated[0]:
            break
    assert after.terminated[0] and after.reward[0] > 99
    assert env.spec.terminated_fn(last[0], action[0], obs[0])
    np.testing.assert_allclose(env.spec.reward_fn(last[0], action[0], obs[0]), after.reward[0], rtol=1e-5)
    env.close()


def test_going_back_to_an_earlier_state_repeats_the_future():
    env = gymnasium.make("Hopper-v5", num_envs=2)
    env_state, _ = env.reset(0)
    first, second = actions(env, 2)
    later, after = env.step(env_state, first)
    env.step(later, second)
    assert_same(env.step(env_state, first), (later, after))
    env.close()


def test_reset_where_leaves_the_others_untouched():
    env = gymnasium.make("Ant-v5", num_envs=3, max_episode_steps=5)
    env_state, _ = env.reset(0)
    for action in actions(env, 5):
        env_state, after = env.step(env_state, action)
    assert after.truncated.all()
    reset_state, obs = env.reset_where(env_state, after.obs, np.array([False, True, False]))
    for i in (0, 2):
        np.testing.assert_array_equal(obs[i], after.obs[i])
        assert_same([leaf[i] for leaf in reset_state], [leaf[i] for leaf in env_state])
    assert reset_state.steps.tolist() == [5, 0, 5]
    assert not np.array_equal(obs[1], after.obs[1])
    _, after = env.step(reset_state, action)
    assert after.truncated.tolist() == [True, False, True]
    env.close()


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(gymnasium, "worker_count", lambda num_envs, degrees_of_freedom: 2)
    threaded = gymnasium.make("Hopper-v5", num_envs=4)
    monkeypatch.setattr(gymnasium, "worker_count", lambda num_envs, degrees_of_freedom: 1)
    looped = gymnasium.make("Hopper-v5", num_envs=4)
    left, right = threaded.reset(1), looped.reset(1)
    assert_same(left, right)
    for action in actions(looped, 20):
        left, right = threaded.step(left[0], action), looped.step(right[0], action)
        assert_same(left, right)
    threaded.close()
    looped.close()


def test_seeds_separate_runs_and_instances():
    env = gymnasium.make("Reacher-v5", num_envs=2)
    assert_same(env.reset(3), env.reset(3))
    # With seed + i the second instance of run 3 would be the first of run 4.
    assert not np.array_equal(env.reset(3)[1][1], env.reset(4)[1][0])
    env.close()


def test_state_that_lost_precision_is_refused():
    env = gymnasium.make("Hopper-v5")
    env_state, _ = env.reset(0)
    with pytest.raises(InputError, match=r"env_state.physics is float32"):
        env.step(env_state._replace(physics=env_state.physics.astype(np.float32)), np.zeros((1, 3)))
    env.close()


def test_state_cannot_be_changed_behind_the_simulators_back():
    env = gymnasium.make("Hopper-v5")
    env_state, _ = env.reset(0)
    with pytest.raises(ValueError, match="read-only"):
        env_state.physics[0, 1] = 0.0
    env.close()


def test_bad_actions_are_refused():
    env = gymnasium.make("Hopper-v5", num_envs=2)
    env_state, _ = env.reset(0)
    with pytest.raises(InputError, match=r"action has shape \(3,\)"):
        env.step(env_state, np.zeros(3))
    with pytest.raises(InputError, match="not finite"):
        env.step(env_state, np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="mask and obs"):
        env.reset_where(env_state, np.zeros((2, 11)), np.zeros(3, bool))
    env.close()


@pytest.mark.parametrize(
    "env_id,options,message",
    [
        ("HalfCheeta-v5", {}, "did you mean 'HalfCheetah-v5'"),
        ("CartPole-v1", {}, "action space Discrete"),
        ("Hopper-v5", {"num_envs": 0}, "num_envs=0"),
        ("Hopper-v5", {"max_episode_steps": 0}, "max_episode_steps=0"),
        ("Hopper-v5", {"no_such_option": 1}, "no_such_option"),
    ],
)
def test_refusals_name_the_fix(env_id, options, message):
    with pytest.raises(InputError, match=message):
        gymnasium.make(env_id, **options)


def test_console_stays_silent(tmp_path):
    code = "from jaxhybrid.envs import gymnasium; gymnasium.make('HalfCheetah-v5').reset(0)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())  # MuJoCo's compiler would leave its log here
