import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import trials
from jaxhybrid.errors import InputError

T = 3
KEY = jax.random.key(0)


def trial(number, length):
    """A trial that says its number everywhere; its execution episode has ``length`` steps, t paying 10 number + t."""
    steps = jnp.arange(T)
    mask = (steps < length).astype(jnp.float32)
    execution = trials.Episode(
        obs=jnp.stack([jnp.arange(T + 1), jnp.full(T + 1, number)], axis=1),
        action=steps % 2,
        reward=mask * (10.0 * number + steps),
        discount=jnp.where(steps < length - 1, 1.0, 0.0),
        mask=mask,
    )
    return trials.Trial(
        jnp.asarray(500 + number), jnp.array([number, 8]), execution._replace(mask=jnp.ones(T)), execution
    )


def stacked(numbers, lengths):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[trial(n, l) for n, l in zip(numbers, lengths)])


add = jax.jit(trials.add)


def filled(numbers, lengths, capacity=4):
    store = trials.empty(trial(0, 1), capacity)
    for at in range(0, len(numbers), 2):
        store = add(store, stacked(numbers[at : at + 2], lengths[at : at + 2]))
    return store


def test_what_was_stored_comes_back():
    numbers, lengths = [1, 2, 3, 4], [1, 2, 3, 2]
    store = filled(numbers, lengths)
    drawn = trials.sample_trials(store, KEY, 32, window=99)
    for i, number in enumerate(np.asarray(drawn.task_id) - 500):
        expected = trial(int(number), lengths[int(number) - 1])
        jax.tree.map(lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), drawn, expected)
    assert set(np.asarray(drawn.task_id).tolist()) == {501, 502, 503, 504}
    assert drawn.exploration.obs.dtype == jnp.int32 and drawn.execution.mask.dtype == jnp.float32


def test_the_newest_stay_and_a_window_forgets_the_others():
    store = filled([1, 2, 3, 4, 5, 6], [1] * 6)
    drawn = functools.partial(trials.sample_trials, store, KEY, 64)
    assert set(np.asarray(drawn(window=99).task_id).tolist()) == {503, 504, 505, 506}
    assert set(np.asarray(drawn(window=2).task_id).tolist()) == {505, 506}
    # More than fit at once: the last ones.
    store = trials.add(trials.empty(trial(0, 1), 2), stacked([7, 8, 9], [1, 1, 1]))
    assert set(np.asarray(trials.sample_trials(store, KEY, 64, window=9).task_id).tolist()) == {508, 509}


def test_steps_are_drawn_alike_and_from_the_newest():
    # In a ring of four, trial 1 is gone; 3 has no step.
    store = filled([1, 2, 3, 4, 5, 6], [3, 2, 0, 3, 1, 2])
    ends = trials.step_ends(store)
    assert ends.tolist() == [2, 3, 6, 6]
    draw = jax.jit(functools.partial(trials.sample_steps, count=3000), static_argnames="window")

    def pairs(window):
        drawn, place = draw(store, ends, KEY, window=window)
        return np.asarray(drawn.task_id) - 500, np.asarray(place)

    numbers, places = pairs(99)
    counts = {(n, t): np.mean((numbers == n) & (places == t)) for n, t in set(zip(numbers.tolist(), places.tolist()))}
    assert counts.keys() == {(6, 0), (6, 1), (5, 0), (4, 0), (4, 1), (4, 2)}
    se = np.sqrt(1 / 6 * 5 / 6 / 3000)
    assert all(abs(share - 1 / 6) < 5 * se for share in counts.values())
    # Four steps back: all of 6 and 5, and the last one of 4.
    assert set(zip(*map(np.ndarray.tolist, pairs(4)))) == {(6, 0), (6, 1), (5, 0), (4, 2)}


def test_one_step_of_an_episode():
    step = trials.one_step(trial(2, 3).execution, jnp.asarray(1))
    assert step.obs.tolist() == [[1, 2], [2, 2]]
    assert (step.action.tolist(), step.reward.tolist(), step.discount.tolist()) == ([1], [21.0], [1.0])


def test_capacity_is_checked():
    with pytest.raises(InputError, match="capacity=0"):
        trials.empty(trial(0, 1), 0)
