import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.errors import InputError
from jaxhybrid.losses.control_variate import mscv_loss, qprop_loss, svg_loss
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.ops.returns import discounted_returns
from jaxhybrid.types import Segment
from tests.estimators.lqr_case import GAMMA, NOISE, case, exact_value, finite_horizon_return
from tests.oracles import check_monte_carlo_mean, finite_difference, linear_policy

# Episodes of T steps that a time limit ends; roll-outs of k, which reach past it at the last step.
T, K, DRAWS = 3, 2, 80_000
WEIGHTS = GAMMA ** jnp.arange(T)[:, None, None]
policy_fn = linear_policy(NOISE)


def reward_of(obs, action):
    problem, _ = case()
    return -0.5 * (obs @ problem.Q @ obs + action @ problem.R @ action)


def wrong_step(obs, action, key, action_gain=0.4, shift=0.0):
    """Half the motion, another push, and rewards that are too large and miss a term."""
    problem, _ = case()
    next_obs = 0.5 * problem.A @ obs + action_gain * problem.B @ action + shift
    return next_obs, 1.3 * reward_of(obs, action) + action[0], jnp.ones(())


def true_step(obs, action, key):
    problem, _ = case()
    return problem.A @ obs + problem.B @ action, reward_of(obs, action), jnp.ones(())


def wrong_value(obs):
    return -0.4 * jnp.sum(obs**2) + obs[0] - 1.0


def record(key, *, process_noise=1.0):
    """One episode in the real system: its segments ``[T, ...]``, the states that followed and its rewards."""
    problem, gain = case()
    start_key, noise_key, process_key = jax.random.split(key, 3)
    start = problem.start_mean + problem.start_scale @ jax.random.normal(start_key, (2,))
    noise = jax.random.normal(noise_key, (T, 1))
    process = process_noise * jax.random.normal(process_key, (T, 2)) @ problem.process_scale

    def advance(obs, step):
        eps, w = step
        action = policy_fn(gain, obs).reparameterise(eps)
        next_obs, reward, _ = true_step(obs, action, None)
        return next_obs + w, (obs, action, reward, next_obs + w)

    _, (obs, action, reward, next_obs) = jax.lax.scan(advance, start, (noise, process))
    rows = jnp.arange(T)[:, None] + jnp.arange(K)[None]
    inside = (rows < T).astype(noise.dtype)
    # Past the end the record holds garbage, which must not count.
    padded = jnp.where(inside[..., None] > 0, noise[jnp.minimum(rows, T - 1)], 7.0)
    returns = discounted_returns(reward, jnp.ones(T), gamma=GAMMA)
    return Segment(obs, action, padded, returns, inside), next_obs, reward


def slopes(loss, segments, keys):
    """Directions of ascent of each step ``[T, A, D]``, weighted by ``gamma^t``, with the aux."""
    _, gain = case()
    grads, aux = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0, 0))(gain, segments, keys)
    return -WEIGHTS * grads, aux


MODEL = {"policy_fn": policy_fn, "step_fn": wrong_step, "value_fn": wrong_value, "horizon": K, "gamma": GAMMA}


def undetached_loss(gain, segment, key):
    """The roll-out differentiated in the parameters of every step: what `svg_loss` must not do."""
    s, value = segment.obs, 0.0
    for j in range(K):
        s, reward, _ = wrong_step(s, policy_fn(gain, s).reparameterise(segment.noise[j]), key)
        value += GAMMA**j * reward
    return -value - GAMMA**K * wrong_value(s), {}


