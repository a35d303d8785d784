import dataclasses
import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import episodes
from jaxhybrid.errors import InputError
from jaxhybrid.systems import mscv, mscv_fits, mscv_gradient, mscv_updates
from jaxhybrid.systems.mscv_config import checked
from jaxhybrid.types import HostEnv, Segment
from tests.systems import cases

SMOKE = mscv.presets["smoke"]
KEY = jax.random.key(0)
ENV = envs.make("lqr/double_integrator")


@functools.cache
def build(preset, **changes):
    config = dataclasses.replace(mscv.presets[preset], **changes)
    system = mscv.make(config, ENV)
    return system, jax.jit(system.init), jax.jit(system.step)


@functools.cache
def run(preset, num_steps, **changes):
    """States before and after each step, and the metrics of each."""
    _, init, step = build(preset, **changes)
    states, metrics = [init(KEY)], []
    for _ in range(num_steps):
        state, logged = step(states[-1], None)
        states.append(state)
        metrics.append(logged)
    return states, metrics


def identical(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_a_run_keeps_its_structure_learns_and_counts():
    states, metrics = run("smoke", 3)
    _, _, step = build("smoke")
    assert step._cache_size() == 1
    for before, after in itertools.pairwise(states):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
        for name in ("policy_params", "value_params", "value_target", "model", "seen"):
            assert not identical(getattr(before.learner, name), getattr(after.learner, name)), name
    assert [int(state.env_steps) for state in states] == [0, 64, 128, 192]
    # Episodes of 26 steps: 32 steps a batch leave 6, 12 and 18 of the next.
    assert [state.episode_steps.tolist() for state in states] == [[0, 0], [6, 6], [12, 12], [18, 18]]
    assert metrics[0].keys() == metrics[2].keys()
    assert all(np.isfinite(value) for value in metrics[2].values())
    # The first iteration has no control variate yet.
    assert [float(m["control/eta"]) for m in metrics] == [0.0, 1.0, 1.0]
    for logged in metrics:
        assert logged["policy/accepted"] == 1
        assert 0 < logged["policy/kl"] <= 0.01 + 2e-6


def test_chunks_bound_the_memory_of_the_gradient():
    """25,000 steps, five model steps each, networks of the paper's size: 19 MB, and 413 MB in one chunk."""
    config = dataclasses.replace(mscv.presets["paper"], steps_per_iteration=25_000, horizon=5, segment_chunk=1000)
    parts = mscv_updates.make_parts(config, ENV.spec)
    learner = jax.eval_shape(partial(mscv_updates.init_learner, parts), KEY)
    shapes = {"obs": (2,), "action": (1,), "noise": (5, 1), "empirical_return": (), "mask": (5,)}
    batch = Segment(**{name: jax.ShapeDtypeStruct((25_000, *shape), jnp.float32) for name, shape in shapes.items()})
    gradient = jax.jit(partial(mscv_gradient.policy_gradient, parts))
    needed = gradient.lower(learner, batch, learner.advice, KEY).compile().memory_analysis()
    assert needed.argument_size_in_bytes + needed.temp_size_in_bytes < 30 * 2**20


def test_memory_keeps_the_last_batches():
    states, _ = run("smoke", 3)
    parts = mscv_updates.make_parts(SMOKE, ENV.spec)
    record, size = parts.memory.contents(states[3].memory)
    assert size == SMOKE.memory == 2
    steps = {round(float(x), 4) for x in record.steps.reward[:, 0, 0]}
    earlier, _ = parts.memory.contents(states[2].memory)
    assert len(steps & {round(float(x), 4) for x in earlier.steps.reward[:, 0, 0]}) == 1


def test_windows_stay_inside_an_episode():
    states, _ = run("smoke", 3)
    parts = mscv_updates.make_parts(SMOKE, ENV.spec)
    drawn, mask, _ = mscv_fits.windows(parts, states[3].memory, KEY, count=500, length=3)
    assert mask.shape == (500, 3)
    assert (mask[:, 0] == 1).all() and (np.diff(mask, axis=1) <= 0).all()
    follows = np.all(np.asarray(drawn.steps.next_obs[:, :-1] == drawn.steps.obs[:, 1:]), axis=-1)
    np.testing.assert_array_equal(follows & (np.asarray(mask[:, :-1]) > 0), np.asarray(mask[:, 1:]) > 0)
    # Of 32 steps in a row one episode ends: two or three of 32 windows are cut short.
    assert 0.02 < 1 - mask[:, 1].mean() < 0.12


def test_noise_and_log_probabilities_are_those_of_the_policy_that_acted():
    states, _ = run("smoke", 3)
    parts = mscv_updates.make_parts(SMOKE, ENV.spec)
    record, _ = parts.memory.contents(states[1].memory)
    learner = states[0].learner
    distribution = jax.vmap(jax.vmap(partial(mscv_updates.policy_of(parts, learner.seen), learner.policy_params)))
    found = distribution(record.steps.obs[0])
    again = found.mean + jnp.exp(found.log_std) * record.noise[0]
    np.testing.assert_allclose(again, record.steps.action[0], rtol=1e-5, atol=1e-6)
    assert np.abs(np.mean(record.noise[0])) < 5 / np.sqrt(64)


def test_the_policy_step_knows_the_past_only():
    """U4: whatever is fitted in an iteration comes after its policy step."""
    states, _ = run("smoke", 3)
    # Other batches in memory are other data for the fits, which would show in the policy if they came first.
    shaken = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, states[2].memory)
    other = build("smoke")[2](states[2]._replace(memory=shaken), None)[0]
    assert not identical(other.learner.value_params, states[3].learner.value_params)
    assert not identical(other.learner.model.params, states[3].learner.model.params)
    assert identical(other.learner.policy_params, states[3].learner.policy_params)


