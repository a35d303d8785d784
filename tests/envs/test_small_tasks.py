"""The simple maze and the catcher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import catcher, simple_maze
from jaxhybrid.errors import InputError

KEY = jax.random.key(0)


def test_two_rooms_and_a_door():
    walls = simple_maze.walls()
    assert walls.sum() == 28 + 5 and not walls[4, 4]
    env = simple_maze.make(max_episode_steps=4)
    state, obs = env.reset(KEY)
    assert tuple(state.position.tolist()) == (4, 4)
    np.testing.assert_array_equal(obs, simple_maze.picture(state.position))
    assert sorted(np.unique(np.asarray(obs)).tolist()) == pytest.approx([0.0, 0.7, 0.8, 1.0])
    step = jax.jit(env.step)
    places = []
    for action in (0, 1, 2, 1):  # above and below the door are walls; then to the left and down
        state, time_step = step(state, jnp.array(action), KEY)
        places.append(tuple(state.position.tolist()))
        assert time_step.reward == 0 and not time_step.terminated
    assert places == [(4, 4), (4, 4), (4, 3), (5, 3)]
    assert time_step.truncated
    # The agent is drawn in the block of its cell and nowhere else.
    difference = np.asarray(time_step.obs) - np.kron(walls, np.ones((6, 6)))
    assert np.abs(difference[30:36, 18:24]).sum() > 0
    difference[30:36, 18:24] = 0
    assert np.abs(difference).max() == 0
    with pytest.raises(InputError, match="max_episode_steps"):
        simple_maze.make(max_episode_steps=0)


@pytest.mark.parametrize(
    ("paddle", "column", "action", "reward"), [(0, 0, 0, 1), (8, 0, 0, 1), (9, 0, 1, -1), (0, 9, 1, 1)]
)
def test_catching_takes_nine_steps(paddle, column, action, reward):
    env = catcher.make()
    step = jax.jit(env.step)
    state = catcher.CatcherState(*map(jnp.asarray, (paddle, column, 9)))
    for t in range(9):
        state, time_step = step(state, jnp.array(action), KEY)
        assert time_step.reward == (reward if t == 8 else 0) and time_step.terminated == (t == 8)


def test_the_catchers_picture_by_hand():
    _, obs = catcher.make().reset(KEY)
    assert obs.shape == (36, 36) and np.asarray(obs == 1).sum() == 9 and np.asarray(obs == 0.5).sum() == 27
    env = catcher.make()
    state = catcher.CatcherState(jnp.array(1), jnp.array(9), jnp.array(9))
    _, time_step = env.step(state, jnp.array(0), KEY)  # the paddle is at 0 then, the block one lower
    cells = np.asarray(time_step.obs)[::3, ::3]
    expected = np.zeros((12, 12))
    expected[10, 0:3], expected[2, 10] = 0.5, 1.0
    np.testing.assert_array_equal(cells, expected)


def test_starts_cover_all_columns():
    states, _ = jax.vmap(catcher.make().reset)(jax.random.split(KEY, 300))
    assert set(np.unique(states.paddle)) == set(range(10)) and set(np.unique(states.column)) == {0, 9}
