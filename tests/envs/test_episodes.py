from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import episodes, lqr
from jaxhybrid.errors import InputError
from jaxhybrid.types import Env, EnvSpec, HostEnv, TimeStep


def spec(max_episode_steps, obs_dim=2):
    bound = np.ones(1)
    return EnvSpec("test", obs_dim, 1, -bound, bound, max_episode_steps)


class CounterState(NamedTuple):
    """A position, the step count, a typed key and a raw integer: every kind of leaf a simulator may carry."""

    position: jax.Array
    step: jax.Array
    key: jax.Array
    seed: jax.Array


def counter(max_episode_steps=3, *, goal=1e9, start=0.0):
    """Moves by the action, pays the new position; terminates beyond ``goal``, is truncated at the time limit."""

    def observe(position, step):
        return jnp.stack([position, step.astype(position.dtype)])

    def reset(key):
        position, step = jnp.asarray(start, float), jnp.zeros((), jnp.int32)
        return CounterState(position, step, key, jnp.zeros((), jnp.uint32)), observe(position, step)

    def step(state, action, key):
        position, count = state.position + action[0], state.step + 1
        terminated = position > goal
        time_step = TimeStep(observe(position, count), position, terminated, (count >= max_episode_steps) & ~terminated)
        return CounterState(position, count, key, state.seed + 1), time_step

    return Env(reset, step, spec(max_episode_steps))


def reward_jacobian(worker, step_fn, *, feedback, length=5):
    """``d reward_t / d push_u`` where the action is ``feedback * position + push``."""

    def rewards(pushes):
        def advance(worker, push):
            action = (feedback * worker.obs[0] + push)[None]
            worker, time_step, _ = step_fn(worker, action, jax.random.key(1))
            return worker, time_step.reward

        return jax.lax.scan(advance, worker, pushes)[1]

    return jax.jacrev(rewards)(jnp.linspace(0.1, 0.5, length))