def test_trpo_is_the_step_without_its_ingredient():
    without, with_it = run("smoke/trpo", 2)[0], run("smoke", 3)[0]
    assert without[2].learner.model is None
    # In its first iteration MSCV has no control variate yet; later the two part.
    for step, close in ((1, True), (2, False)):
        gaps = jax.tree.map(
            lambda x, y: np.abs(x - y).max(), without[step].learner.policy_params, with_it[step].learner.policy_params
        )
        assert (max(jax.tree.leaves(gaps)) < 1e-4) == close


# The gradient of a batch, with the model and value function of a short run: bad ones.


@functools.cache
def gradients():
    """Gradients of many batches of the same policy, by eta, and by the slope alone: ``[batches, P]`` each."""
    config = dataclasses.replace(
        SMOKE, return_lambda=1.0, time_limit_ends=True, steps_per_iteration=52, segment_chunk=52
    )
    parts = mscv_updates.make_parts(config, ENV.spec)
    slope_parts = mscv_updates.make_parts(dataclasses.replace(config, estimator="svg"), ENV.spec)
    tangent_parts = mscv_updates.make_parts(dataclasses.replace(config, estimator="qprop", horizon=1), ENV.spec)
    learner = run("smoke", 3)[0][3].learner
    reset, _ = episodes.auto_reset(ENV)
    policy_fn = partial(mscv_updates.policy_of(parts, learner.seen), learner.policy_params)

    def one(key):
        reset_key, collect_key, loss_key = jax.random.split(key, 3)
        workers = jax.vmap(reset)(jax.random.split(reset_key, 2))
        act = lambda obs, k: policy_fn(obs).sample(k)  # noqa: E731
        _, batch, _ = episodes.collect(ENV, workers, act, collect_key, num_steps=26)
        record, _ = mscv_updates.record_of(parts, learner, batch, jnp.zeros(2, jnp.int32))
        segments = mscv_updates.make_segments(parts, learner, record)

        def gradient(which, eta):
            advice = learner.advice._replace(eta=jnp.asarray(eta), scale=jnp.ones(()))
            loss = partial(mscv_gradient.surrogate, which, learner, segments, advice, loss_key)
            return jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.grad(loss)(learner.policy_params))])

        return gradient(parts, 0.0), gradient(parts, 1.0), gradient(tangent_parts, 1.0), gradient(slope_parts, 1.0)

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=200))(jax.random.split(KEY, 4000))


def deviation(draws, truth):
    """Largest deviation of a mean from the truth in standard errors, and 5 of them next to the truth."""
    error = draws.mean(axis=0) - truth
    se = draws.std(axis=0) / np.sqrt(len(draws))
    return np.max(np.abs(error) / np.maximum(se, 1e-12)), 5 * np.linalg.norm(se)


def test_the_control_variate_does_not_move_the_mean():
    score, *corrected, slope = (np.asarray(g, np.float64) for g in gradients())
    scale = np.linalg.norm(score.mean(axis=0))
    # Draw by draw they share the batch: the difference is what the control variate adds, and its mean is zero.
    for found in corrected:
        sigmas, visible = deviation(found - score, 0.0)
        assert sigmas < 5
        assert visible < 0.05 * scale
    # Without the correction there is a bias, which the same test sees.
    assert deviation(slope - score, 0.0)[0] > 20


