"""The tasks of 2017 against their formulas and against today's."""

import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import mujoco_v1
from jaxhybrid.errors import InputError


def run(env, actions, seed=3):
    """Observations ``[T + 1, N, D]``, rewards and terminations of a fixed sequence of actions, without resets."""
    state, obs = env.reset(seed)
    seen, rewards, ended = [np.array(obs)], [], []
    for action in actions:
        state, step = env.step(state, action)
        seen.append(np.array(step.obs))
        rewards.append(np.array(step.reward))
        ended.append(np.array(step.terminated))
    return np.stack(seen), np.stack(rewards), np.stack(ended)


def both(task, num_steps=60):
    old = envs.make(f"mujoco_v1/{task}", num_envs=2)
    # With the walker of 2017 in version 5 too, whose friction is another.
    file = {"xml_file": "walker2d.xml"} if task == "walker" else {}
    new = envs.make(f"gymnasium/{mujoco_v1.TASKS[task].gymnasium}", num_envs=2, **file)
    actions = np.random.default_rng(0).normal(size=(num_steps, 2, old.spec.action_dim))
    results = run(old, actions), run(new, actions), actions
    spec = old.spec
    old.close()
    new.close()
    return *results, spec


def test_swimmer_is_the_same():
    old, new, _, spec = both("swimmer", 20)
    for a, b in zip(old, new):
        np.testing.assert_array_equal(a, b)
    assert (spec.name, spec.max_episode_steps, spec.obs_dim, round(spec.dt, 6)) == ("mujoco_v1/swimmer", 1000, 8, 0.04)


def test_reacher_is_paid_for_the_distance_before_the_step():
    (obs, reward, _), (new_obs, new_reward, _), actions, spec = both("reacher", 20)
    np.testing.assert_array_equal(obs, new_obs)
    distance = np.linalg.norm(obs[..., 8:10], axis=-1)
    cost = np.square(actions).sum(axis=-1)
    np.testing.assert_allclose(reward, -distance[:-1] - cost, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(new_reward, -distance[1:] - cost, rtol=1e-5, atol=1e-5)
    assert np.abs(reward - new_reward).max() > 1e-3
    known = spec.reward_fn(obs[0, 0], actions[0, 0], obs[1, 0])
    np.testing.assert_allclose(known, reward[0, 0], rtol=1e-5)
    assert spec.max_episode_steps == 50


@pytest.mark.parametrize("task", ["hopper", "walker"])
def test_the_step_that_ends_an_episode_is_paid(task):
    (_, reward, ended), (_, new_reward, new_ended), _, _ = both(task, 200)
    assert ended.any(axis=0).all()
    np.testing.assert_array_equal(ended, new_ended)
    np.testing.assert_allclose(reward - new_reward, ended.astype(float), atol=1e-6)
    spec = envs.make(f"mujoco_v1/{task}").spec
    assert spec.terminated_fn is not None and spec.observable_termination


def test_the_walkers_right_foot_slides():
    gymnasium = pytest.importorskip("gymnasium")
    task = mujoco_v1.TASKS["walker"]
    bare = gymnasium.make(task.gymnasium, **task.options).unwrapped
    friction = {bare.model.geom(i).name: bare.model.geom_friction[i, 0] for i in range(bare.model.ngeom)}
    assert (friction["foot_geom"], friction["foot_left_geom"]) == (0.9, 1.9)
    bare.close()


def test_states_are_explicit():
    env = envs.make("mujoco_v1/reacher", num_envs=2)
    state, _ = env.reset(0)
    state, step = env.step(state, np.full((2, 2), 0.3))
    again = [env.step(state, np.full((2, 2), -0.2))[1].reward for _ in range(2)]
    np.testing.assert_array_equal(*again)
    fresh, first = env.reset_where(state, np.array(step.obs), np.array([True, False]))
    assert (first[0] != step.obs[0]).any() and (first[1] == step.obs[1]).all()
    np.testing.assert_array_equal(fresh.obs, first)
    env.close()


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="task='hoper' is unknown: did you mean 'hopper'"):
        mujoco_v1.make("hoper")
