import dataclasses
import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.envs import mbbl
from jaxhybrid.errors import InputError
from jaxhybrid.systems import maac, maac_diagnosis, maac_updates
from jaxhybrid.systems.maac_config import RolloutSchedule, checked
from tests.systems import cases

SMOKE = maac.presets["smoke"]
PER_STEP = SMOKE.steps_per_iteration
SPEC = envs.make("pendulum").spec
KEY = jax.random.key(0)


def identical(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


# A whole run on a pure environment.


def test_a_run_keeps_its_structure_and_counts():
    states, metrics = cases.run("smoke", 3)
    for before, after in itertools.pairwise(states):
        assert jax.tree.structure(before) == jax.tree.structure(after)
        assert shapes(before) == shapes(after)
    assert [int(s.env_steps) for s in states] == [0, PER_STEP, 2 * PER_STEP, 3 * PER_STEP]
    # Nothing is learnt in the first step, which ends before the 128 initial ones are there.
    assert [int(s.updates) for s in states] == [0, 0, 8, 16]
    assert identical(states[0].learner, states[1].learner)
    assert not identical(states[1].learner.policy_params, states[2].learner.policy_params)
    assert not identical(states[1].ensemble.params, states[2].ensemble.params)
    assert {len(set(m)) for m in metrics} == {len(metrics[0])}
    assert set(metrics[0]) == set(metrics[2])
    for name, value in metrics[2].items():
        assert value.shape == ()
        assert np.isfinite(value) or name.startswith("collect/"), name
    assert metrics[2]["guard/nonfinite"] == metrics[2]["model/nonfinite"] == 0
    # Adam moves a parameter by about its step size, so the ratio is small, and not nothing.
    assert 0 < metrics[2]["actor/update_ratio"] < 0.1 and 0 < metrics[2]["critic/update_ratio"] < 0.1


def test_a_run_is_one_compilation():
    *_, step = cases.build("smoke")
    cases.run("smoke", 3)
    assert step._cache_size() == 1


def test_every_parameter_group_learns():
    states, _ = cases.run("smoke", 3)
    for name in ("policy_params", "critic_params", "target_params", "log_temperature"):
        moved = jax.tree.map(
            lambda a, b: bool((a != b).any()), getattr(states[1].learner, name), getattr(states[2].learner, name)
        )
        assert all(jax.tree.leaves(moved)), name


def test_collection_explores_at_random_at_first():
    _, _, _, step = cases.build("smoke")
    states, _ = cases.run("smoke", 3)
    other = states[0]._replace(
        learner=states[0].learner._replace(
            policy_params=jax.tree.map(lambda x: x + 1.0, states[0].learner.policy_params)
        )
    )
    explored = step(other, None)[0]
    # The policy has no part in it.
    assert identical(explored.real, states[1].real)
    (rows, _), size = maac_updates.make_replay(SMOKE.real_capacity).contents(states[2].real)
    actions = np.asarray(rows.action[: int(size), 0])
    assert size == 2 * PER_STEP
    assert np.abs(actions).max() <= 1
    # 128 uniform draws: mean 0 and variance 1/3 within 5 standard errors.
    assert abs(actions.mean()) < 5 * (1 / 3 / 128) ** 0.5
    assert abs(actions.var() - 1 / 3) < 5 * (4 / 45 / 128) ** 0.5


def test_stored_rows_are_split_for_each_member_on_its_own():
    states, _ = cases.run("smoke", 3)
    (_, held_out), size = maac_updates.make_replay(SMOKE.real_capacity).contents(states[3].real)
    held_out = np.asarray(held_out[: int(size)])
    assert held_out.shape == (192, 2)
    assert np.all(np.abs(held_out.mean(0) - 0.2) < 5 * (0.16 / 192) ** 0.5)
    assert (held_out[:, 0] != held_out[:, 1]).any()


def test_acting():
    _, system, _, _ = cases.build("smoke")
    states, _ = cases.run("smoke", 3)
    obs, keys = jnp.array([1.0, 0.0, 0.5]), jax.random.split(KEY, 200)
    distribution = maac_updates.make_parts(SMOKE, SPEC).policy.apply(states[3].learner.policy_params, obs)

    @partial(jax.jit, static_argnums=1)
    def act(state, deterministic):
        return jax.vmap(lambda k: system.act(state, obs, k, deterministic=deterministic))(keys)

    early, late, mode = act(states[1], False), act(states[3], False), act(states[3], True)
    np.testing.assert_allclose(late, jax.vmap(distribution.sample)(keys), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mode, jnp.broadcast_to(distribution.mode(), mode.shape), rtol=1e-4, atol=1e-6)
    # Uniform: quarters of the box are equally likely.
    assert np.histogram(early, bins=4, range=(-1, 1))[0].min() > 25


def test_stochastic_evaluation_samples():
    _, _, init, _ = cases.build("smoke/sac", host=True)
    system = maac.make(dataclasses.replace(maac.presets["smoke/sac"], stochastic_evaluation=True), cases.host_env())
    act, state = jax.jit(partial(system.act, deterministic=True)), init(KEY)
    first, second = (act(state, jnp.ones(3), k) for k in jax.random.split(KEY))
    assert first != second


def check_seeds(init, step, batches, tolerance):
    """Two seeds side by side do what each does alone, up to the rounding of another layout."""
    states = [init(jax.random.key(seed)) for seed in (0, 1)]
    for batch in batches[:-1]:
        states = [step(state, batch)[0] for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, _ = jax.jit(jax.vmap(step, in_axes=(0, None)))(stacked, batches[-1])
    for i, state in enumerate(states):
        solo, own = step(state, batches[-1])[0], jax.tree.map(lambda x, i=i: x[i], together)
        assert identical(own.key, solo.key)
        assert not identical(state.learner.policy_params, solo.learner.policy_params)
        close = partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        jax.tree.map(close, own.learner, solo.learner)


def test_vmapped_seeds_are_solo_seeds():
    check_seeds(*cases.build("smoke/sac", host=True)[2:], [cases.host_batch(seed) for seed in (0, 1)], 1e-5)


@pytest.mark.slow
def test_vmapped_seeds_are_solo_seeds_with_a_model():
    check_seeds(*cases.build("smoke")[2:], [None, None], 1e-4)


# A run that the host drives.


def test_a_host_run_learns_from_what_it_is_given():
    _, system, init, step = cases.build("smoke/sac", host=True)
    states = [init(KEY)]
    assert states[0].workers is None
    for seed in range(3):
        state, metrics = step(states[-1], cases.host_batch(seed))
        states.append(state)
        assert not any(name.startswith("collect/") for name in metrics)
    assert [int(s.env_steps) for s in states] == [0, 64, 128, 192]
    assert [int(s.updates) for s in states] == [0, 0, 8, 16]
    (rows, _), size = maac_updates.make_replay(SMOKE.real_capacity).contents(states[2].real)
    expected = jnp.concatenate([cases.host_batch(seed).reward.ravel() for seed in range(2)])
    np.testing.assert_array_equal(rows.reward[: int(size)], expected)
    act = jax.jit(partial(system.act, obs=jnp.ones(3), key=KEY, deterministic=False))
    shifted = jax.tree.map(lambda x: x + 1.0, states[1].learner.policy_params)
    early, late = (s._replace(learner=s.learner._replace(policy_params=shifted)) for s in (states[1], states[2]))
    assert act(early) == act(states[1])
    assert act(late) != act(states[2])


def test_updates_that_are_not_finite_are_refused_and_counted():
    _, _, init, step = cases.build("smoke/sac", host=True)
    state = init(KEY)
    for seed in range(2):
        before, batch = state.learner, cases.host_batch(seed)
        state, metrics = step(state, batch._replace(reward=jnp.full_like(batch.reward, jnp.nan)))
    assert int(state.updates) == 8
    assert metrics["guard/nonfinite"] == metrics["guard/nonfinite_streak"] == 8
    assert identical(before._replace(guard=None), state.learner._replace(guard=None))
    # Good steps do not undo the refusals, but end the streak as soon as a batch holds no bad row.
    again = state._replace(real=cases.build("smoke/sac", host=True)[2](KEY).real)
    again, metrics = step(again, cases.host_batch(5))
    assert metrics["guard/nonfinite"] == 8
    assert metrics["guard/nonfinite_streak"] == 0
    assert not identical(state.learner.policy_params, again.learner.policy_params)


@pytest.mark.parametrize(("delayed", "refused"), [(True, 0), (False, 8)])
def test_delayed_replay_leaves_out_the_newest_steps(delayed, refused):
    _, _, init, step = cases.build("smoke/sac", host=True, **({"delayed_replay": True} if delayed else {}))
    state, _ = step(init(KEY), cases.host_batch(0))
    bad = cases.host_batch(1)
    _, metrics = step(state, bad._replace(reward=jnp.full_like(bad.reward, jnp.nan)))
    # Of 16 rows, half of them bad, at least one is with probability 1 - 2^-16.
    assert metrics["guard/nonfinite"] == refused


# One update.


@functools.cache
def learner():
    """A learner whose slow critics differ from the fast ones; all variants of smoke share its shapes."""
    fresh = jax.jit(lambda k: maac_updates.init_learner(maac_updates.make_parts(SMOKE, SPEC), k))(KEY)
    slow = jax.tree.map(lambda x: x + 0.1, fresh.target_params)
    return fresh._replace(target_params=slow, log_temperature=jnp.log(0.3))


def rows_of(batch):
    return jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), batch)


