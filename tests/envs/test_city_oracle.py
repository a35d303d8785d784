import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import city, city_oracle
from jaxhybrid.errors import InputError
from tests.envs.test_city import CORNERS, buses, moved


@pytest.mark.parametrize("task", city.TASKS)
def test_what_is_known_walked_and_guessed_is_worth_what_the_table_says(task):
    record = city.make(task)
    np.testing.assert_allclose(city_oracle.best_returns(record), 0.8, rtol=1e-12)
    np.testing.assert_allclose(city_oracle.best_returns(record, riding=False), 0.3, rtol=1e-12)
    length, total = city_oracle.random_policy(record)
    # The table was measured: 8.08 and -1.97.
    assert length == pytest.approx(8.08, abs=0.02) and total == pytest.approx(-1.97, abs=0.002)
    with_map = task in ("map", "combination")
    assert set(city_oracle.exploration_steps(record)) == {4 if with_map else 10}


@pytest.mark.parametrize(("task", "goals"), [("vanilla", range(4)), ("map", range(4)), ("distraction", [0])])
def test_without_exploration_nothing_beats_walking(task, goals):
    for goal in goals:
        assert city_oracle.bayes_return(city.make(task), goal) == pytest.approx(0.3)


def test_fewer_tasks_are_worth_learning_on_the_way():
    record = city.make("vanilla")
    assert city_oracle.bayes_return(record, 1, ids=np.array([7])) == pytest.approx(0.8)
    # Tasks 0 and 1 differ in the ends (8, 1) and (8, 7) of two buses. To (8, 8): a step and a ride, and with luck one
    # step more; else back, two steps to the other bus, its ride and a step, 7 in all. 1 - 0.1 ((3 + 7) / 2 - 1) = 0.6.
    assert city_oracle.bayes_return(record, 1, ids=np.array([0, 1])) == pytest.approx(0.6)
    assert city_oracle.bayes_return(record, 0, ids=np.array([0, 1])) == pytest.approx(0.8)
    # The 53 tasks of training are few enough for the useless buses to tell something of the helpful ones.
    record = city.make("distraction")
    assert 0.301 < city_oracle.bayes_return(record, 0, ids=record.train_ids) < 0.4


def test_steps_are_those_of_a_search_over_the_tables():
    record = city.make("distraction")
    steps = city_oracle.steps_to_goals(record)
    for number, goal in ((0, 0), (123, 1), (575, 3)):
        expected, frontier = {CORNERS[goal]: 0}, [CORNERS[goal]]
        while frontier:  # every step can be gone back
            place = frontier.pop(0)
            for action in range(6):
                after = moved(place, action, buses(number, True))
                if after not in expected:
                    expected[after] = expected[place] + 1
                    frontier.append(after)
        assert all(steps[number, goal][place] == count for place, count in expected.items()) and len(expected) == 81


def test_random_actions_do_as_computed():
    record, count = city.make("distraction"), 20_000

    def episode(key):
        task_key, action_key = jax.random.split(key)
        task_id, goal = city.sample_task(record, task_key, split="test")
        state, _ = city.reset(record, task_id, goal, exploring=False)
        actions = jax.random.randint(action_key, (record.horizon,), 0, record.num_actions)
        _, after = jax.lax.scan(functools.partial(city.step, record), state, actions)
        alive = jnp.cumprod(1.0 - jnp.concatenate([jnp.zeros(1), after.terminated[:-1]]))
        return jnp.sum(alive), jnp.sum(alive * after.reward)

    drawn = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), count))
    for values, truth in zip(map(np.asarray, drawn), city_oracle.random_policy(record)):
        error = values.std() / np.sqrt(count)
        assert abs(values.mean() - truth) < 5 * error < 0.05 * abs(truth)


@pytest.mark.parametrize("ids", [[0, 1], [0, 24], [0, 11, 22, 33], [66, 77, 88, 99, 110]])
def test_the_shortest_exploration_is_that_of_a_search_step_by_step(ids):
    record, towns = city.make("distraction"), {number: buses(number, True) for number in ids}

    @functools.cache
    def fewest(tasks, place, left):
        if len({number % 24 for number in tasks}) == 1:
            return 0.0
        if left == 0:
            return np.inf
        best = np.inf
        for action in range(6):
            parts = {}
            for number in tasks:
                parts.setdefault(moved(place, action, towns[number]), []).append(number)
            ahead = [len(part) * fewest(tuple(part), after, left - 1) for after, part in parts.items()]
            best = min(best, 1.0 + sum(ahead) / len(tasks))
        return best

    exploration = city_oracle.shortest_exploration(record, ids=np.array(ids))
    assert exploration.steps == pytest.approx(fewest(tuple(ids), city.START, 12))
    assert exploration.concluded[ids].tolist() == [number % 24 for number in ids]


@pytest.mark.parametrize(("task", "steps"), [("vanilla", 10.0), ("map", 4.0)])
def test_of_all_tasks_the_shortest_exploration_asks_three_helpful_buses_or_the_map(task, steps):
    exploration = city_oracle.shortest_exploration(city.make(task))
    assert exploration.steps == pytest.approx(steps) and exploration.concluded.tolist() == list(range(24))


def test_of_the_tasks_of_training_useless_buses_tell_where_helpful_ones_lead():
    record = city.make("distraction")
    exploration = city_oracle.shortest_exploration(record, ids=record.train_ids)
    right = exploration.concluded == np.arange(576) % 24
    # Shorter than the ten steps of three helpful buses, and right about half of the tasks that are not of training.
    assert 8.0 < exploration.steps < 9.0 and right[record.train_ids].all()
    assert 0.3 < right[record.test_ids].mean() < 0.6 and 0.0 < np.mean(exploration.concluded == -1) < 0.2


def test_rides_and_the_map_are_what_tells_tasks_apart():
    assert city_oracle.informative_actions(city.make("vanilla")).sum(axis=(0, 1)).tolist() == [0] * 5 + [8] + [0] * 3
    informative = city_oracle.informative_actions(city.make("combination"))
    # On the map every action but a step away shows it again.
    assert informative.sum(axis=(0, 1)).tolist() == [1] * 5 + [17] + [1] * 3
    assert informative[6, 3, 2] and informative[4, 5, city.RIDE] and not informative[7, 3, 0]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="goal=4 must lie between 0 and 3"):
        city_oracle.bayes_return(city.make(), 4)
    for ids in ([24], [-1], []):
        with pytest.raises(InputError, match="must name at least one task between 0 and 23"):
            city_oracle.bayes_return(city.make("vanilla"), 0, ids=np.array(ids, int))
        with pytest.raises(InputError, match="must name at least one task between 0 and 23"):
            city_oracle.shortest_exploration(city.make("vanilla"), ids=np.array(ids, int))