def one_draw(key):
    """Every variant on the same episode, by name."""
    record_key, other_key, loss_key, fresh_key = jax.random.split(key, 4)
    segments, next_obs, reward = record(record_key)
    other, _, _ = record(other_key)
    keys, fresh_keys = jax.random.split(loss_key, T), jax.random.split(fresh_key, T)
    out = {}

    def add(name, loss, segs=segments, **knobs):
        out[name] = slopes(partial(loss, **(MODEL | knobs)), segs, keys)

    add("mscv", mscv_loss)
    add("trpo", mscv_loss, eta=0.0)
    add("one step", mscv_loss, horizon=1)
    add("eta below 1", mscv_loss, eta=0.8)
    add("fresh paths", mscv_loss, fresh_paths=2)
    add("cut", mscv_loss, tail="cut")
    add("svg", svg_loss)
    add("other svg", svg_loss, step_fn=partial(wrong_step, action_gain=-0.6))
    out["undetached"] = slopes(undetached_loss, segments, keys)
    # Returns of two steps and a wrong value in place of the return.
    short = [reward[t] + GAMMA * (reward[t + 1] + GAMMA * wrong_value(next_obs[t + 1])) for t in range(T - 1)]
    ends = jnp.stack([*short, reward[-1] + GAMMA * wrong_value(next_obs[-1])])
    add("bootstrapped", mscv_loss, segments._replace(empirical_return=ends))
    # G1 with a roll-out of fresh noise: of the later actions only, or of the segment's own action as well.
    normal = jax.vmap(lambda k: jax.random.normal(k, (K, 1)))(fresh_keys)
    _, gain = case()
    redrawn = jax.vmap(lambda s, n: policy_fn(gain, s).reparameterise(n[0]))(segments.obs, normal)
    for name, action in (("later noise", segments.action), ("all noise", redrawn)):
        fresh = segments._replace(noise=normal, mask=jnp.ones((T, K)), action=action)
        aux = slopes(partial(mscv_loss, **MODEL), fresh, keys)[1]
        embedded = aux["embedded_advantage"] + jax.vmap(wrong_value)(segments.obs)
        unexplained = segments._replace(empirical_return=segments.empirical_return - embedded)
        flat = slopes(partial(mscv_loss, **(MODEL | {"value_fn": lambda s: 0.0 * s[0], "eta": 0.0})), unexplained, keys)
        out[name] = (flat[0] + out["svg"][0], {})

    def with_values(name, segs, extra, bound):
        _, gain = case()

        def loss(g, s, k, x):
            return mscv_loss(g, s, k, **(MODEL | bound(s, x)))

        grads, _ = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0, 0, 0))(gain, segs, keys, extra)
        out[name] = (-WEIGHTS * grads, {})

    def inferred(segment, after):
        shift = after - wrong_step(segment.obs, segment.action, None)[0]
        return {"step_fn": partial(wrong_step, shift=shift)}

    with_values("inferred", segments, next_obs, inferred)
    for name, fitted in (("own value", segments.empirical_return), ("past value", other.empirical_return)):
        with_values(name, segments, fitted, lambda s, v: {"value_fn": lambda obs: v + 0.0 * obs[0]})

    add("trpo, good baseline", mscv_loss, eta=0.0, value_fn=exact_value)
    critic = {"policy_fn": policy_fn, "value_fn": exact_value, "advantage_scale": 3.0}
    critic["q_fn"] = lambda s, a: 0.7 * lqr.q_value(case()[0], case()[1], s, a, NOISE) + s[1] * a[0]
    for reading in ("unbiased", "released"):
        grads, aux = slopes(partial(qprop_loss, reading=reading, **critic), segments, keys)
        out[f"qprop {reading}"] = (3.0 * grads, aux)
    return out


@functools.cache
def draws():
    out = jax.jit(jax.vmap(one_draw))(jax.random.split(jax.random.key(1), DRAWS))
    return {name: grads for name, (grads, _) in out.items()}, {name: aux for name, (_, aux) in out.items()}


@functools.cache
def truth():
    return jax.grad(finite_horizon_return)(case()[1])


def check(grads, visible_bias=0.05):
    check_monte_carlo_mean(grads.sum(axis=1), truth(), visible_bias=visible_bias)


# With the return of another episode as value the baseline is noise, and Q-Prop explains that of one action alone.
NOISY = dict.fromkeys(
    ["past value", "U4, a value fitted to the segment", "qprop unbiased", "U6, the released Q-Prop"], 0.08
)
UNBIASED = ["mscv", "one step", "eta below 1", "fresh paths", "cut", "later noise", "past value", "qprop unbiased"]


@pytest.mark.float64
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_with_a_wrong_model(name):
    check(draws()[0][name], NOISY.get(name, 0.05))


@pytest.mark.float64
def test_even_a_wrong_model_takes_variance_away():
    variance = {name: grads.sum(axis=1).var(axis=0).sum() for name, grads in draws()[0].items()}
    assert variance["fresh paths"] < variance["mscv"] < variance["one step"] < 0.5 * variance["trpo"]
    assert variance["mscv"] < variance["later noise"]
    assert variance["qprop unbiased"] < variance["trpo, good baseline"]


def planted():
    """Estimates that break one condition each, by its name."""
    by_name, _ = draws()
    mscv, svg = by_name["mscv"], by_name["svg"]
    last = (jnp.arange(T) + K <= T)[None, :, None, None]
    return {
        "U1, a bootstrapped return": by_name["bootstrapped"],
        "U2, two models": mscv - svg + by_name["other svg"],
        "U3, inferred dynamics noise": by_name["inferred"],
        "U4, a value fitted to the segment": by_name["own value"],
        "U6, one term standardised": mscv + (3.0 - 1.0) * svg,
        "U6, the released Q-Prop": by_name["qprop released"],
        "U7, the tail in one term": mscv - jnp.where(last, 0.0, svg),
        "U8, later parameters not held": mscv - svg + by_name["undetached"],
        "U9, a fresh action in G1": by_name["all noise"],
        "no correction": svg,
        "no slope": mscv - svg,
    }