def dense(params, x):
    """A two-layer relu perceptron, written out."""
    layers = params["params"]
    for name in ("Dense_0", "Dense_1"):
        x = jnp.maximum(x @ layers[name]["kernel"] + layers[name]["bias"][None], 0)
    return x @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"][None]


def sac_action(params, obs, eps):
    """Action and log-probability ``[B]`` from the textbook: the change of variables, term by term."""
    mean, log_std = jnp.split(dense(params, obs), 2, axis=1)
    u = mean + jnp.exp(log_std) * eps
    log_prob = -0.5 * eps**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(1 - jnp.tanh(u) ** 2)
    return jnp.tanh(u), log_prob.sum(1)


def sac_q(params, obs, action):
    x = jnp.concatenate([obs, action], axis=1)
    return jnp.stack([dense(jax.tree.map(lambda p, c=c: p[c], params), x)[:, 0] for c in range(2)])


def sac_gradients(old, batch, gamma, noise):
    alpha = jnp.exp(old.log_temperature)
    next_action, next_log_prob = sac_action(old.policy_params, batch.next_obs, noise["target"])
    slow = jnp.min(sac_q(old.target_params, batch.next_obs, next_action), axis=0)
    target = batch.reward + gamma * batch.discount * (slow - alpha * next_log_prob)

    def actor(params):
        action, log_prob = sac_action(params, batch.obs, noise["actor"])
        q = jnp.min(sac_q(old.critic_params, batch.obs, action), axis=0)
        return jnp.mean(alpha * log_prob - q)

    def critic(params):
        return jnp.mean(jnp.sum((sac_q(params, batch.obs, batch.action) - target[None]) ** 2, axis=0))

    log_prob = sac_action(old.policy_params, batch.obs, noise["actor"])[1]
    # The entropy to hold is minus one dimension.
    temperature = -(jnp.mean(log_prob) - 1.0)
    return jax.grad(actor)(old.policy_params), jax.grad(critic)(old.critic_params), temperature