def test_chunks_change_nothing():
    states, _ = run("smoke", 3)
    learner = states[3].learner
    parts = mscv_updates.make_parts(SMOKE, ENV.spec)
    record, _ = parts.memory.contents(states[3].memory)
    segments = mscv_updates.make_segments(parts, learner, jax.tree.map(lambda x: x[0], record))
    found = []
    for chunk in (64, 16):
        chunked = parts._replace(config=dataclasses.replace(SMOKE, segment_chunk=chunk))
        loss = partial(mscv_gradient.surrogate, chunked, learner, segments, learner.advice, KEY)
        found.append(jax.jit(jax.value_and_grad(loss))(learner.policy_params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *found)


@pytest.mark.slow
def test_memory_of_a_large_batch_is_bounded():
    """25,000 steps of the walker's size, five model steps: below 2 GB, and chunks are why."""
    spec = ENV.spec._replace(obs_dim=17, action_dim=6)

    def megabytes(chunk):
        config = dataclasses.replace(mscv.presets["paper-walker"], env="", horizon=5, segment_chunk=chunk, gamma=0.995)
        parts = mscv_updates.make_parts(config, spec)
        learner = jax.eval_shape(partial(mscv_updates.init_learner, parts), KEY)
        shapes = {"obs": (17,), "action": (6,), "noise": (5, 6), "empirical_return": (), "mask": (5,)}
        batch = mscv_updates.Segment(**{k: jax.ShapeDtypeStruct((25_000, *v), jnp.float32) for k, v in shapes.items()})

        def step(learner, batch, key):
            return mscv_gradient.policy_step(parts, learner, batch, learner.advice, key)

        return jax.jit(step).lower(learner, batch, KEY).compile().memory_analysis().temp_size_in_bytes / 1e6

    bounded, whole = megabytes(1000), megabytes(25_000)
    assert bounded < 2000
    assert whole > 2 * bounded


# What a batch advises.


def advice_of(advantage, embedded, **changes):
    config = dataclasses.replace(SMOKE, **changes)
    parts = mscv_updates.make_parts(config, ENV.spec)
    said, correlation = mscv_updates.advise(
        parts, mscv_updates.first_advice(config), jnp.asarray(advantage), jnp.asarray(embedded)
    )
    return float(said.eta), int(said.horizon), float(said.scale), float(correlation)


def test_advice():
    a = np.array([1.0, -1.0, 2.0, -2.0])
    good, bad = 2.0 * a, np.array([1.0, 1.0, -1.0, -1.0])
    std = np.sqrt(2.5)
    np.testing.assert_allclose(advice_of(a, [good]), (1.0, 2, std, 1.0), rtol=1e-6)
    np.testing.assert_allclose(advice_of(a, [good], eta_rule="optimal"), (0.5, 2, std, 1.0), rtol=1e-6)
    # cov: the longest one with a positive covariance; corr: the best. Here the first, and then none.
    for rule in ("cov", "corr"):
        assert advice_of(a, [good, -a * [1, 1, 1, 0]], horizon_rule=rule, eta_rule="optimal")[:2] == (
            (0.5, 1) if rule == "cov" else pytest.approx((0.5, 1))
        )
    assert advice_of(a, [-good, bad], horizon_rule="cov")[1] == 0
    # Advantages that do not vary must not be divided by zero.
    assert advice_of(np.zeros(4), [np.zeros(4)])[2] == 1.0


def test_qprop_is_advised_by_its_own_control_variate():
    states, _ = run("smoke", 3)
    learner = states[3].learner
    parts = mscv_updates.make_parts(dataclasses.replace(SMOKE, estimator="qprop", horizon=1), ENV.spec)
    record = jax.tree.map(lambda x: x[0], parts.memory.contents(states[3].memory)[0])
    step_fn, value_fn = mscv_updates.bound_step(parts, learner), mscv_updates.bound_value(parts, learner)

    def by_hand(segment):
        mean = mscv_updates.policy_of(parts, learner.seen)(learner.policy_params, segment.obs).mean

        def q(action):
            next_obs, reward, discount = step_fn(segment.obs, action, None)
            return reward + parts.config.gamma * discount * value_fn(next_obs)

        return segment.empirical_return - value_fn(segment.obs), jax.grad(q)(mean) @ (segment.action - mean)

    @jax.jit
    def both(learner, record):
        batch = mscv_updates.make_segments(parts, learner, record)
        return mscv_updates.advantages(parts, learner, batch, KEY), jax.vmap(by_hand)(batch)

    found, (advantage, embedded) = both(learner, record)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, (advantage, embedded[None]))


