import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxhybrid.envs import lqr
from jaxhybrid.errors import InputError
from jaxhybrid.losses import gradient_matching as matching
from jaxhybrid.planning import tree
from tests.oracles import finite_difference

KEY = jax.random.key(0)
WIDTH, ACTIONS = 3, 4
# Fixed arrays as NumPy, so that they are made outside any trace.
TURN, SHIFT, REWARD, DISCOUNT, SLOW = (
    np.random.default_rng(0).normal(size=shape)
    for shape in ((ACTIONS, WIDTH, WIDTH), (ACTIONS, WIDTH), (ACTIONS, WIDTH), (ACTIONS, WIDTH), (ACTIONS, WIDTH))
)
MODEL = {
    "dynamics_fn": lambda z, a: z + 0.5 * jnp.tanh(jnp.asarray(TURN)[a] @ z + jnp.asarray(SHIFT)[a]),
    "reward_fn": lambda z, a: jnp.cos(jnp.asarray(REWARD)[a] @ z),
    "discount_fn": lambda z, a: 0.9 * jax.nn.sigmoid(jnp.asarray(DISCOUNT)[a] @ z),
}


def slow_q(z):
    return jnp.sin(jnp.asarray(SLOW) @ z) + jnp.asarray(SLOW) @ jnp.square(z)


def plan_fn(z, action, *, depth, weights=None):
    return tree.plan_q(tree.action_values(z, action, q_fn=slow_q, depth=depth, **MODEL), weights)


def slope_at_depth(z, a, depth, jacobian_of="taken"):
    """Equation 5, by hand: values and slopes of one action down to one depth, every derivative written out."""
    if depth == 0:
        inner = SLOW @ z
        return (np.sin(inner) + SLOW @ z**2)[a], np.cos(inner)[a] * SLOW[a] + 2.0 * SLOW[a] * z
    reward, reward_slope = np.cos(REWARD[a] @ z), -np.sin(REWARD[a] @ z) * REWARD[a]
    sigmoid = 1.0 / (1.0 + np.exp(-DISCOUNT[a] @ z))
    discount, discount_slope = 0.9 * sigmoid, 0.9 * sigmoid * (1.0 - sigmoid) * DISCOUNT[a]
    next_z = z + 0.5 * np.tanh(TURN[a] @ z + SHIFT[a])
    below = [slope_at_depth(next_z, b, depth - 1, jacobian_of) for b in range(ACTIONS)]
    best = int(np.argmax([value for value, _ in below]))
    value, slope = below[best]
    mover = a if jacobian_of == "taken" else best
    jacobian = np.eye(WIDTH) + 0.5 * (1.0 - np.tanh(TURN[mover] @ z + SHIFT[mover]) ** 2)[:, None] * TURN[mover]
    return reward + discount * value, reward_slope + discount_slope * value + discount * slope @ jacobian


@pytest.mark.float64
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_planners_slope_is_the_papers_recursion(depth):
    slope = jax.jit(jax.grad(partial(plan_fn, depth=depth)))
    for z in np.random.default_rng(1).normal(size=(3, WIDTH)):
        for a in (0, 2):
            by_hand = [slope_at_depth(z, a, d)[1] for d in range(depth + 1)]
            np.testing.assert_allclose(slope(z, jnp.array(a)), np.mean(by_hand, axis=0), rtol=1e-6, atol=1e-9)
            printed = [slope_at_depth(z, a, d, jacobian_of="best")[1] for d in range(depth + 1)]
            best_is_taken = np.allclose(printed, by_hand)
            assert depth == 0 or best_is_taken or not np.allclose(slope(z, jnp.array(a)), np.mean(printed, axis=0))


def encode_fn(params, obs):
    return jnp.tanh(params["encoder"] @ obs)


def q_fn(params, z):
    return jnp.sin(params["critic"] @ z) + 0.2 * params["critic"] @ jnp.square(z)


def case():
    rng = np.random.default_rng(2)
    params = {"encoder": jnp.array(rng.normal(size=(WIDTH, 2))), "critic": jnp.array(rng.normal(size=(ACTIONS, WIDTH)))}
    return params, (jnp.array([0.3, -0.8]), jnp.array(1))


def loss(params, example, **knobs):
    bound = {"encode_fn": encode_fn, "q_fn": q_fn, "plan_fn": partial(plan_fn, depth=2)}
    return matching.gradient_matching_loss(params, example, KEY, **(bound | knobs))


