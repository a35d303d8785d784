"""The city against a simulator of tables and plain Python, which shares no constant with it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError

WALKS = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}
CORNERS = [(0, 0), (8, 8), (0, 8), (8, 0)]
RIDE, END, LIMIT = 5, 6, 20
KEY = jax.random.key(0)


@functools.cache
def buses(number, distracting):
    """Where buses lead in a task, both ways."""
    orders = list(itertools.permutations(range(4)))
    near = [(0, 1), (0, 7), (8, 1), (8, 7)]
    lines = [((4, 5), (5, 4), (3, 4), (4, 3)), [near[i] for i in orders[number % 24]]]
    table = dict(zip(*lines)) | dict(zip(*lines[::-1]))
    if distracting:
        far = [(0, 4), (4, 0), (8, 4), (4, 8)]
        lines = [((5, 5), (3, 3), (3, 5), (5, 3)), [far[i] for i in orders[number // 24]]]
        table |= dict(zip(*lines)) | dict(zip(*lines[::-1]))
    return table


def moved(place, action, table):
    if action == RIDE:
        return table.get(place, place)
    x, y = WALKS.get(action, (0, 0))
    return min(max(place[0] + x, 0), 8), min(max(place[1] + y, 0), 8)


def seen(place, number, table, with_map):
    note = (number % 24 + 1 if place == (7, 3) else 0,) if with_map else ()
    return (*place, int(place in table), *note)


def simulate(number, goal, actions, *, distracting, with_map, exploring, hidden, limit_is_end=True):
    """Yields ``(obs, reward, terminated, truncated)`` of every step of an episode."""
    table, place = buses(number, distracting), (4, 4)
    for count, action in enumerate(actions, 1):
        place = moved(place, action, table)
        arrived = place == goal and (hidden or not exploring)
        reward = 1.0 if arrived else -0.1
        if action == END:
            reward -= 0.1 * (LIMIT - count)
        ended = arrived or action == END or (count == LIMIT and limit_is_end)
        yield seen(place, number, table, with_map), 0.0 if exploring else reward, ended, count == LIMIT
        if ended or count == LIMIT:
            return


def play(record, ids, goals, actions, exploring):
    def episode(task_id, goal, actions, exploring):
        state, first = city.reset(record, task_id, goal, exploring=exploring)
        _, after = jax.lax.scan(functools.partial(city.step, record), state, actions)
        return first, after

    first, after = jax.jit(jax.vmap(episode))(ids, goals, actions, exploring)
    assert (first == first[:1]).all() and first[0, :3].tolist() == [4, 4, 0]
    return jax.tree.map(np.asarray, after)


@pytest.mark.parametrize(
    ("task", "knobs"),
    [
        ("distraction", {}),
        ("map", {"hidden_goal": True}),
        ("vanilla", {"terminal_limit": False}),
        ("combination", {"hidden_goal": True}),
    ],
)
def test_every_task_and_goal_is_that_of_the_tables(task, knobs):
    record = city.make(task, **knobs)
    distracting, with_map = task in ("distraction", "combination"), task in ("map", "combination")
    assert record.num_ids == (576 if distracting else 24)
    cases = list(itertools.product(range(record.num_ids), CORNERS, (False, True)))
    rng = np.random.default_rng(0)
    # Rides are frequent and giving up is rare, so that episodes are long and get about.
    chances = np.array([0.16, 0.16, 0.16, 0.16, 0.05, 0.25, 0.01, 0.02, 0.03])
    actions = rng.choice(9, size=(len(cases), LIMIT), p=chances)
    # Half of the episodes begin with the way to a bus.
    actions[::2, 0], actions[::2, 1] = rng.integers(0, 4, size=len(actions[::2])), RIDE
    ids, goals, exploring = (np.array(column) for column in zip(*cases))
    after = play(record, ids, goals, actions, exploring)
    lengths, reached, rode = [], 0, 0
    for i, (number, goal, explores) in enumerate(cases):
        expected = list(
            simulate(
                number,
                goal,
                actions[i].tolist(),
                distracting=distracting,
                with_map=with_map,
                exploring=explores,
                hidden=knobs.get("hidden_goal", False),
                limit_is_end=knobs.get("terminal_limit", True),
            )
        )
        count = len(expected)
        obs, reward, terminated, truncated = zip(*expected)
        np.testing.assert_array_equal(after.obs[i, :count], obs)
        np.testing.assert_allclose(after.reward[i, :count], reward, rtol=1e-6)
        np.testing.assert_array_equal(after.terminated[i, :count], terminated)
        np.testing.assert_array_equal(after.truncated[i, :count], truncated)
        lengths.append(count)
        reached += 1.0 in reward
        rode += any(abs(a[0] - b[0]) + abs(a[1] - b[1]) > 1 for a, b in itertools.pairwise(obs))
    assert max(lengths) == LIMIT and min(lengths) < LIMIT and reached > len(cases) / 200 and rode > len(cases) / 4


def test_move_is_the_whole_table():
    cells = np.stack(np.indices((9, 9)), axis=-1).reshape(-1, 2)
    across = jax.vmap(jax.vmap(jax.vmap(city.move, (None, 0, None)), (0, None, None)), (None, None, 0))
    mine = np.asarray(jax.jit(across)(cells, np.arange(9), np.arange(576)))  # [ids, cells, actions, 2]
    for number in range(576):
        table = buses(number, True)
        expected = [[moved(place, action, table) for action in range(9)] for place in map(tuple, cells.tolist())]
        np.testing.assert_array_equal(mine[number], expected)


@pytest.mark.parametrize("task", city.TASKS)
def test_observations_are_all_that_can_be_made(task):
    town = city.make(task)
    distracting, with_map = task in ("distraction", "combination"), task in ("map", "combination")
    cells = list(itertools.product(range(9), repeat=2))
    made = {seen(cell, i, buses(i, distracting), with_map) for i in range(town.num_ids) for cell in cells}
    listed = [tuple(map(int, each)) for each in city.observations(town)]
    assert set(listed) == made and len(listed) == len(made)


def test_splits():
    released, paper = city.make("distraction"), city.make("distraction", split="paper")
    assert released.train_ids.tolist() == list(range(0, 576, 11)) and len(released.train_ids) == 53
    assert len(released.test_ids) == 523 and not set(released.test_ids) & set(released.train_ids)
    assert len(paper.train_ids) == 24 and len(paper.test_ids) == 552
    helpful = city.make("distraction", split="helpful")
    assert helpful.train_ids.tolist() == list(range(24)) and helpful.test_ids.tolist() == list(range(24, 576))
    swapped = city.make("distraction", split="swapped")
    np.testing.assert_array_equal(swapped.train_ids, released.test_ids)
    np.testing.assert_array_equal(swapped.test_ids, released.train_ids)
    for record in (released, paper):
        orders = np.divmod(record.train_ids, 24)
        assert all(len(np.unique(order)) == 24 for order in orders)
    for record in (city.make("map"), city.make("vanilla"), city.make("combination", split="none")):
        np.testing.assert_array_equal(record.train_ids, np.arange(record.num_ids))
        np.testing.assert_array_equal(record.test_ids, np.arange(record.num_ids))
    assert released.obs_sizes == (9, 9, 4) and city.make("map").obs_sizes == (9, 9, 4, 25)


def test_released_evaluation_is_the_measured_one():
    record = city.make("distraction")
    ids, goals = city.released_tasks(record, range(100), "test")
    assert len(np.unique(ids)) == 90 and len(np.unique(ids % 24)) == 24 and set(ids) <= set(record.test_ids)
    assert [(goals == corner).all(1).sum() for corner in CORNERS] == [18, 27, 27, 28]
    # A hidden goal has the seed of the instruction two trials before.
    np.testing.assert_array_equal(city.hidden_goals(record, range(2, 100)), goals[:98])
    np.testing.assert_array_equal(city.hidden_goals(record, [0, 1]), np.repeat(city.hidden_goals(record, [0]), 2, 0))


def test_sampled_tasks_are_those_of_the_split():
    record = city.make("distraction", split="paper")
    sample = jax.jit(jax.vmap(lambda key: city.sample_task(record, key, split="train")))
    ids, goals = sample(jax.random.split(KEY, 2000))
    assert set(ids.tolist()) == set(record.train_ids.tolist())
    assert set(map(tuple, goals.tolist())) == set(CORNERS)
    # 2,000 draws of 24 ids: 83 each, and 9 is a standard deviation.
    assert np.bincount(np.asarray(ids) // 25).max() < 83 + 5 * 9


def test_by_name():
    env = envs.make("city/map", task_id=5, phase="test")
    state, obs = env.reset(KEY)
    assert state.task_id == 5 and obs.tolist() == [4, 4, 0, 0, *state.goal.tolist()] and not state.exploring
    assert {envs.make("city/distraction").reset(key)[0].task_id.item() % 11 for key in jax.random.split(KEY, 3)} == {0}


def test_as_a_picture():
    env = envs.make("city/combination", task_id=5, observation="image")
    state, obs = env.reset(KEY)
    assert obs.shape == env.spec.obs_shape == (9, 9, 4) and env.spec.obs_dim == obs.size
    assert np.argwhere(obs[..., 0]).tolist() == [[4, 4]] and np.argwhere(obs[..., 3]).tolist() == [state.goal.tolist()]
    _, after = env.step(state, jnp.array(0), KEY)
    assert np.argwhere(after.obs[..., 0]).tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: city.make("distracting"), "task='distracting' is unknown: did you mean 'distraction'"),
        (lambda: city.make(split="every10"), "split='every10' is unknown"),
        (lambda: city.make("map", split="every11"), "split='every11' is of 576 ids and task='map' has 24"),
        (lambda: city.sample_task(city.make(), KEY, split="tests"), "split='tests' is unknown"),
        (lambda: city.released_tasks(city.make(), [0], "eval"), "split='eval' is unknown"),
        (lambda: city.reset(city.make("map"), 24, (0, 0), exploring=True), "task_id=24 must lie between 0 and 23"),
        (lambda: city.reset(city.make(), jnp.array(-1), (0, 0), exploring=True), "task_id=-1 must lie between"),
        (lambda: envs.make("city/map", task_id=24), "task_id=24 must lie"),
        (lambda: envs.make("city/map", phase="tests"), "phase='tests' is unknown"),
        (lambda: envs.make("city/map", observation="images"), "observation='images' is unknown: did you mean 'image'"),
        (lambda: envs.make("city/maps"), "env='city/maps' is unknown: did you mean 'city/map'"),
        (lambda: envs.make("city/map/extra"), "env="),
    ],
)
def test_bad_input_is_refused(build, why):
    with pytest.raises(InputError, match=why):
        build()
