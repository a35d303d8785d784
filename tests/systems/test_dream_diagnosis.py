import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import city
from jaxhybrid.systems.dream_diagnosis import action_entropy, informative_steps
from jaxhybrid.trials import Episode


def episodes(actions, lengths, obs=(4, 5, 1)):
    actions = jnp.asarray(actions)
    mask = (jnp.arange(actions.shape[1])[None] < jnp.asarray(lengths)[:, None]).astype(jnp.float32)
    places = jnp.broadcast_to(jnp.asarray(obs), (len(lengths), actions.shape[1] + 1, len(obs)))
    return Episode(places, actions, mask, mask, mask)


def test_rides_from_a_stop_say_something_and_walks_do_not():
    town = city.make("vanilla")
    actions = [[city.RIDE, 0, city.RIDE, city.RIDE]]
    assert informative_steps(town, episodes(actions, [3])).tolist() == [2.0]
    # Where no bus stands there is none to ride.
    assert informative_steps(town, episodes(actions, [3], obs=(4, 4, 0))).tolist() == [0.0]


def test_entropy_is_that_of_the_actions_of_each_step():
    town = city.make()
    same = episodes([[1, 2, 3], [1, 2, 5]], [2, 2])
    assert action_entropy(town, same) == pytest.approx(0.0, abs=1e-6)
    # First step: two actions, half each; second: one episode is left.
    mixed = episodes([[1, 2, 3], [0, 7, 7]], [2, 1])
    assert action_entropy(town, mixed) == pytest.approx(2 / 3 * np.log(2), rel=1e-5)