def test_the_sac_preset_makes_the_textbook_update():
    config = dataclasses.replace(maac.presets["smoke/sac"], target_update_interval=2)
    start, batch = learner(), rows_of(cases.host_batch(3, num_steps=8))
    batch = batch._replace(discount=batch.discount.at[::3].set(0.0))
    update = jax.jit(partial(maac_updates.update, maac_updates.make_parts(config, SPEC), None))
    got, metrics = update(start, batch, KEY)

    # The same noise, drawn from where the update draws it.
    policy_key, target_key, _, _ = jax.random.split(KEY, 4)

    @jax.vmap
    def normal(key):
        return jax.random.normal(key, (1,))

    actor_keys = jax.vmap(lambda k: jax.random.split(jax.random.split(jax.random.split(k, 1)[0])[0], 1)[0])
    value_keys = jax.vmap(lambda k: jax.random.split(jax.random.split(k, 3)[2], 1)[0])
    noise = {
        "actor": normal(actor_keys(jax.random.split(policy_key, 16))),
        "target": normal(value_keys(jax.random.split(target_key, 16))),
    }
    gradients = jax.jit(sac_gradients)(start, batch, config.gamma, noise)

    # The first step of Adam is the sign of the gradient, softened by epsilon.
    def adam(param, grad):
        return param - 3e-4 * grad / (jnp.abs(grad) + 1e-8)

    expected = jax.tree.map(adam, (start.policy_params, start.critic_params, start.log_temperature), gradients)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    jax.tree.map(close, (got.policy_params, got.critic_params, got.log_temperature), expected)
    for name, grads in (("actor", gradients[0]), ("critic", gradients[1])):
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        assert metrics[f"{name}/grad_norm"] == pytest.approx(float(norm), rel=1e-4)

    # The slow critics move at every second update only, by the two-hundredth part of the way.
    assert identical(got.target_params, start.target_params)
    after, _ = update(got, batch, KEY)
    slow = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, got.target_params, after.critic_params)
    jax.tree.map(close, after.target_params, slow)