def test_rules_step():
    states, metrics = run("smoke", 2, horizon_rule="corr", eta_rule="optimal", choose_on="batch")
    assert metrics[1]["policy/accepted"] == 1
    assert metrics[1]["control/horizon"] in (1, 2)
    assert metrics[1]["control/eta"] not in (0.0, 1.0)
    assert states[2].learner.advice.horizon == metrics[1]["control/horizon"]


def test_every_tensor_has_the_coefficient_that_its_gradient_wants():
    states, _ = run("smoke", 3)
    learner, size = states[3].learner, 64
    parts = mscv_updates.make_parts(dataclasses.replace(SMOKE, eta_rule="per_tensor"), ENV.spec)
    record = jax.tree.map(lambda x: x[0], parts.memory.contents(states[3].memory)[0])

    @jax.jit
    def found(learner, record):
        batch = mscv_updates.make_segments(parts, learner, record)

        def gradient(each):
            advice = learner.advice._replace(tensor_eta=each)
            return mscv_gradient.policy_gradient(parts, learner, batch, advice, KEY)

        def of_step(segment, key, eta):
            loss = mscv_gradient._loss(parts, learner, learner.advice._replace(eta=eta))
            return jax.grad(loss)(learner.policy_params, segment, key)

        keys = jax.random.split(KEY, size)
        steps = [jax.vmap(of_step, (0, 0, None))(batch, keys, eta) for eta in (0.0, 1.0)]
        chosen = mscv_gradient.tensor_coefficients(parts, learner, batch, learner.advice, KEY)
        plain = partial(mscv_gradient.surrogate, parts, learner, batch, learner.advice._replace(eta=0.3), KEY)
        equal = gradient(jax.tree.map(lambda x: jnp.full_like(x, 0.3), chosen))
        return chosen, steps, gradient(chosen), equal, jax.grad(plain)(learner.policy_params)

    # 64 steps are 64 groups of one: the coefficients are those of the steps' own gradients.
    chosen, steps, mixed, equal, plain = jax.device_get(found(learner, record))
    for coefficient, x, y in zip(*map(jax.tree.leaves, (chosen, *steps)), strict=True):
        spread = [np.sum(np.var(x + c * (y - x), axis=0)) for c in coefficient + np.array([-0.05, 0.0, 0.05])]
        assert spread[1] < min(spread[0], spread[2])
    # With one number for all of them the gradient is the plain one; with several each tensor has its own mixture.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), equal, plain)
    without, full = (jax.tree.map(lambda x: np.mean(x, axis=0), each) for each in steps)
    wanted = jax.tree.map(lambda c, x, y: x + c * (y - x), chosen, without, full)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), mixed, wanted)


def test_coefficients_of_tensors_are_those_of_the_horizon_that_is_advised_with_them():
    rules = {"horizon": 1, "eta_rule": "per_tensor", "horizon_rule": "corr"}
    (_, state), _ = run("smoke", 1, **rules)
    # What was advised before may not matter, least of all no control variate at all.
    before = [state.learner.advice._replace(horizon=jnp.asarray(horizon, jnp.int32)) for horizon in (0, 1)]
    step = build("smoke", **rules)[2]
    after = [step(state._replace(learner=state.learner._replace(advice=each)), None)[0] for each in before]
    without, with_it = (each.learner.advice for each in after)
    assert without.horizon == with_it.horizon == 1
    assert all(jax.tree.leaves(without.tensor_eta))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), without.tensor_eta, with_it.tensor_eta)


@pytest.mark.slow
def test_coefficients_of_tensors_are_those_of_the_past():
    states, metrics = run("smoke", 3, eta_rule="per_tensor")
    # Nothing before the model has learnt.
    assert metrics[0]["control/tensor_eta_max"] == 0.0
    assert metrics[2]["control/tensor_eta_min"] < metrics[2]["control/tensor_eta_max"]
    assert metrics[2]["control/tensor_eta_max"] == max(map(float, jax.tree.leaves(states[2].learner.advice.tensor_eta)))


def test_a_gradient_that_is_not_finite_moves_nothing_and_is_counted():
    states, _ = run("smoke", 3)
    advice = states[2].learner.advice._replace(offset=jnp.full((), jnp.nan, jnp.float32))
    poisoned = states[2].learner._replace(advice=advice)
    after, metrics = build("smoke")[2](states[2]._replace(learner=poisoned), None)
    assert identical(after.learner.policy_params, states[2].learner.policy_params)
    assert metrics["guard/nonfinite"] == metrics["guard/nonfinite_streak"] == 1
    # The next iteration goes on.
    again, metrics = build("smoke")[2](after, None)
    assert not identical(again.learner.policy_params, after.learner.policy_params)
    assert (metrics["guard/nonfinite"], metrics["guard/nonfinite_streak"]) == (1, 0)


