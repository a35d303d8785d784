import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import city, city_trials
from jaxhybrid.errors import InputError

TOWN = city.make("distraction")


@functools.cache
def compiled():
    env = city_trials.environment(TOWN)
    return env, jax.jit(env.reset), jax.jit(env.step)


def played(actions, key):
    """Steps of a trial until it ends, and the state before the first one."""
    _, reset, step = compiled()
    env_state, obs = reset(key)
    start, steps = env_state, []
    for action in actions:
        env_state, after = step(env_state, jnp.asarray(action), key)
        steps.append(after)
        if after.terminated | after.truncated:
            break
    return start, obs, steps


def test_a_trial_is_two_episodes_of_one_task():
    # Three steps to look around, then left until the time is over.
    start, first, steps = played([city.RIDE, 1, city.END, *[0] * 30], jax.random.key(1))
    assert len(steps) == 3 + TOWN.horizon
    assert all(not step.terminated and not step.truncated for step in steps[:-1])
    assert steps[-1].terminated and steps[-1].truncated
    rewards = [float(step.reward) for step in steps]
    assert rewards[:3] == [0.0] * 3
    np.testing.assert_allclose(sum(rewards), -2.0, rtol=1e-5)
    task_id, goal = start.episode.task_id, start.record.goal
    for part, actions in enumerate(([city.RIDE, 1, city.END], [0] * TOWN.horizon)):
        state, obs = city.reset(TOWN, int(task_id), goal, exploring=part == 0)
        seen = [obs]
        for action in actions:
            state, after = city.step(TOWN, state, jnp.asarray(action))
            seen.append(after.obs)
        record = city_trials.read(TOWN, steps[-1].obs)
        np.testing.assert_array_equal(record.obs[part, : len(seen)], seen)
        np.testing.assert_array_equal(record.action[part, : len(actions)], actions)
        assert record.steps[part] == len(actions)
    assert city_trials.read(TOWN, first).steps.tolist() == [0, 0]
    assert [int(city_trials.read(TOWN, step.obs).executing) for step in steps[:4]] == [0, 0, 1, 1]


def test_nothing_of_a_step_is_seen_before_it():
    _, first, steps = played([1, 2, city.END, 3], jax.random.key(0))
    records = [city_trials.read(TOWN, obs) for obs in (first, *(step.obs for step in steps))]
    for before, after in itertools.pairwise(records):
        part, count = int(before.executing), int(before.steps[int(before.executing)])
        assert not np.any(before.obs[part, count + 1 :]) and not np.any(before.action[part, count:])
        np.testing.assert_array_equal(before.obs[part, : count + 1], after.obs[part, : count + 1])
    assert np.all(records[0].goal == records[-1].goal)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="phase='testing'"):
        city_trials.environment(TOWN, phase="testing")