# Dealing rows to members.


def test_rows_are_dealt_to_members_in_turn():
    groups = maac_updates.grouped({"row": jnp.arange(6)}, 3)["row"]
    np.testing.assert_array_equal(groups, [[0, 3], [1, 4], [2, 5]])


def test_paths_of_one_state_meet_different_members():
    config = dataclasses.replace(
        SMOKE, ensemble_size=4, batch_size=8, num_paths=3, horizon=1, trajectory_sampling="tsinf", gamma=1.0
    )
    parts = maac_updates.make_parts(config, SPEC)
    # Critics and temperature count nothing: the value is the reward, a number that tells member and state.
    old = learner()
    old = old._replace(critic_params=jax.tree.map(jnp.zeros_like, old.critic_params))

    def step_fn(obs, action, noise):
        reward = jnp.where((noise.member == 2) & (obs[0] == 5.0), 1.0, 0.0)
        return obs, reward, jnp.ones(())

    obs = jnp.zeros((8, 3)).at[:, 0].set(jnp.arange(8.0))
    loss = jax.jit(partial(maac_updates.actor_loss, parts=parts, step_fn=step_fn, learner=old))
    _, aux = loss(old.policy_params, obs, KEY)
    # State 5 starts with member 1; its second path, shifted by one row, is member 2's; no other path of it is.
    assert aux["value"] == pytest.approx(1 / 24)


# Critic targets of an ensemble, and the knobs that reproduce the released code.


def linear_model(obs, action, noise):
    """Members differ by their number; no draw."""
    next_obs = 0.9 * obs + 0.1 * (1.0 + noise.member)
    return next_obs, jnp.sum(next_obs) + 0.0 * action[0], jnp.ones(())


def certain_learner():
    """A learner whose policy has next to no noise, and whose temperature is next to nothing."""
    policy_params = jax.tree.map(jnp.copy, learner().policy_params)
    last = policy_params["params"]["Dense_2"]
    last["kernel"], last["bias"] = last["kernel"].at[:, 1].set(0.0), last["bias"].at[1].set(-20.0)
    return learner()._replace(policy_params=policy_params, log_temperature=jnp.asarray(-60.0))


def expansion_by_hand(old, batch, members, horizon, gamma):
    """Candidates ``[M, H+1, C, B]`` of `linear_model`, in NumPy."""

    def value(obs):
        action, _ = sac_action(old.policy_params, jnp.asarray(obs), jnp.zeros((16, 1)))
        return np.asarray(sac_q(old.target_params, jnp.asarray(obs), action))

    batch = jax.tree.map(np.asarray, batch)
    candidates = np.zeros((members, horizon + 1, 2, 16))
    for m in range(members):
        obs, paid, weight = batch.next_obs, batch.reward, gamma * batch.discount
        for h in range(horizon + 1):
            candidates[m, h] = paid + weight * value(obs)
            obs = 0.9 * obs + 0.1 * (1.0 + m)
            paid, weight = paid + weight * np.sum(obs, axis=1), gamma * weight
    return candidates