def expected_jacobian(feedback, episode=3, length=5):
    """Within an episode ``x_{t+1} = (1 + feedback) x_t + push_t``; between episodes nothing."""
    t, u = np.indices((length, length))
    same_episode = (t // episode == u // episode) & (u <= t)
    return np.where(same_episode, (1.0 + feedback) ** np.clip(t - u, 0, None), 0.0)


def test_gradient_flows_within_an_episode_and_stops_at_its_end():
    reset, step = episodes.auto_reset(counter())
    jacobian = reward_jacobian(reset(jax.random.key(0)), step, feedback=0.5)
    np.testing.assert_allclose(jacobian, expected_jacobian(0.5), rtol=1e-5)


def _never_cut(worker, time_step, env_state):
    """Restarts the clock but keeps the position, as a reset that forgets a field would."""
    kept = env_state._replace(step=worker.env_state.step)
    return worker._replace(env_state=kept, obs=jnp.stack([kept.position, jnp.zeros(())]))


def _stale_obs(worker, time_step, env_state):
    """Acts after the reset on the observation from before it."""
    return worker._replace(obs=time_step.obs)


def _always_cut(worker, time_step, env_state):
    return jax.lax.stop_gradient(worker)


@pytest.mark.parametrize("mistake", [_never_cut, _stale_obs, _always_cut])
def test_the_jacobian_tells_a_wrong_cut(mistake):
    env = counter()
    reset, step = episodes.auto_reset(env)

    def wrong_step(worker, action, key):
        env_state, time_step = env.step(worker.env_state, action, key)
        right, _, end = step(worker, action, key)
        return mistake(right, time_step, env_state), time_step, end

    jacobian = reward_jacobian(reset(jax.random.key(0)), wrong_step, feedback=0.5)
    assert np.abs(jacobian - expected_jacobian(0.5)).max() > 0.1


def test_start_states_carry_no_gradient():
    """A start that depends on a parameter is cut at a reset, and only there."""

    def last_reward(start, length):
        reset, step = episodes.auto_reset(counter(start=start))
        worker = reset(jax.random.key(0))
        for _ in range(length):
            worker, time_step, _ = step(worker, jnp.zeros(1), jax.random.key(1))
        return time_step.reward

    assert jax.grad(last_reward)(2.0, 3) == 1.0
    assert jax.grad(last_reward)(2.0, 4) == 0.0
    assert last_reward(2.0, 4) == 2.0


def test_the_true_next_observation_survives_the_reset():
    reset, step = episodes.auto_reset(counter(max_episode_steps=2, goal=5.0))
    worker = reset(jax.random.key(0))
    worker, first, end = step(worker, jnp.ones(1), jax.random.key(1))
    np.testing.assert_array_equal(worker.obs, first.obs)
    assert not end.ended
    worker, second, end = step(worker, jnp.ones(1), jax.random.key(2))
    np.testing.assert_array_equal(second.obs, [2.0, 2.0])
    np.testing.assert_array_equal(worker.obs, [0.0, 0.0])
    assert second.truncated and not second.terminated and end.ended
    assert (end.episode_return, end.episode_length) == (3.0, 2)
    assert (worker.episode_return, worker.episode_length) == (0.0, 0)
    worker, third, end = step(worker, jnp.full(1, 9.0), jax.random.key(3))
    assert third.terminated and not third.truncated and end.ended and end.episode_length == 1


def test_collect_agrees_with_a_loop():
    env = lqr.make(lqr.random_problem(jax.random.key(5), 2, 1, process_noise=0.3), max_episode_steps=3)

    def act_fn(obs, key):
        return -0.1 * obs[:1] + 0.2 * jax.random.normal(key, (1,))

    reset, step = (jax.jit(fn) for fn in episodes.auto_reset(env))
    workers = jax.vmap(reset)(jax.random.split(jax.random.key(0), 2))
    collect = jax.jit(lambda w, k: episodes.collect(env, w, act_fn, k, num_steps=5))
    after, got, stats = collect(workers, jax.random.key(1))
    assert got.obs.shape == (5, 2, 2) and got.action.shape == (5, 2, 1) and got.reward.shape == (5, 2)

    for n in range(2):
        worker, ends = jax.tree.map(lambda x, n=n: x[n], workers), []
        for t, step_key in enumerate(jax.random.split(jax.random.key(1), 5)):
            policy_key, env_key = jax.random.split(jax.random.split(step_key, 2)[n])
            np.testing.assert_allclose(got.obs[t, n], worker.obs, rtol=1e-4, atol=1e-6)
            worker, time_step, end = step(worker, act_fn(worker.obs, policy_key), env_key)
            np.testing.assert_allclose(got.next_obs[t, n], time_step.obs, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(got.reward[t, n], time_step.reward, rtol=1e-4, atol=1e-6)
            ends.append(bool(end.ended))
        assert ends == [False, False, True, False, False]
        np.testing.assert_allclose(after.obs[n], worker.obs, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got.discount, np.ones((5, 2)))
    assert stats["episodes"] == 2 and stats["episode_length"] == 3.0
    np.testing.assert_allclose(stats["episode_return"], got.reward[:3].sum() / 2, rtol=1e-5)

    *_, stats = episodes.collect(env, workers, act_fn, jax.random.key(1), num_steps=2)
    assert stats["episodes"] == 0 and jnp.isnan(stats["episode_return"]) and jnp.isnan(stats["episode_length"])


def test_discount_is_zero_only_at_termination():
    env = counter(max_episode_steps=2, goal=1.5)
    workers = jax.vmap(episodes.auto_reset(env)[0])(jax.random.split(jax.random.key(0), 2))
    slow = lambda obs, key: jnp.where(obs[1] == 0, 1.0, 0.2)[None]  # noqa: E731
    _, got, stats = episodes.collect(env, workers, slow, jax.random.key(1), num_steps=4)
    np.testing.assert_array_equal(got.discount, np.ones((4, 2)))  # reaches 1.2: truncated, never terminated
    _, got, stats = episodes.collect(env, workers, lambda obs, key: jnp.ones(1), jax.random.key(1), num_steps=4)
    np.testing.assert_array_equal(got.discount, [[1, 1], [0, 0], [1, 1], [0, 0]])
    assert stats["episodes"] == 4 and stats["episode_return"] == 3.0


def test_episode_returns_counts_one_episode_each():
    env = counter(max_episode_steps=6, goal=2.5)

    def noisy(state, action, key):  # past its end the environment returns NaN
        over = state.position > 2.5
        state, time_step = env.step(state, action, key)
        return state, time_step._replace(reward=jnp.where(over, jnp.nan, time_step.reward))

    returns, lengths = episodes.episode_returns(
        env._replace(step=noisy), lambda obs, key: jnp.ones(1), jax.random.key(0), num_episodes=3
    )
    np.testing.assert_array_equal(returns, [6.0] * 3)  # 1 + 2 + 3
    np.testing.assert_array_equal(lengths, [3] * 3)
    returns, lengths = episodes.episode_returns(
        env, lambda obs, key: jnp.full(1, 0.1), jax.random.key(0), num_episodes=2
    )
    np.testing.assert_allclose(returns, [2.1] * 2, rtol=1e-6)
    np.testing.assert_array_equal(lengths, [6] * 2)


def test_episode_returns_draws_its_own_starts():
    env = lqr.make(lqr.random_problem(jax.random.key(5), 2, 1), max_episode_steps=2)
    act_fn = lambda obs, key: jnp.zeros(1)  # noqa: E731
    returns, _ = episodes.episode_returns(env, act_fn, jax.random.key(0), num_episodes=4)
    assert len(np.unique(returns)) == 4
    again, _ = episodes.episode_returns(env, act_fn, jax.random.key(0), num_episodes=4)
    np.testing.assert_array_equal(returns, again)


class HostState(NamedTuple):
    position: np.ndarray
    step: np.ndarray
    resets: np.ndarray


def host_counter(num_envs=2, max_episode_steps=3, goal=1e9):
    """The counter on the host. Instance ``n`` starts at ``seed % 10 + n``; one output buffer serves every step."""
    buffer = np.zeros((num_envs, 2), np.float32)

    def observe(state):
        buffer[:, 0], buffer[:, 1] = state.position, state.step
        return buffer

    def reset(seed):
        position = (seed % 10 + np.arange(num_envs)).astype(np.float32)
        state = HostState(position, np.zeros(num_envs, np.int32), np.zeros(num_envs, np.int32))
        return state, observe(state)

    def step(state, action):
        assert isinstance(action, np.ndarray) and action.shape == (num_envs, 1)
        state = state._replace(position=state.position + action[:, 0], step=state.step + 1)
        terminated = state.position > goal
        return state, TimeStep(
            observe(state), state.position.copy(), terminated, (state.step >= max_episode_steps) & ~terminated
        )

    def reset_where(state, obs, mask):
        state = HostState(np.where(mask, 0, state.position), np.where(mask, 0, state.step), state.resets + mask)
        return state, np.where(mask[:, None], observe(state), obs)

    return HostEnv(reset, step, reset_where, lambda: None, num_envs, spec(max_episode_steps))


@jax.jit
def push(obs, keys):
    return jnp.ones((obs.shape[0], 1))


@jax.jit
def noisy_push(obs, keys):
    return jax.vmap(lambda key: jax.random.normal(key, (1,)))(keys)


def test_host_collect():
    env = host_counter(goal=3.5)
    worker = episodes.host_reset(env, 1)
    worker, got, stats = episodes.host_collect(env, worker, push, jax.random.key(0), num_steps=4)
    np.testing.assert_array_equal(got.obs[:, 0, 0], [1, 2, 3, 0])
    np.testing.assert_array_equal(got.next_obs[:, 0, 0], [2, 3, 4, 1])
    np.testing.assert_array_equal(got.discount[:, 0], [1, 1, 0, 1])  # terminates in its third step
    np.testing.assert_array_equal(got.obs[:, 1, 0], [2, 3, 0, 1])
    np.testing.assert_array_equal(got.discount[:, 1], [1, 0, 1, 1])
    assert stats["episodes"] == 2 and stats["episode_return"] == (9 + 7) / 2 and stats["episode_length"] == 2.5
    np.testing.assert_array_equal(worker.episode_return, [1, 3])
    np.testing.assert_array_equal(worker.episode_length, [1, 2])
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((worker, got)))
    assert got.action.shape == (4, 2, 1) and got.discount.dtype == np.float32

    # Truncation bootstraps: the third step of instance 1 since its reset.
    _, got, stats = episodes.host_collect(env, worker, push, jax.random.key(0), num_steps=1)
    np.testing.assert_array_equal(got.discount, [[1, 1]])
    assert stats["episodes"] == 1 and stats["episode_return"] == 6
    _, _, stats = episodes.host_collect(
        host_counter(), episodes.host_reset(env, 1), push, jax.random.key(0), num_steps=1
    )
    assert stats["episodes"] == 0 and np.isnan(stats["episode_return"]) and np.isnan(stats["episode_length"])


def test_host_collect_goes_on_where_it_stopped():
    env = host_counter()
    keys = jax.random.split(jax.random.key(3), 2)
    worker = episodes.host_reset(env, 1)
    middle, _, _ = episodes.host_collect(env, worker, noisy_push, keys[0], num_steps=2)
    # A saved and restored worker is a copy of its arrays.
    saved = jax.tree.map(np.copy, middle)
    end, got, _ = episodes.host_collect(env, middle, noisy_push, keys[1], num_steps=4)
    end_again, again, _ = episodes.host_collect(host_counter(), saved, noisy_push, keys[1], num_steps=4)
    jax.tree.map(np.testing.assert_array_equal, (end, got), (end_again, again))
    assert len(np.unique(got.action)) == got.action.size, "every draw has its own key"


def test_host_episode_returns():
    env = host_counter(num_envs=2, max_episode_steps=4, goal=10.5)
    returns, lengths = episodes.host_episode_returns(env, push, jax.random.key(0), num_episodes=3)
    assert returns.shape == lengths.shape == (3,)
    # From a start x the episode visits x+1, x+2, ... until it passes 10.5 or four steps are over.
    possible = {}
    for start in range(11):
        visited = [start + 1 + t for t in range(4)]
        visited = visited[: next((t + 1 for t, x in enumerate(visited) if x > 10.5), 4)]
        possible[float(sum(visited))] = len(visited)
    for total, length in zip(returns, lengths, strict=True):
        assert possible[float(total)] == length
    again, _ = episodes.host_episode_returns(env, push, jax.random.key(0), num_episodes=3)
    np.testing.assert_array_equal(returns, again)


def test_bad_arguments_are_refused():
    env = host_counter()
    with pytest.raises(InputError, match="num_steps=0"):
        episodes.host_collect(env, episodes.host_reset(env, 0), push, jax.random.key(0), num_steps=0)
    with pytest.raises(InputError, match="num_episodes=0"):
        episodes.host_episode_returns(env, push, jax.random.key(0), num_episodes=0)
