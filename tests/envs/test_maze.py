import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import episodes, maze, maze_oracle, maze_pool
from jaxhybrid.errors import InputError

# Returns of the released environment in 50 steps: mean and standard error.
REFERENCE = {"oracle": (1.886, 0.0065), "oracle, eps 0.1": (1.76, 0.03), "random": (-4.08, 0.03)}
EPSILON = {"oracle": 0.0, "oracle, eps 0.1": 0.1, "random": 1.0}
MAZES = 1500

# A ring, two rows of wall, and keys one, two and three steps from the start. W wall, K key, S start.
ROWS = ("WWWWWWWW", "WSKKW..W", "WWW.W..W", "W..KW..W", "W.WWW..W", "W......W", "W......W", "WWWWWWWW")


def small_pool():
    cells = np.array([list(row) for row in ROWS])
    return maze_pool.MazePool((cells == "W")[None], np.argwhere(cells == "K")[None])


@functools.cache
def returns(epsilon):
    """Returns of the oracle on drawn mazes with some of its moves replaced by random ones; and the best ones."""
    pool = maze_pool.make_pool("deer", MAZES, 0, "test")
    env = maze.make(pool=pool, observation="cells")

    def episode(index, key):
        state = maze.start(pool, index)
        tour = maze_oracle.survey(state)

        def advance(carry, k):
            state, alive, total = carry
            explore_key, action_key = jax.random.split(k)
            explores = jax.random.bernoulli(explore_key, epsilon)
            action = jnp.where(explores, jax.random.randint(action_key, (), 0, 4), maze_oracle.best_action(tour, state))
            state, time_step = env.step(state, action, k)
            return (state, alive & ~time_step.terminated, total + jnp.where(alive, time_step.reward, 0.0)), None

        carry = (state, jnp.array(True), jnp.zeros(()))
        (_, _, total), _ = jax.lax.scan(advance, carry, jax.random.split(key, 50))
        return total, maze_oracle.best_return(tour, state)

    keys = jax.random.split(jax.random.key(1), MAZES)
    return [np.asarray(x) for x in jax.jit(jax.vmap(episode))(jnp.arange(MAZES), keys)]


@pytest.mark.parametrize("policy", REFERENCE)
def test_returns_are_those_of_the_released_environment(policy):
    mine, _ = returns(EPSILON[policy])
    mean, error = REFERENCE[policy]
    both = np.hypot(error, mine.std() / np.sqrt(MAZES))
    assert both < 0.05, "too noisy to tell"
    assert abs(mine.mean() - mean) < 5 * both
    assert mine.min() > -5.0 - 1e-4 and mine.max() <= 3.0 + 1e-5


def test_the_oracle_walks_the_shortest_tour_and_nobody_beats_it():
    walked, best = returns(0.0)
    np.testing.assert_allclose(walked, best, atol=1e-4)
    for epsilon in (0.1, 1.0):
        assert (returns(epsilon)[0] <= best + 1e-4).all()
    assert (returns(1.0)[0] < -4.999).mean() == pytest.approx(0.44, abs=0.06)


@pytest.mark.parametrize(("generator", "steps"), [("deer", (5.65, 7.89, 9.70)), ("fair", (7.98, 7.89, 7.95))])
def test_the_keys_of_each_generator_are_as_far_as_in_the_released_ones(generator, steps):
    count = 6000
    pool = maze_pool.make_pool(generator, count, 0, "test")
    states = jax.vmap(lambda i: maze.start(pool, i))(jnp.arange(count))
    tours = jax.jit(jax.vmap(maze_oracle.survey))(states)
    start = np.asarray(tours.distances)[:, :, 1, 1]
    # The survey lists keys by place; put them back into the order in which they were drawn.
    same = (np.asarray(tours.keys)[:, None] == pool.keys[:, :, None]).all(-1)  # [P, drawn, listed]
    drawn = np.take_along_axis(start, same.argmax(-1), axis=1)
    error = drawn.std(axis=0) * np.sqrt(1 / count + 1 / 3000)  # the reference is a mean over 3,000 mazes
    assert (np.abs(drawn.mean(axis=0) - steps) < 5 * error).all()
    assert (error < 0.1).all()
    assert np.isfinite(drawn).all() and drawn.min() >= 1