@pytest.mark.parametrize("released", [False, True])
def test_critic_targets_by_hand(released):
    config = dataclasses.replace(SMOKE, ensemble_size=4, steve_horizon=2, steve_floor=0.3, released_steve=released)
    old, batch = certain_learner(), rows_of(cases.host_batch(3, num_steps=8))
    batch = batch._replace(discount=batch.discount.at[::3].set(0.0))
    parts = maac_updates.make_parts(config, SPEC)
    targets, _ = jax.jit(partial(maac_updates.critic_targets, parts, linear_model))(old, batch, KEY)
    candidates = expansion_by_hand(old, batch, 4, 2, config.gamma)
    if released:
        expected = candidates[0, 0].min(axis=0)
    else:
        floor = 0.3 * np.var(candidates[0, 0].mean(axis=0))
        precision = 1 / (np.var(candidates, axis=(0, 2)) + floor)
        weights = precision / precision.sum(axis=0)
        expected = np.sum(weights * candidates.mean(axis=0).min(axis=1), axis=0)
    assert np.std(expected) > 0.5
    np.testing.assert_allclose(targets, expected, atol=2e-5)


def ending_model(obs, action, noise):
    next_obs, reward, _ = linear_model(obs, action, noise)
    return next_obs, reward, jnp.where(obs[0] > 0.5, 0.0, 1.0)


@pytest.mark.parametrize("released", [False, True])
def test_released_expansion_puts_all_the_weight_on_the_one_step_target(released):
    parts = maac_updates.make_parts(dataclasses.replace(SMOKE, released_steve=released), SPEC)
    batch = rows_of(cases.host_batch(3, num_steps=8))
    targets, aux = jax.jit(partial(maac_updates.critic_targets, parts, linear_model))(learner(), batch, KEY)
    assert targets.shape == (16,)
    weight = aux["model_weight"]
    # With one model step the expected depth is the weight of that step.
    np.testing.assert_allclose(aux["effective_horizon"], weight, atol=1e-6)
    if released:
        assert weight < 1e-5
    else:
        assert 0.01 < weight < 0.99


@pytest.mark.parametrize("one_step", [False, True])
def test_rollouts_are_chains_unless_released(one_step):
    config = dataclasses.replace(
        SMOKE,
        model_rollouts=16,
        model_capacity=64,
        one_step_rollouts=one_step,
        rollout_schedule=RolloutSchedule(first=0, last=1, shortest=1, longest=3),
    )
    parts = maac_updates.make_parts(config, SPEC)
    rows, held_out = rows_of(cases.host_batch(4)), jnp.zeros((64, 2), bool)
    real = parts.real_replay.add(
        parts.real_replay.init((maac_updates.blank_transition(SPEC), held_out[0])), (rows, held_out)
    )
    empty = parts.model_replay.init(maac_updates.blank_transition(SPEC))
    imagine = jax.jit(partial(maac_updates.imagine, parts, ending_model, learner(), real, empty))
    assert parts.model_replay.contents(imagine(jnp.asarray(0), KEY))[1] == 16
    imagined, size = parts.model_replay.contents(imagine(jnp.asarray(5), KEY))
    assert size == 48
    steps = jax.tree.map(lambda x: np.asarray(x[:48]).reshape((3, 16) + x.shape[1:]), imagined)
    real_obs = np.asarray(rows.obs)
    assert np.isin(steps.obs[0], real_obs).all()
    for h in (1, 2):
        # A path that ended makes room for a new one.
        anew = np.full(16, True) if one_step else steps.discount[h - 1] == 0
        assert one_step or 0 < anew.sum() < 16
        assert np.isin(steps.obs[h][anew], real_obs).all()
        np.testing.assert_array_equal(steps.obs[h][~anew], steps.next_obs[h - 1][~anew])
    # Half of the rows of a step are each member's.
    member = np.round((steps.next_obs - 0.9 * steps.obs).mean(-1) / 0.1 - 1)
    np.testing.assert_array_equal(np.sort(member, axis=1), np.repeat([[0.0] * 8 + [1.0] * 8], 3, axis=0))


