from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.context_model import ContextStep, context_model_loss, mixed
from jaxhybrid.types import Transition

KEY = jax.random.key(0)
PARAMS = {"encoder": jnp.array([[0.5, -0.2], [0.1, 0.4]]), "drift": jnp.array([0.3, -0.1]), "head": jnp.array(0.7)}
EXAMPLE = ContextStep(
    step=Transition(jnp.array([1, 2]), jnp.array(3), jnp.array(0.4), jnp.array(1.0), jnp.array([2, 2])),
    goal=jnp.array([8, 0]),
    code=jnp.array([0.2, -0.5]),
    other_obs=jnp.array([4, 4]),
    rewarded=jnp.array(1.0),
)


def encode_fn(params, obs):
    return params["encoder"] @ obs.astype(jnp.float32)


def dynamics_fn(params, x, action, code):
    return x + params["drift"] * action + code


def reward_fn(params, x, action, goal, code):
    return params["head"] * jnp.sum(x) + 0.1 * action - goal[0] + code[0]


MODEL = {"encode_fn": encode_fn, "dynamics_fn": dynamics_fn, "reward_fn": reward_fn, "discount_fn": reward_fn}


@pytest.mark.parametrize("rewarded", [1.0, 0.0])
def test_the_terms_are_those_of_the_equation(rewarded):
    example = EXAMPLE._replace(rewarded=jnp.array(rewarded))
    loss, aux = context_model_loss(PARAMS, example, KEY, gamma=0.9, disambiguation=0.5, sharpness=2.0, **MODEL)
    x, after, other = (np.array([[0.5, -0.2], [0.1, 0.4]]) @ np.array(s, float) for s in ([1, 2], [2, 2], [4, 4]))
    transition = np.mean((x + np.array([0.9, -0.3]) + np.array([0.2, -0.5]) - after) ** 2)
    apart = np.exp(-2.0 * np.linalg.norm(x - other))
    head = 0.7 * x.sum() + 0.3 - 8.0 + 0.2
    terms = {"transition": transition, "disambiguation": apart, "distance": np.linalg.norm(x - other)}
    terms |= {"reward": rewarded * (0.4 - head) ** 2, "discount": rewarded * (0.9 - head) ** 2}
    assert set(aux) == set(terms)
    for name, value in terms.items():
        assert aux[name] == pytest.approx(value, rel=1e-5)
    assert loss == pytest.approx(transition + 0.5 * apart + terms["reward"] + terms["discount"], rel=1e-5)


def test_a_representation_alone_needs_no_reward():
    loss, aux = context_model_loss(PARAMS, EXAMPLE, KEY, encode_fn=encode_fn, dynamics_fn=dynamics_fn)
    assert loss == pytest.approx(float(aux["transition"] + aux["disambiguation"])) and aux["reward"] == 0.0
    terminal = EXAMPLE._replace(step=EXAMPLE.step._replace(discount=jnp.array(0.0)))
    assert context_model_loss(PARAMS, terminal, KEY, encode_fn=encode_fn, dynamics_fn=dynamics_fn)[1]["transition"] == 0


def test_steps_of_exploration_teach_the_dynamics_and_no_reward():
    rows = jax.tree.map(lambda x: jnp.stack([x] * 4), EXAMPLE)
    other = rows._replace(step=rows.step._replace(reward=rows.step.reward + 100.0, next_obs=rows.step.next_obs + 1))
    batch = mixed(rows, other, share=0.5)
    assert batch.rewarded.tolist() == [1.0, 1.0, 0.0, 0.0]
    np.testing.assert_array_equal(batch.step.next_obs[:, 0], [2, 2, 3, 3])
    loss = batched(partial(context_model_loss, **MODEL))
    own, both = loss(PARAMS, rows, KEY)[1], loss(PARAMS, batch, KEY)[1]
    assert both["reward"] == pytest.approx(0.5 * float(own["reward"])) and both["transition"] != own["transition"]
    for share, kept in ((0.0, [1.0] * 4), (1.0, [0.0] * 4)):
        assert mixed(rows, other, share=share).rewarded.tolist() == kept


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="reward_fn and discount_fn belong together"):
        context_model_loss(PARAMS, EXAMPLE, KEY, encode_fn=encode_fn, dynamics_fn=dynamics_fn, reward_fn=reward_fn)
    with pytest.raises(InputError, match=r"share=1\.5 must lie"):
        mixed(EXAMPLE, EXAMPLE, share=1.5)