def fixed_target_loss(params, example, *, distance):
    """The loss with the target slope computed outside the differentiation, once and for all."""
    start, _ = case()
    obs, a = example
    target = jax.grad(partial(plan_fn, depth=2))(encode_fn(start, obs), a)
    slope = jax.grad(lambda z: q_fn(params, z)[a])(encode_fn(params, obs))
    dot = jnp.sum(slope * target) / (jnp.linalg.norm(slope) * jnp.linalg.norm(target))
    return 1.0 - dot if distance == "cosine" else jnp.linalg.norm(slope - target)


@pytest.mark.float64
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_second_derivatives_are_finite_differences_of_the_fixed_target(distance):
    params, example = case()
    flat, unflatten = ravel_pytree(params)
    value, aux = loss(params, example, distance=distance)
    assert value == pytest.approx(float(fixed_target_loss(params, example, distance=distance)), rel=1e-9)
    assert aux["slope"] > 0 and aux["target"] > 0
    gradient = jax.grad(lambda x: loss(unflatten(x), example, distance=distance)[0])(flat)
    fd = finite_difference(lambda x: fixed_target_loss(unflatten(x), example, distance=distance), flat)
    np.testing.assert_allclose(gradient, fd, rtol=1e-6, atol=1e-9)
    assert np.any(unflatten(gradient)["encoder"] != 0) and np.any(unflatten(gradient)["critic"] != 0)
    # A target that moves with the encoder has another gradient: the comparison would have noticed.

    def moving(x):
        p = unflatten(x)
        z = encode_fn(p, example[0])
        target = jax.grad(partial(plan_fn, depth=2))(z, example[1])
        slope = jax.grad(lambda y: q_fn(p, y)[example[1]])(z)
        return matching.slope_distance(slope, target, distance=distance)

    assert not np.allclose(jax.grad(moving)(flat), fd, rtol=1e-2)


@pytest.mark.float64
def test_all_actions_are_the_mean_over_actions():
    params, (obs, _) = case()
    each = jax.jit(jax.vmap(lambda a: loss(params, (obs, a))[0]))(jnp.arange(ACTIONS))
    together = jax.jit(lambda a: loss(params, (obs, a), match_actions="all")[0])(jnp.array(0))
    assert together == pytest.approx(float(np.mean(each)), rel=1e-9)


@pytest.mark.float64
def test_matched_slopes_alone_find_the_values_of_a_tabular_problem():
    """Abstract states are distributions over six states, on which values are linear: the slope *is* the value table.

    Action 1 pays more than the others and moves alike, so it is best everywhere and the maximum is linear too. The
    critic never sees a reward, a value or a target value, only the slopes of a planner with the true model.
    """
    rng, gamma, states, actions = np.random.default_rng(3), 0.9, 6, 3
    moves = rng.dirichlet(np.ones(states), size=states)  # [S, S'], the same for all actions
    pays = rng.uniform(size=(states, 1)) + np.array([[-0.5, 0.0, -1.0]])  # [S, A]
    best_value = np.linalg.solve(np.eye(states) - gamma * moves, pays[:, 1])
    table = pays + gamma * (moves @ best_value)[:, None]
    model = {
        "dynamics_fn": lambda z, a: z @ jnp.asarray(moves),
        "reward_fn": lambda z, a: z @ jnp.asarray(pays)[:, a],
        "discount_fn": lambda z, a: jnp.asarray(gamma),
    }
    depth = 3
    deepest = jnp.zeros(depth + 1).at[depth].set(1.0)

    def slopes_matched(critic, slow):
        def plan(z, a):
            return tree.plan_q(tree.action_values(z, a, q_fn=lambda x: x @ slow, depth=depth, **model), deepest)

        def step(current, a):
            (distance, _), gradient = jax.value_and_grad(matching.gradient_matching_loss, has_aux=True)(
                current,
                (jnp.full(states, 1.0 / states), a),
                KEY,
                encode_fn=lambda _, obs: obs,
                q_fn=lambda p, z: z @ p,
                plan_fn=plan,
                distance="l2",
            )
            # The distance is the length of a linear function: this step reaches its zero.
            return current - distance * gradient / jnp.maximum(jnp.sum(jnp.square(gradient)), 1e-12), None

        return jax.lax.scan(step, critic, jnp.arange(actions))[0]

    start = jnp.array(rng.normal(size=(states, actions)))
    critic = jax.jit(lambda c: jax.lax.fori_loop(0, 80, lambda _, x: slopes_matched(x, x), c))(start)
    np.testing.assert_allclose(critic, table, atol=1e-4)
    assert np.abs(start - table).max() > 1.0