def benchmark_spec(name="mbbl/halfcheetah"):
    """A stand-in for a benchmark's spec, so that no simulator is needed."""
    reward_fn = mbbl.reward_fn(name.split("/")[1])
    return SPEC._replace(name=name, reward_fn=reward_fn, obs_dim=18, action_dim=6)


def test_the_reward_inside_the_model():
    spec = benchmark_spec()
    obs, action, next_obs = jnp.full(18, 2.0), jnp.zeros(6), jnp.full(18, 5.0)
    own = maac_updates.model_reward(SMOKE, spec)
    released = maac_updates.model_reward(dataclasses.replace(SMOKE, model_reward_on="released"), spec)
    assert own is spec.reward_fn
    assert released(obs, action, next_obs) == mbbl.reward_fn("halfcheetah", reward_on="released")(obs, action, next_obs)
    assert released(obs, action, next_obs) != own(obs, action, next_obs)


def test_lengths_of_rollouts_over_iterations():
    schedule = RolloutSchedule(first=20, last=100, shortest=1, longest=25)
    # Linear from 20 to 100, rounded down: 1 + 24 * 40 / 80 = 13 in the middle.
    lengths = [int(schedule.length(jnp.asarray(i))) for i in (0, 20, 23, 24, 60, 99, 100, 500)]
    assert lengths == [1, 1, 1, 2, 13, 24, 25, 25]


# Configurations.


def as_env(spec):
    return envs.make("pendulum")._replace(spec=spec)


@pytest.mark.parametrize("name", sorted(maac.presets))
def test_every_preset_makes_a_system(name):
    config = maac.presets[name]
    spec = benchmark_spec() if config.model_reward_on == "released" else SPEC
    assert checked(config, spec) is config
    system = maac.make(config, as_env(spec))
    assert callable(system.step)


