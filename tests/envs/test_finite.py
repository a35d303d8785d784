"""Finite problems against sums over time, finite differences and whole enumerations of paths."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import finite
from jaxhybrid.errors import InputError
from tests.oracles import finite_difference

pytestmark = pytest.mark.float64

S, A = 3, 2


def probs_fn(table):
    """Softmax in two states; the last one is deterministic."""
    return jnp.where((jnp.arange(S) < S - 1)[:, None], jax.nn.softmax(table), jnp.array([1.0, 0.0])[None])


@pytest.fixture(name="case")
def _case():
    problem = finite.random_problem(jax.random.key(1), S, A, gamma=0.7)
    return problem, jax.random.normal(jax.random.key(2), (S, A))


def visited(problem, probs, steps=200):
    """``Pr(s_t = s, a_t = a)`` for t < steps, step by step."""
    states, found = np.asarray(problem.start), []
    for _ in range(steps):
        pairs = states[:, None] * np.asarray(probs)
        found.append(pairs)
        states = np.einsum("sa,sat->t", pairs, np.asarray(problem.transition))
    return np.stack(found)


def test_values_and_visits_are_sums_over_time(case):
    problem, table = case
    probs = probs_fn(table)
    pairs, discounts = visited(problem, probs), 0.7 ** np.arange(200)
    np.testing.assert_allclose(
        finite.expected_return(problem, probs), np.einsum("t,tsa,sa", discounts, pairs, problem.reward), rtol=1e-12
    )
    np.testing.assert_allclose(
        finite.occupancy(problem, probs), 0.3 * np.einsum("t,tsa->sa", discounts, pairs), rtol=1e-12
    )
    # The value of a pair is the return of a problem that starts with it.
    first = jnp.eye(S)[1]
    np.testing.assert_allclose(
        finite.q_values(problem, probs)[1] @ probs[1],
        finite.expected_return(problem._replace(start=first), probs),
        rtol=1e-12,
    )


def test_policy_gradient_by_differences_and_by_the_theorem(case):
    problem, table = case
    gradient = finite.policy_gradient(problem, probs_fn, table)
    numeric = finite_difference(lambda t: finite.expected_return(problem, probs_fn(t)), table)
    np.testing.assert_allclose(gradient, numeric, atol=1e-9)
    # With the true transitions as the model, the model-value gradient is the policy gradient.
    np.testing.assert_allclose(
        finite.model_value_gradient(problem, problem.transition, probs_fn, table), gradient, atol=1e-12
    )
    assert not np.any(gradient[S - 1])


def test_model_value_gradient_is_its_definition(case):
    problem, table = case
    model = finite.random_problem(jax.random.key(5), S, A, gamma=0.7).transition
    probs = probs_fn(table)
    q, delta = finite.q_values(problem._replace(transition=model), probs), finite.occupancy(problem, probs)
    expected = np.zeros((S, A))
    for s, a in itertools.product(range(S - 1), range(A)):
        score = np.eye(A)[a] - np.asarray(probs[s])
        expected[s] += delta[s, a] * q[s, a] * score / 0.3
    np.testing.assert_allclose(finite.model_value_gradient(problem, model, probs_fn, table), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, np.inf])
def test_score_norms_of_a_softmax(case, order):
    _, table = case
    probs = np.asarray(probs_fn(table))
    expected = np.zeros((S, A))
    for s, a in itertools.product(range(S - 1), range(A)):
        expected[s, a] = np.linalg.norm(np.eye(A)[a] - probs[s], order)
    np.testing.assert_allclose(finite.score_norms(probs_fn, table, order=order), expected, atol=1e-12)


def enumerated(problem, behaviour, target, norms, f, length):
    """Right-hand side of Lemma 4.1 but for the constant, path by path."""
    start, transition, gamma = (np.asarray(x) for x in (problem.start, problem.transition, problem.gamma))
    total = 0.0
    stack = [(s, start[s], 1.0, 0.0, 0) for s in range(len(start))]
    while stack:
        s, chance, ratio, scores, t = stack.pop()
        if chance == 0 or t == length:
            continue
        for a in range(behaviour.shape[1]):
            p = chance * behaviour[s, a]
            rho, score = ratio * target[s, a] / behaviour[s, a], scores + norms[s, a]
            total += p * gamma**t * rho * score * f[s, a]
            stack += [(n, p * transition[s, a, n], rho, score, t + 1) for n in range(len(start))]
    return total


def layered_problem(key):
    """Three layers of two states and an end: after three steps nothing counts, so paths can be enumerated."""
    transition = np.zeros((7, 2, 7))
    raw = np.asarray(finite.random_problem(key, 7, 2, gamma=0.8).transition)
    for layer in range(2):
        nxt = [2 * layer + 2, 2 * layer + 3, 6]
        for s in (2 * layer, 2 * layer + 1):
            transition[s][:, nxt] = raw[s][:, nxt] / raw[s][:, nxt].sum(1, keepdims=True)
    transition[4:, :, 6] = 1.0
    start = np.array([0.4, 0.6, 0, 0, 0, 0, 0])
    return finite.Problem(jnp.asarray(transition), jnp.zeros((7, 2)), jnp.asarray(start), jnp.asarray(0.8))


@pytest.mark.parametrize("seed", range(3))
def test_lemma_4_1_by_enumeration(seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    problem = layered_problem(keys[0])
    target, behaviour = (np.asarray(jax.nn.softmax(jax.random.normal(k, (7, 2)))) for k in keys[1:3])
    norms, f = (np.array(draw(keys[3], (7, 2))) for draw in (jax.random.uniform, jax.random.normal))
    norms[6] = 0.0
    f[6] = 0.0  # at the end, where the discounted distribution would go on for ever
    eta, total = finite.gradient_aware_distribution(problem, jnp.asarray(target), jnp.asarray(norms))
    assert jnp.sum(eta) == pytest.approx(1.0, abs=1e-12)
    left = float(jnp.sum(eta * f))
    right = 0.2**2 / float(total) * enumerated(problem, behaviour, target, norms, f, 3)
    assert left == pytest.approx(right, abs=1e-10)
    # A forgotten (1 - gamma) shows.
    assert left != pytest.approx(right / 0.2, rel=0.1)


def counter_example(gamma, switch, model_switch):
    """Three states: the first decides between two that swap with a small probability."""

    def transition(eps):
        t = np.zeros((3, 2, 3))
        t[0, 0, 1] = t[0, 1, 2] = 1.0
        t[1], t[2] = [0.0, 1 - eps, eps], [0.0, eps, 1 - eps]
        return jnp.asarray(t)

    reward = jnp.array([[0.0, 0.0], [1.0, 1.0], [-1.0, -1.0]])
    problem = finite.Problem(transition(switch), reward, jnp.array([1.0, 0.0, 0.0]), jnp.asarray(gamma))
    return problem, transition(model_switch)


def one_logit(theta):
    p = jax.nn.sigmoid(theta[0])
    return jnp.stack([jnp.stack([p, 1 - p]), jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])])


@pytest.mark.parametrize(
    ("gamma", "switch", "error", "printed"),
    [(0.9, 0.01, 0.5047, 0.3372), (0.99, 0.001, 5.86, 1.22), (0.999, 1e-4, 59.4, 3.9)],
)
def test_the_printed_bound_fails_and_the_corrected_one_holds(gamma, switch, error, printed):
    problem, model = counter_example(gamma, switch, 2 * switch)
    theta = jnp.zeros(1)
    probs, norms = one_logit(theta), finite.score_norms(one_logit, theta)
    truth = finite.policy_gradient(problem, one_logit, theta)
    left = float(jnp.linalg.norm(truth - finite.model_value_gradient(problem, model, one_logit, theta)))
    bound = partial(finite.gradient_error_bound, problem, probs, norms, model)
    assert left == pytest.approx(error, rel=5e-3)
    assert float(bound(power=2)) == pytest.approx(printed, rel=6e-3)
    assert float(bound(power=2)) < left < float(bound())


def test_corrected_bound_on_ten_thousand_random_problems():
    @jax.jit
    @jax.vmap
    def sides(key):
        problem_key, model_key, policy_key, gamma_key, mix_key = jax.random.split(key, 5)
        gamma = jax.random.uniform(gamma_key, minval=0.05, maxval=0.99)
        problem = finite.random_problem(problem_key, S, A, gamma=gamma, sharpness=3.0)
        other = finite.random_problem(model_key, S, A, gamma=gamma, sharpness=3.0).transition
        mix = 1e-3 + 0.999 * jax.random.uniform(mix_key) ** 4
        model = (1 - mix) * problem.transition + mix * other
        table = jax.random.normal(policy_key, (S, A))
        truth = finite.policy_gradient(problem, probs_fn, table)
        error = (truth - finite.model_value_gradient(problem, model, probs_fn, table)).ravel()

        def bound(order):
            norms = finite.score_norms(probs_fn, table, order=order)
            return finite.gradient_error_bound(problem, probs_fn(table), norms, model)

        orders = (1, 2, jnp.inf)
        return jnp.stack([jnp.linalg.norm(error, q) for q in orders]), jnp.stack([bound(q) for q in orders])

    error, bound = sides(jax.random.split(jax.random.key(0), 10_000))
    assert np.all(np.isfinite(error)) and np.all(bound > 0)
    assert np.all(error <= bound * (1 + 1e-9) + 1e-12)


def test_the_environment_steps_like_the_table():
    problem = finite.random_problem(jax.random.key(1), S, A, gamma=0.7)
    env = finite.make(problem, max_episode_steps=2)
    state = finite.FiniteState(jnp.asarray(2), jnp.asarray(0))
    step = jax.jit(jax.vmap(lambda k: env.step(state, jnp.array([1.0]), k)[1]))
    after = step(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(after.reward, np.full(20_000, problem.reward[2, 1]))
    frequency = np.bincount(np.asarray(after.obs[:, 0], int), minlength=S) / 20_000
    np.testing.assert_allclose(frequency, problem.transition[2, 1], atol=0.02)
    assert env.step(state._replace(step=jnp.asarray(1)), jnp.zeros(1), jax.random.key(0))[1].truncated
    with pytest.raises(InputError, match="max_episode_steps=0"):
        finite.make(problem, max_episode_steps=0)