PLANTED = [
    "U1, a bootstrapped return",
    "U2, two models",
    "U3, inferred dynamics noise",
    "U4, a value fitted to the segment",
    "U6, one term standardised",
    "U6, the released Q-Prop",
    "U7, the tail in one term",
    "U8, later parameters not held",
    "U9, a fresh action in G1",
    "no correction",
    "no slope",
]


@pytest.mark.float64
@pytest.mark.parametrize("name", PLANTED)
def test_a_broken_condition_is_noticed(name):
    with pytest.raises(AssertionError, match="bias of"):
        check(planted()[name], NOISY.get(name, 0.05))


@pytest.mark.float64
def test_with_the_true_model_the_score_term_vanishes_sample_by_sample():
    """Without process noise, with the exact value and returns of k steps, nothing is left to explain."""
    functions = {"policy_fn": policy_fn, "step_fn": true_step, "value_fn": exact_value, "horizon": K, "gamma": GAMMA}

    @jax.jit
    @jax.vmap
    def both(key):
        segments, next_obs, reward = record(key, process_noise=0.0)
        returns = [reward[t] + GAMMA * (reward[t + 1] + GAMMA * exact_value(next_obs[t + 1])) for t in range(T - 1)]
        segments = segments._replace(empirical_return=jnp.stack([*returns, jnp.zeros(())]))
        keys = jax.random.split(key, T)
        grads, aux = slopes(partial(mscv_loss, **functions), segments, keys)
        return (grads, aux["advantage"]), (slopes(partial(svg_loss, **functions), segments, keys)[0], aux)

    # The last step has no return of k steps.
    (grads, advantage), (slope, aux) = both(jax.random.split(jax.random.key(3), 50))
    np.testing.assert_allclose(aux["embedded_advantage"][:, :-1], advantage[:, :-1], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(grads[:, :-1], slope[:, :-1], rtol=1e-10, atol=1e-12)
    assert not np.allclose(grads[:, -1], slope[:, -1])


# A task of two decisions, a_t ~ N(theta, 1), whose first action decides whether there is a second:
# J = E[a_0] + gamma P(a_0 <= 0) E[a_1] = theta + gamma Phi(-theta) theta. The model believes that nothing ends and that
# the square of an action pays too, so that the spread of the later noise matters.
THETA = 0.3
SHORT = {
    "policy_fn": lambda theta, s: Gaussian(theta[None], jnp.zeros(1)),
    "step_fn": lambda s, a, key: (s, a[0] + 0.5 * a[0] ** 2, jnp.ones(())),
    "value_fn": lambda s: -3.0 * s[0],
    "horizon": 2,
    "gamma": GAMMA,
}


@functools.cache
def short_draws(tail):
    def one(key):
        noise_key, loss_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (2, 1))
        action = THETA + noise
        goes_on = (action[0, 0] <= 0).astype(noise.dtype)
        first = Segment(
            jnp.ones(1), action[0], noise, action[0, 0] + GAMMA * goes_on * action[1, 0], jnp.stack([1.0, goes_on])
        )
        mask = jnp.stack([goes_on, 0.0])
        second = Segment(jnp.ones(1), action[1], jnp.stack([noise[1], jnp.full(1, 7.0)]), action[1, 0], mask)
        segments = jax.tree.map(lambda *x: jnp.stack(x), first, second)
        loss = jax.grad(partial(mscv_loss, tail=tail, **SHORT), has_aux=True)
        grads, _ = jax.vmap(loss, in_axes=(None, 0, 0))(jnp.asarray(THETA), segments, jax.random.split(loss_key, 2))
        return -grads * jnp.array([1.0, GAMMA]), goes_on

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 100_000))


def short_truth():
    return jax.grad(lambda theta: theta + GAMMA * jax.scipy.stats.norm.cdf(-theta) * theta)(THETA)


@pytest.mark.float64
def test_every_step_of_an_episode_that_an_action_ends_counts():
    grads, goes_on = short_draws("fresh")
    check_monte_carlo_mean(grads.sum(axis=1), short_truth())
    # U7: steps 0 .. T - k only.
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(grads[:, 0] * goes_on, short_truth())


@pytest.mark.float64
def test_a_horizon_cut_where_an_action_ended_the_episode_is_biased():
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(short_draws("cut")[0].sum(axis=1), short_truth())