@pytest.mark.parametrize("name", ["sac", "mbpo", "steve", "maac-h0", "maac-single-path", "maac-td"])
def test_every_ablation_of_smoke_steps(name):
    _, system, _, _ = cases.build(f"smoke/{name}")
    state = jax.eval_shape(system.init, KEY)
    after, metrics = jax.eval_shape(partial(system.step, batch=None), state)
    assert shapes(after) == shapes(state)
    needs_model = name != "sac"
    assert (state.ensemble is not None) == needs_model == ("model/train_loss" in metrics)
    assert (state.imagined is not None) == (name not in ("sac", "steve"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *[({name: 0}, rf"{name}=0 must be positive") for name in ("iterations", "num_envs", "batch_size", "patience")],
        ({"learning_rate": float("nan")}, "learning_rate=nan must be positive"),
        ({"initial_temperature": float("inf")}, "initial_temperature=inf must be positive"),
        ({"horizon": -1}, "horizon=-1 must not be negative; 0"),
        ({"steve_horizon": -2}, "steve_horizon=-2 must not be negative"),
        ({"gamma": 1.01}, r"gamma=1.01 must lie in \[0, 1\]"),
        ({"real_ratio": -0.1}, r"real_ratio=-0.1 must lie in \[0, 1\]"),
        ({"policy_activation": "rellu"}, "policy_activation='rellu' is unknown: did you mean 'relu'"),
        ({"policy_hidden": (0,)}, r"policy_hidden=\(0,\) has a layer without units: each needs at least 1"),
        ({"critic_hidden": (8, -1)}, r"critic_hidden=\(8, -1\) has a layer without units"),
        ({"model_hidden": (0, 8)}, r"model_hidden=\(0, 8\) has a layer without units"),
        ({"model_activation": "swich"}, "model_activation='swich'.*'swish'"),
        ({"model_reward_on": "Env"}, "model_reward_on='Env' is unknown: did you mean 'env'"),
        ({"trajectory_sampling": "ts2"}, "trajectory_sampling='ts2' is unknown: did you mean 'ts1'"),
        ({"early_stopping": "patient"}, "early_stopping='patient' is unknown: did you mean 'patience'"),
        ({"model_weights": "own"}, "model_weights='own' is unknown: did you mean 'own_score'"),
        ({"target_entropy": float("nan")}, "target_entropy=nan must be finite, or None"),
        ({"rollout_schedule": RolloutSchedule(shortest=0)}, "rollout_schedule=.*length below 1; use real_ratio=1"),
        ({"steps_per_iteration": 63}, "steps_per_iteration=63 must be a multiple of num_envs=2; the nearest is 64"),
        ({"updates_per_iteration": 7, "model_refreshes": 2}, "updates_per_iteration=7.*model_refreshes=2"),
        ({"model_rollouts": 65}, "model_rollouts=65 must be a multiple of ensemble_size=2"),
        ({"batch_size": 17}, "batch_size=17 must be a multiple of ensemble_size=2; the nearest is 16"),
        ({"initial_steps": 4096}, "real_capacity=1024 must hold initial_steps"),
        ({"steps_per_iteration": 2048}, "real_capacity=1024 must hold"),
        ({"model_reward_on": "released"}, "model_reward_on='released' exists for mbbl/.*'pendulum'"),
    ],
)
def test_senseless_numbers_are_refused(changes, match):
    with pytest.raises(InputError, match=match) as caught:
        maac.make(dataclasses.replace(SMOKE, **changes), envs.make("pendulum"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["smoke", "smoke/sac"])
def test_discrete_actions_are_refused(preset):
    # Of an environment whose end a model could not see either: other actions are the first thing it lacks.
    with pytest.raises(InputError, match="env='city/distraction' has discrete actions"):
        maac.make(maac.presets[preset], envs.make("city/distraction"))


def test_a_model_needs_an_end_that_it_can_see():
    blind = as_env(SPEC._replace(observable_termination=False))
    with pytest.raises(InputError, match="no model can know when"):
        maac.make(SMOKE, blind)
    assert callable(maac.make(maac.presets["smoke/sac"], blind).step)


def check_diagnosis(metrics, with_snr, learner, diagnosed):
    assert identical(diagnosed, learner)
    added = with_snr.keys() - metrics.keys()
    assert added == {"actor/snr", "critic/snr"}
    assert all(np.isfinite(with_snr[name]) and with_snr[name] > -1.0 for name in added)


def test_a_diagnosis_adds_signal_to_noise_ratios_and_changes_nothing_else():
    ends = []
    for changes in ({}, {"diagnose_parts": 2}):
        _, _, init, step = cases.build("smoke/sac", host=True, as_shipped=True, **changes)
        state = init(KEY)
        for seed in range(2):
            state, metrics = step(state, cases.host_batch(seed))
        ends.append((metrics, state.learner))
    (metrics, learnt), (with_snr, diagnosed) = ends
    check_diagnosis(metrics, with_snr, learnt, diagnosed)


def test_real_rows_are_rounded_down_as_released():
    shares = {0.05: 12, 0.1: 25, 0.0: 0, 1.0: 256}
    for share, rows in shares.items():
        assert dataclasses.replace(maac.presets["paper"], real_ratio=share).real_batch_size == rows


def test_real_and_model_rows_are_no_noise_of_each_other():
    config = dataclasses.replace(maac.presets["smoke/sac"], diagnose_parts=4)
    # Four real rows come first, and then twelve of a model; all of a kind are alike.
    batch = jax.tree.map(lambda x: x[jnp.array([0] * 4 + [1] * 12)], rows_of(cases.host_batch(3, num_steps=8)))
    diagnose = jax.jit(partial(maac_diagnosis.diagnose, maac_updates.make_parts(config, SPEC), None))
    assert all(snr > 1e3 for snr in diagnose(certain_learner(), batch, KEY).values())


@pytest.mark.slow
def test_a_diagnosis_of_a_run_with_a_model_changes_nothing_else():
    states, metrics = cases.run("smoke", 3, as_shipped=True)
    diagnosed, with_snr = cases.run("smoke", 3, as_shipped=True, diagnose_parts=2)
    check_diagnosis(metrics[-1], with_snr[-1], states[-1].learner, diagnosed[-1].learner)


@pytest.mark.parametrize(("parts", "message"), [(1, "diagnose_parts=1"), (-2, "diagnose_parts=-2"), (5, "batch_size")])
def test_a_diagnosis_that_does_not_divide_the_batch_is_refused(parts, message):
    with pytest.raises(InputError, match=message):
        cases.build("smoke", diagnose_parts=parts)