def test_distances_by_hand():
    x, y = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.array([[0.0, 3.0], [0.0, 4.0]])
    assert matching.slope_distance(x, y, distance="cosine") == pytest.approx(1 - 16 / 25)
    assert matching.slope_distance(x, y, distance="l2") == pytest.approx(np.sqrt(18))
    assert matching.slope_distance(x, 7.0 * x, distance="cosine") == pytest.approx(0.0, abs=1e-6)
    assert matching.slope_distance(x, -x, distance="cosine") == pytest.approx(2.0)
    for distance in ("cosine", "l2"):
        for other in (jnp.zeros((2, 2)), y):
            gradient = jax.grad(lambda s: matching.slope_distance(s, other, distance=distance))(jnp.zeros((2, 2)))  # noqa: B023
            assert np.isfinite(gradient).all()
    assert matching.slope_distance(jnp.zeros((2, 2)), y, distance="cosine") == 1.0


@functools.cache
def lqr_parts():
    problem, gain = lqr.double_integrator(gamma=0.9), jnp.array([[-0.3, -0.4]])

    def expand(obs, action, key):
        """One step of the true model, then the exact value of the policy that follows."""
        reward = -0.5 * (obs @ problem.Q @ obs + action @ problem.R @ action)
        next_obs = problem.A @ obs + problem.B @ action
        return reward + 0.9 * lqr.q_value(problem, gain, next_obs, gain @ next_obs)

    return partial(lqr.q_value, problem, gain), expand


@pytest.mark.float64
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_exact_critic_of_a_continuous_problem_is_at_no_distance(distance):
    exact_q, expand = lqr_parts()

    def distance_to(error, obs, action):
        # Twins, one of them tilted by an error that grows with the action.
        def q(params, s, a):
            return jnp.stack([exact_q(s, a), exact_q(s, a) + params * jnp.sum(jnp.sin(a))])

        return matching.critic_slope_loss(error, (obs, action), KEY, q_fn=q, plan_fn=expand, distance=distance)

    obs, action = jnp.array([1.0, -0.5]), jnp.array([0.3])
    exact, aux = distance_to(jnp.zeros(()), obs, action)
    assert abs(exact) < 1e-5
    np.testing.assert_allclose(aux["slope"], aux["target"], rtol=1e-9)
    target = jax.grad(exact_q, argnums=1)(obs, action)[0]
    tilt = -2.0 * target / jnp.cos(0.3)  # turns the slope of the second critic round: its distance is 2 or 2 |target|
    expected = {"cosine": 1.0, "l2": abs(target)}[distance]
    np.testing.assert_allclose(distance_to(tilt, obs, action)[0], expected, rtol=1e-5)


def test_depth_weights_by_hand():
    np.testing.assert_allclose(matching.discounted_depths(3, 0.5), [1.0, 0.5, 0.25, 0.125])
    np.testing.assert_array_equal(matching.discounted_depths(2, 1.0), np.ones(3))
    np.testing.assert_array_equal(matching.discounted_depths(2, 0.0), [1.0, 0.0, 0.0])
    errors = jnp.array([0.0, 0.1, 0.5, 0.2])
    np.testing.assert_allclose(matching.inverse_error_depths(errors, 0.1), [1.0, 0.5, 1 / 6, 1 / 3], rtol=1e-6)
    # The error of depth 3 is small again, but a tree goes through depth 2.
    np.testing.assert_array_equal(matching.accurate_depths(errors, 0.3), [1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(matching.accurate_depths(errors, -1.0), [1.0, 0.0, 0.0, 0.0])


def test_bad_input_is_refused():
    params, example = case()
    params = jax.tree.map(jnp.float32, params)
    with pytest.raises(InputError, match="'cosine'"):
        matching.slope_distance(jnp.ones(2), jnp.ones(2), distance="cosin")
    with pytest.raises(InputError, match="'taken'"):
        loss(params, example, match_actions="take")
    with pytest.raises(AssertionError):
        loss(params, (example[0], jnp.ones(2, int)))
    with pytest.raises(AssertionError):
        loss(params, (example[0], jnp.array(1.0)))