@pytest.mark.parametrize("generator", maze_pool.GENERATORS)
def test_drawn_mazes_keep_the_rules(generator):
    pool = maze_pool.check_pool(maze_pool.make_pool(generator, 300, 3))
    assert pool.walls.shape == (300, 8, 8)
    inside = pool.walls[:, 1:-1, 1:-1]
    assert (inside.sum(axis=(1, 2)) == 12).all() and not inside[:, -1].any() and not inside[:, :, -1].any()
    assert pool.keys.min() == 1 and pool.keys.max() == 6
    assert len(np.unique(pool.walls.reshape(300, -1), axis=0)) > 290


def test_small_mazes_keep_the_rules_and_tests_are_held_out():
    trained, tested = (maze_pool.make_pool("fair", 200, 0, split, side=6, num_keys=1) for split in ("train", "test"))
    pool = maze_pool.check_pool(trained)
    assert pool.walls.shape == (200, 6, 6) and pool.keys.shape == (200, 1, 2)
    # A third of the 16 cells inside, none of them in the last row or column.
    assert (pool.walls[:, 1:-1, 1:-1].sum(axis=(1, 2)) == 5).all() and not pool.walls[:, -2, 1:-1].any()

    def words(mazes):
        return {(wall.tobytes(), key.tobytes()) for wall, key in zip(*mazes)}

    new = maze_pool.held_out(tested, trained)
    assert words(tested) & words(trained) and not words(new) & words(trained)
    assert words(new) == words(tested) - words(trained)
    with pytest.raises(InputError, match="all of the 200 test mazes are among"):
        maze_pool.held_out(trained, trained)


def test_a_small_maze_is_walked_by_the_oracle():
    pool = maze_pool.make_pool("fair", 5, 0, side=6, num_keys=1)
    env = maze.make(pool=pool)
    assert env.spec.obs_shape == (36, 36)
    state = maze.start(pool, 3)
    tour = maze_oracle.survey(state, num_keys=1)
    length = int(maze_oracle.tour_length(tour, state.position, state.keys))
    for taken in range(length):
        assert maze_oracle.tour_length(tour, state.position, state.keys) == length - taken
        state, time_step = env.step(state, maze_oracle.best_action(tour, state), jax.random.key(0))
    assert time_step.terminated and time_step.obs.shape == (36, 36)


def test_pools_are_reproduced_and_splits_share_nothing():
    one = maze_pool.make_pool("fair", 40, 0)
    maze_pool.make_pool.cache_clear()
    again, other = maze_pool.make_pool("fair", 40, 0), maze_pool.make_pool("fair", 40, 0, "test")
    np.testing.assert_array_equal(one.walls, again.walls)
    assert not (one.walls[:, None] == other.walls[None]).all(axis=(2, 3)).any()
    with pytest.raises(ValueError, match="read-only"):
        one.walls[0, 0, 0] = False


def test_a_walk_by_hand():
    env = maze.make(pool=small_pool(), observation="cells", max_episode_steps=None)
    state, obs = env.reset(jax.random.key(0))
    expected = np.full((8, 8), maze.FREE)
    expected[small_pool().walls[0]] = maze.WALL
    expected[1, 1], expected[1, 2], expected[1, 3], expected[3, 3] = maze.AGENT, maze.KEY, maze.KEY, maze.KEY
    np.testing.assert_array_equal(obs, expected)
    tour = maze_oracle.survey(state)
    # Four steps, three of them to a key.
    assert maze_oracle.tour_length(tour, state.position, state.keys) == 4
    assert maze_oracle.best_return(tour, state) == pytest.approx(2.9)
    step = jax.jit(env.step)
    seen = []
    for action in (2, 3, 1, 1, 1, 0, 0):  # into two walls, two keys, a wall, down, the last key
        state, time_step = step(state, jnp.array(action), jax.random.key(0))
        seen.append((float(time_step.reward), bool(time_step.terminated), tuple(state.position.tolist())))
    rewards, ends, places = zip(*seen)
    np.testing.assert_allclose(rewards, [-0.1, -0.1, 1.0, 1.0, -0.1, -0.1, 1.0], rtol=1e-6)
    assert ends == (False,) * 6 + (True,)
    assert places == ((1, 1), (1, 1), (1, 2), (1, 3), (1, 3), (2, 3), (3, 3))
    assert not time_step.truncated and env.spec.max_episode_steps == maze.UNLIMITED


