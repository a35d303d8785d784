"""Planning in the city with its true rules, where the best values of every depth are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import city, city_oracle
from jaxhybrid.errors import InputError
from jaxhybrid.planning.context import TaskModel, planned_values

TASK, GOAL = 123, 1


def rules():
    """The distraction task on states ``(x, y)`` as floats."""
    goal = jnp.asarray(city.GOALS[GOAL])

    def after(x, action):
        return city.move(jnp.round(x).astype(jnp.int32), action, TASK)

    def arrives(x, action):
        return jnp.all(after(x, action) == goal)

    return TaskModel(
        dynamics_fn=lambda x, a: after(x, a).astype(jnp.float32),
        reward_fn=lambda x, a: jnp.where(arrives(x, a), 1.0, -0.1),
        discount_fn=lambda x, a: jnp.where(arrives(x, a), 0.0, 1.0),
    )


@functools.cache
def steps():
    return city_oracle.steps_to_goals(city.make())[TASK, GOAL]


@pytest.mark.parametrize(("depth", "average"), [(0, False), (2, False), (2, True)])
def test_who_values_states_rightly_gains_nothing_by_planning(depth, average):
    model = rules()
    table = jnp.asarray(steps())

    def q_fn(x):
        def value(action):
            place = jnp.round(model.dynamics_fn(x, action)).astype(jnp.int32)
            return 1.0 - 0.1 * table[place[0], place[1]]

        return jax.vmap(value)(jnp.arange(9))

    plan = jax.jit(lambda x: planned_values(x, q_fn=q_fn, model=model, depth=depth, average=average))
    for place in jnp.array([[4, 4], [8, 6], [5, 5]]):
        ahead = jax.vmap(city.move, in_axes=(None, 0, None))(place, jnp.arange(9), TASK)
        expected = 1.0 - 0.1 * steps()[tuple(np.asarray(ahead).T)]
        np.testing.assert_allclose(plan(place.astype(jnp.float32)), expected, atol=1e-5)


def test_who_values_nothing_sees_as_far_as_it_plans():
    plan = jax.jit(lambda x: planned_values(x, q_fn=lambda x: jnp.zeros(9), model=rules(), depth=2))
    # Two steps from (8, 8), up and up; "up" is worth -0.1 + 1 and every other action -0.2.
    assert plan(jnp.array([8.0, 6.0])).tolist() == pytest.approx([-0.2, 0.9, *[-0.2] * 7])


def test_planning_without_a_model_is_refused():
    def q_fn(x):
        return x[:1] * jnp.arange(9.0)

    with pytest.raises(InputError, match="depth=2 plans on a task without a model"):
        planned_values(jnp.ones(2), q_fn=q_fn, model=None, depth=2)
    assert planned_values(jnp.ones(2), q_fn=q_fn, model=None, depth=0).tolist() == list(range(9))