def test_it_learns_the_double_integrator():
    state, returns = run("smoke", 3)[0][0], []
    for _ in range(80):
        state, metrics = build("smoke")[2](state, None)
        returns.append(float(metrics["collect/episode_return"]))
    first, last = np.nanmean(returns[:10]), np.nanmean(returns[-10:])
    assert last > 0.8 * first, (first, last)


# Host environments, and what is refused.


def host():
    return HostEnv(cases.unused, cases.unused, cases.unused, cases.unused, num_envs=2, spec=ENV.spec)


def test_on_a_host_the_batch_is_passed_in():
    system = mscv.make(SMOKE, host())
    state = jax.jit(system.init)(KEY)
    assert state.workers is None
    with pytest.raises(InputError, match="batch is None, but 'lqr/double_integrator' runs on the host"):
        system.step(state, None)
    with pytest.raises(InputError, match=r"shape \(16, 2\), expected \(32, 2\)"):
        system.step(state, cases.host_batch(0, num_steps=16))
    with pytest.raises(InputError, match="num_envs=4 must be that of the environment, 2"):
        mscv.make(dataclasses.replace(SMOKE, num_envs=4), host())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_kl": 0.0}, "max_kl=0.0 must be positive"),
        ({"horizon": -1}, "horizon=-1 must be 0 or more"),
        ({"gamma": 1.5}, r"gamma=1.5 must lie in \[0, 1\]"),
        ({"estimator": "qprob"}, "estimator='qprob' is unknown: did you mean 'qprop'"),
        ({"model_weights": "own"}, "model_weights='own' is unknown: did you mean 'own_score'"),
        ({"model_max_ratio": -1.0}, "model_max_ratio=-1.0 must be positive"),
        ({"activation": "tan"}, "activation='tan' is unknown: did you mean 'tanh'"),
        ({"hidden": (0,)}, r"hidden=\(0,\) has a layer without units: each needs at least 1"),
        ({"model_hidden": (8, -1)}, r"model_hidden=\(8, -1\) has a layer without units"),
        ({"num_envs": 3}, "steps_per_iteration=64 must be a multiple of num_envs=3; the nearest is 63"),
        ({"segment_chunk": 48}, "multiple of segment_chunk=48; the nearest is 48"),
        ({"horizon": 40}, "horizon=40 is longer than the 32 steps"),
        ({"return_lambda": 1.0, "num_envs": 4}, "a batch may finish none, so it has no full return"),
        ({"estimator": "svg", "horizon": 0}, "horizon=0 has no model, which estimator='svg' needs"),
        ({"estimator": "qprop", "horizon": 1, "fresh_paths": 2}, "fresh_paths=2 are not drawn with estimator='qprop'"),
        ({"estimator": "qprop"}, "horizon=2 must be 1 with estimator='qprop'"),
        (
            {"estimator": "qprop", "horizon": 1, "horizon_rule": "corr"},
            "horizon_rule='corr' has nothing to choose with horizon=1 and estimator='qprop'",
        ),
        ({"horizon": 0, "horizon_rule": "cov"}, "horizon_rule='cov' has nothing to choose with horizon=0"),
        ({"estimator": "svg", "eta_rule": "optimal"}, "estimator='svg' has no coefficient"),
        ({"estimator": "svg", "eta_rule": "per_tensor"}, "estimator='svg' has no coefficient"),
        ({"eta_rule": "per_layer"}, "did you mean 'per_tensor'"),
        ({"eta": float("nan")}, "eta=nan must be finite"),
        ({"eta": float("-inf")}, "eta=-inf must be finite"),
        ({"initial_log_std": float("inf")}, "initial_log_std=inf must be finite"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        checked(dataclasses.replace(SMOKE, **changes), ENV.spec)


def test_what_an_environment_cannot_give_is_refused():
    with pytest.raises(InputError, match="'swimmer' does not tell it"):
        checked(dataclasses.replace(SMOKE, reward="known"), ENV.spec._replace(name="swimmer", reward_fn=None))
    with pytest.raises(InputError, match="discrete actions"):
        checked(SMOKE, ENV.spec._replace(num_actions=3))


def test_presets_make_sense():
    for name, config in mscv.presets.items():
        assert checked(config, ENV.spec._replace(max_episode_steps=min(config.num_steps, 1000))) == config, name
    assert mscv.presets["trpo"] == mscv.presets["paper/trpo"]
    assert not mscv.presets["paper-walker/trpo"].needs_model
