"""Pure environments behind Gymnasium's interface, step by step against `envs.episodes`."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils import env_checker
from gymnasium.vector import AutoresetMode

from jaxhybrid import envs
from jaxhybrid.envs import episodes, vector
from jaxhybrid.errors import InputError
from jaxhybrid.types import Env, EnvSpec, TimeStep
from tests.runtime import toy

N = 3


def leaving_env():
    """A walk from a random place that terminates above 2 and is truncated after four steps."""

    def reset(key):
        obs = jax.random.uniform(key, (1,))
        return (obs, jnp.zeros((), jnp.int32)), obs

    def step(env_state, action, key):
        obs = env_state[0] + action
        count = env_state[1] + 1
        return (obs, count), TimeStep(obs, jnp.sum(obs), obs[0] > 2.0, count >= 4)

    return Env(reset, step, EnvSpec("leaving", 1, 1, np.full(1, -1.0), np.full(1, 1.0), max_episode_steps=4))


@pytest.fixture(scope="module")
def batched():
    return vector.make(leaving_env(), N)


def actions_of(t):
    return np.array([[1.0], [0.3], [-0.2]], np.float32) * (1 + t % 2)


def test_steps_are_those_of_automatic_resets(batched):
    reset, step = episodes.auto_reset(leaving_env())
    key, reset_key = jax.random.split(jax.random.key(5))
    workers = jax.vmap(reset)(jax.random.split(reset_key, N))
    obs, info = batched.reset(seed=5)
    np.testing.assert_array_equal(obs, workers.obs)
    assert info == {}
    terminations = truncations = 0
    for t in range(9):
        key, step_key = jax.random.split(key)
        workers, time_step, end = jax.vmap(step)(workers, actions_of(t), jax.random.split(step_key, N))
        obs, reward, terminated, truncated, info = batched.step(actions_of(t))
        np.testing.assert_allclose(obs, workers.obs, rtol=1e-6)
        np.testing.assert_allclose(reward, time_step.reward, rtol=1e-6)
        np.testing.assert_array_equal(terminated, time_step.terminated)
        np.testing.assert_array_equal(truncated, time_step.truncated)
        assert ("final_obs" in info) == bool(np.any(end.ended))
        for i in np.flatnonzero(end.ended):
            # The true last observation, not the first one of the next episode.
            np.testing.assert_allclose(info["final_obs"][i], time_step.obs[i], rtol=1e-6)
            assert info["final_obs"][i] != obs[i]
        if "final_obs" in info:
            np.testing.assert_array_equal(info["_final_obs"], end.ended)
            assert [last is not None for last in info["final_obs"]] == list(end.ended)
        terminations, truncations = terminations + terminated.sum(), truncations + truncated.sum()
    assert terminations >= 2 and truncations >= 2


@pytest.mark.parametrize("name", ["pendulum", "lqr/double_integrator", "catcher"])
def test_gymnasiums_own_checks_pass(name):
    env = vector.make(envs.make(name), 1)
    env_checker.check_reset_seed_determinism(env)
    env_checker.check_reset_options(env)
    env_checker.check_reset_return_type(env)
    env_checker.check_returned_data_not_reused(env)
    env.close()


def test_ends_are_reported_as_gymnasiums_own_environments_report_them(batched):
    own = gymnasium.make_vec(
        "Pendulum-v1",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        max_episode_steps=3,
    )
    ours = vector.make(envs.make("pendulum", max_episode_steps=3), 2)
    assert ours.metadata["autoreset_mode"] == own.metadata["autoreset_mode"]
    for env in (own, ours):
        env.reset(seed=0)
    for _ in range(3):
        wanted, had = (env.step(np.zeros((2, 1), np.float32)) for env in (own, ours))
        assert [(array.shape, array.dtype) for array in had[:4]] == [(array.shape, array.dtype) for array in wanted[:4]]
        assert had[4].keys() == wanted[4].keys()
    for name, value in wanted[4].items():
        assert type(had[4][name]) is type(value)
    assert had[4]["final_obs"].dtype == wanted[4]["final_obs"].dtype
    assert had[4]["final_obs"][0].shape == wanted[4]["final_obs"][0].shape


def test_gymnasiums_wrappers_see_the_episodes():
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector.make(toy.env(), 2))
    obs, _ = env.reset(seed=1)
    total = np.zeros(2)
    for _ in range(5):
        obs, reward, _, truncated, info = env.step(0.3 * obs)
        total += reward
    assert truncated.all()
    np.testing.assert_allclose(info["episode"]["r"], total, rtol=1e-5)
    np.testing.assert_array_equal(info["episode"]["l"], [5, 5])


def test_seeds_decide_everything(batched):
    def play(seed):
        first = batched.reset(seed=seed)[0]
        return np.stack([first, *(batched.step(actions_of(t))[0] for t in range(6))])

    one, again, other = play(1), play(1), play(2)
    np.testing.assert_array_equal(one, again)
    assert np.all(one[0] != other[0]) and np.all(one[0] != batched.reset()[0])


def test_spaces_are_those_of_the_specification():
    env = vector.make(envs.make("lqr/double_integrator", action_bound=0.5), 4)
    assert env.action_space.shape == (4, 1) and env.observation_space.shape == (4, 2)
    assert env.single_action_space.low == -0.5 and env.single_action_space.high == 0.5
    assert "lqr/double_integrator" in repr(env) and "4" in repr(env)


def test_pictures_and_numbered_actions():
    env = vector.make(envs.make("catcher"), 2)
    assert env.single_observation_space.shape == (36, 36) and env.single_action_space == gymnasium.spaces.Discrete(2)
    env.reset(seed=0)
    left, right = (env.step(np.array(actions))[0] for actions in ([0, 0], [0, 1]))
    assert right.shape == (2, 36, 36) and env.observation_space.contains(right)
    assert np.any(right[0] != right[1]) and np.any(left != right)
    for actions in ([0, 2], [0, -1], [0, 0.5], [0, np.nan]):
        with pytest.raises(InputError, match="none of the numbers below 2"):
            env.step(actions)


def test_a_step_is_compiled_once(batched):
    batched.reset(seed=0)
    for t in range(3):
        batched.step(actions_of(t))
    assert batched._step_program._cache_size() == 1


def test_bad_input_is_refused(batched):
    with pytest.raises(InputError, match="num_envs=0"):
        vector.make(leaving_env(), 0)
    with pytest.raises(InputError, match="HostEnv"):
        vector.make(toy.host_env(), 2)
    with pytest.raises(InputError, match="before reset"):
        vector.make(leaving_env(), 1).step(np.zeros((1, 1)))
    batched.reset(seed=0)
    with pytest.raises(InputError, match=r"shape \(1,\), expected \(3, 1\)"):
        batched.step(np.zeros(1))
    with pytest.raises(InputError, match="not finite"):
        batched.step(np.full((3, 1), np.nan))
    with pytest.raises(InputError, match="options"):
        batched.reset(options={"x": 1})
    with pytest.raises(InputError, match="seed=-1"):
        batched.reset(seed=-1)