def test_sprites_are_those_of_the_released_pictures():
    agent = [[0, 0, 8, 0, 0, 0], [9, 9, 9, 9, 9, 0], [0, 9, 9, 9, 0, 0]]
    agent += [[0, 9, 9, 9, 0, 0], [0, 9, 0, 9, 0, 0], [9, 9, 0, 9, 9, 0]]
    key = [[0, 6, 6, 6, 0, 0], [0, 7, 0, 7, 0, 0], [0, 6, 6, 6, 0, 0]]
    key += [[0, 7, 0, 0, 0, 0], [0, 7, 7, 0, 0, 0], [0, 7, 7, 7, 0, 0]]
    image = maze.make(pool=small_pool()).reset(jax.random.key(0))[1]
    assert image.shape == (48, 48)

    def block(i, j):
        return image[6 * i : 6 * i + 6, 6 * j : 6 * j + 6]

    np.testing.assert_allclose(block(1, 1), 2 * np.array(agent) / 10 - 1, atol=1e-6)
    np.testing.assert_allclose(block(3, 3), 2 * np.array(key) / 10 - 1, atol=1e-6)
    assert (block(0, 0) == 1).all() and (block(6, 6) == -1).all()
    np.testing.assert_allclose(np.unique(image), [-1.0, 0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6)


def test_cells_are_the_picture_and_fit_into_bytes():
    options = {"generator": "fair", "pool_size": 20}
    for seed in range(3):
        image = maze.make(**options).reset(jax.random.key(seed))[1]
        cells = maze.make(**options, observation="cells").reset(jax.random.key(seed))[1]
        np.testing.assert_array_equal(maze.render(cells.astype(jnp.uint8)), image)
    assert (maze.render(0 * cells) == 0).all()


def test_random_moves_need_some_four_hundred_steps_a_maze():
    """Without a limit; with one, a data set would hold far more mazes than the released one does."""
    env = maze.make(generator="deer", split="train", max_episode_steps=None, observation="cells", pool_size=500)
    workers = jax.vmap(episodes.auto_reset(env)[0])(jax.random.split(jax.random.key(0), 200))

    def collect(workers, key):
        act_fn = lambda _, k: jax.random.randint(k, (), 0, 4)  # noqa: E731
        _, _, stats = episodes.collect(env, workers, act_fn, key, num_steps=3000)
        return stats

    stats = jax.jit(collect)(workers, jax.random.key(1))
    # Few episodes are unfinished after 3,000 steps: 200 * 3000 / 390 = 1,540 are expected to end.
    assert 200 * 3000 / float(stats["episodes"]) == pytest.approx(390, rel=0.1)


def test_by_name():
    env = envs.make("maze", generator="fair", pool_size=3)
    assert env.spec.num_actions == 4 and env.spec.obs_shape == (48, 48) and env.spec.max_episode_steps == 50


def broken(walls=(), keys=()):
    pool = small_pool()
    new_walls, new_keys = pool.walls.copy(), pool.keys.copy()
    for place, value in walls:
        new_walls[0][place] = value
    for index, place in keys:
        new_keys[0][index] = place
    return maze_pool.MazePool(new_walls, new_keys)


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        (broken(walls=[((0, 3), False)]), "hole in its outer ring"),
        (broken(walls=[((1, 1), True)]), "wall on the start"),
        (broken(walls=[((1, 2), True)]), "no way from the start"),
        (broken(keys=[(0, (1, 1))]), "must differ"),
        (broken(keys=[(0, (1, 3))]), "must differ"),
        (broken(keys=[(0, (8, 3))]), "outside of the map"),
        (broken(keys=[(0, (2, 1))]), "no way from the start"),
        (maze_pool.MazePool(np.ones((1, 7, 8), bool), np.ones((1, 3, 2), int)), r"\(1, 7, 8\)"),
        (maze_pool.MazePool(np.ones((1, 7, 7), bool), np.ones((1, 3, 2), int)), r"\(1, 7, 7\)"),
        (maze_pool.MazePool(small_pool().walls, np.ones((1, 4, 2), int)), r"keys has shape \(1, 4, 2\)"),
    ],
)
def test_mazes_that_cannot_exist_are_refused(pool, why):
    with pytest.raises(InputError, match=why):
        maze.make(pool=pool)


@pytest.mark.parametrize(
    "options",
    [{"generator": "dear"}, {"split": "tests"}, {"pool_size": 0}, {"seed": -1}, {"observation": "pixels"}]
    + [{"max_episode_steps": 0}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        maze.make(**options)