@pytest.mark.float64
def test_a_coefficient_chosen_by_the_sign_of_the_segment_is_biased():
    """U5, and the past choice beside it: return a^2, of which the model knows 2 a; the truth is d E[a^2] = 2 theta."""
    step_fn, theta = (lambda s, a, key: (s, 2.0 * a[0], jnp.zeros(()))), 1.0
    functions = SHORT | {"step_fn": step_fn, "value_fn": lambda s: 2.0 * s[0], "horizon": 1}

    def one(key):
        noise = jax.random.normal(key, (1, 1))
        segment = Segment(jnp.ones(1), theta + noise[0], noise, (theta + noise[0, 0]) ** 2, jnp.ones(1))
        slope = jax.grad(mscv_loss, has_aux=True)
        (with_it, aux), (without, _) = (
            slope(jnp.asarray(theta), segment, key, eta=eta, **functions) for eta in (1.0, 0.0)
        )
        return -with_it, -without, aux["advantage"] * aux["embedded_advantage"] > 0

    with_it, without, agree = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(4), 200_000))
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(jnp.where(agree, with_it, without), 2.0 * theta)
    check_monte_carlo_mean(jnp.where(jnp.roll(agree, 1), with_it, without), 2.0 * theta)


def one_segment(**fields):
    segment = jax.tree.map(lambda x: x[0], record(jax.random.key(5))[0])
    return segment._replace(**fields)


@pytest.mark.float64
def test_away_from_the_behaviour_the_slope_is_that_of_the_value():
    gain = case()[1]
    loss = partial(mscv_loss, behaviour_params=gain, **MODEL)
    segment, at = one_segment(), gain + 0.1

    def value(g):
        return loss(g, segment, jax.random.key(0))[0]

    slope = jax.jit(jax.grad(value))
    np.testing.assert_allclose(slope(at), finite_difference(value, at), rtol=1e-7)
    same = jax.jit(jax.grad(lambda g: mscv_loss(g, segment, jax.random.key(0), **MODEL)[0]))(gain)
    np.testing.assert_allclose(slope(gain), same, rtol=1e-12)


@pytest.mark.float64
def test_no_roll_out_is_the_score_of_the_advantage():
    segment, gain = one_segment(), case()[1]
    knobs = MODEL | {"horizon": 0}
    grads, aux = jax.grad(partial(mscv_loss, **knobs), has_aux=True)(gain, segment, jax.random.key(0))
    score = jnp.outer(segment.action - gain @ segment.obs, segment.obs) / NOISE**2
    np.testing.assert_allclose(-grads, (segment.empirical_return - wrong_value(segment.obs)) * score, rtol=1e-10)
    assert aux["embedded_advantage"] == 0


CRITIC = {"policy_fn": policy_fn, "q_fn": lambda s, a: s[0] * a[0] ** 2, "value_fn": wrong_value}


@pytest.mark.parametrize(
    "loss",
    [
        partial(mscv_loss, **MODEL),
        partial(mscv_loss, tail="cut", **MODEL),
        partial(svg_loss, **MODEL),
        partial(svg_loss, fresh_paths=2, **MODEL),
        partial(qprop_loss, **CRITIC),
        partial(qprop_loss, reading="released", **CRITIC),
    ],
)
def test_a_step_past_the_end_counts_nothing(loss):
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for garbage in (1.0, 1e30, np.inf, np.nan):
        full = jax.tree.map(partial(jnp.full_like, fill_value=garbage), one_segment())
        gone = full._replace(mask=jnp.zeros(K))
        (value, _), grads = run(case()[1], gone, jax.random.key(0))
        assert value == 0 and not np.any(grads)


@pytest.mark.parametrize("loss", [mscv_loss, svg_loss])
@pytest.mark.parametrize(
    ("knobs", "message"), [({"horizon": 3}, "horizon=3 is longer"), ({"tail": "fesh"}, "did you mean 'fresh'")]
)
def test_bad_knobs_are_refused(loss, knobs, message):
    with pytest.raises(InputError, match=message):
        loss(case()[1], one_segment(), jax.random.key(0), **(MODEL | knobs))


def test_an_unknown_reading_is_refused():
    functions = {"policy_fn": policy_fn, "q_fn": lambda s, a: a[0], "value_fn": wrong_value}
    with pytest.raises(InputError, match="reading='paper' is unknown"):
        qprop_loss(case()[1], one_segment(), jax.random.key(0), reading="paper", **functions)


def test_a_batch_axis_is_refused():
    with pytest.raises(AssertionError):
        mscv_loss(case()[1], record(jax.random.key(0))[0], jax.random.key(0), **MODEL)
