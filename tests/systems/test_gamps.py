"""Gradient-aware search: the step against the estimators of one trajectory, its baselines, its limits."""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs, estimators, transition_models
from jaxhybrid.envs import finite, gridworld
from jaxhybrid.errors import InputError
from jaxhybrid.ops import importance
from jaxhybrid.policies import tabular_softmax
from jaxhybrid.systems import gamps
from jaxhybrid.systems.gamps_tasks import terminal_value
from jaxhybrid.trajectories import Dataset, Trajectory
from jaxhybrid.types import HostEnv

KEY = jax.random.key(0)
SMOKE = gamps.presets["smoke"]
GRID = gridworld.layout()
TABLE = tabular_softmax(GRID.fixed_action, 4)


@functools.cache
def build(name="smoke", **changes):
    config = dataclasses.replace(gamps.presets[name], **changes)
    env = gamps.environment(config)
    system = gamps.make(config, env)
    return config, gamps.make_task(config, env), system, jax.jit(system.init), jax.jit(system.step)


def policy_fn(params, obs):
    return TABLE.apply(params, gridworld.state_of(obs))


@functools.cache
def moved():
    """A state whose policy is no longer the one that collected the data, as after some steps."""
    state = build()[3](KEY)
    params = state.policy_params + 0.4 * jax.random.normal(jax.random.key(5), state.policy_params.shape)
    return state._replace(policy_params=params)


def test_data_are_recorded_under_the_initial_policy():
    state = build()[3](KEY)
    assert state.dataset.mask.shape == (20, 20)
    log_prob = jax.vmap(jax.vmap(lambda s, a: policy_fn(state.policy_params, s).log_prob(a)))(
        state.dataset.obs, state.dataset.action
    )
    np.testing.assert_allclose(log_prob * state.dataset.mask, state.dataset.behaviour_log_prob, atol=1e-5)
    assert state.env_steps == state.dataset.mask.sum()


@pytest.mark.parametrize("kind", ["model_value", "per_decision", "reinforce"])
def test_the_gradient_is_the_mean_of_the_estimator(kind):
    config, task, *_ = build(gradient=kind)
    state = moved()
    params, data = state.policy_params, state.dataset
    effects = jax.nn.softmax(jax.random.normal(KEY, (4, 5)))
    found = jax.jit(partial(gamps.policy_gradient, config, task))(params, effects, data, KEY)

    problem = gridworld.problem(gamma=config.gamma)
    model = transition_models.effect_transition(effects, GRID.moves).at[GRID.goal].set(problem.transition[GRID.goal])
    probs = jax.vmap(lambda s: TABLE.apply(params, s).probs())(jnp.arange(25))
    q = finite.q_values(problem._replace(transition=model), probs)
    bound = {
        "model_value": {"q_fn": lambda s, a, key: q[gridworld.state_of(s), a]},
        "per_decision": {},
        "reinforce": {"past_rewards": True},
    }[kind]
    estimator = estimators.model_value if kind == "model_value" else estimators.per_decision
    one = partial(estimator, policy_fn=policy_fn, gamma=config.gamma, **bound)
    each = jax.jit(jax.vmap(lambda t, k: one(params, t, k)[0]))(data, jax.random.split(KEY, 20))
    np.testing.assert_allclose(found, each.mean(0), rtol=2e-3, atol=2e-3 * np.abs(found).max())


@pytest.mark.parametrize("kind", ["gradient_aware", "own_score", "uniform"])
def test_step_weights_are_those_of_equation_3(kind):
    config, task, *_ = build(model_weights=kind)
    state = moved()
    data = state.dataset
    found = jax.jit(partial(gamps.step_weights, config, task))(state.policy_params, data)
    if kind == "uniform":
        np.testing.assert_array_equal(found, data.mask)
        return
    norm = jax.vmap(lambda s, a: jnp.linalg.norm(jax.grad(lambda p: policy_fn(p, s).log_prob(a))(state.policy_params)))
    for i in range(3):
        steps = int(data.mask[i].sum())
        target = jax.vmap(lambda s, a: policy_fn(state.policy_params, s).log_prob(a))(data.obs[i], data.action[i])
        log_ratio = jnp.cumsum(target - data.behaviour_log_prob[i])[:steps]
        norms = norm(data.obs[i], data.action[i])[:steps]
        expected = importance.gradient_aware_weights(
            log_ratio, norms, gamma=config.gamma, cumulative=kind == "gradient_aware"
        )
        np.testing.assert_allclose(found[i, :steps], expected, rtol=1e-3, atol=1e-5)
        assert not np.any(found[i, steps:])


def test_a_gradient_aware_model_is_right_in_the_upper_area_and_a_likely_one_is_not():
    wrong = {}
    for kind in ("gradient_aware", "uniform"):
        config, task, *_ = build(model_weights=kind, trajectories=200, episode_steps=50, model_steps=50)
        state = build(trajectories=200, episode_steps=50)[3](KEY)
        weights = gamps.step_weights(config, task, state.policy_params, state.dataset)
        effects, _ = task.fit(state.model_params, state.dataset, weights)
        # Up moves down there, and so on.
        wrong[kind] = 1 - np.asarray(effects)[np.arange(4), [1, 0, 3, 2]]
    assert wrong["gradient_aware"].max() < 0.02
    assert wrong["uniform"].max() > 0.2


@pytest.mark.parametrize("ratios", ["plain", "self_normalised", "truncated"])
def test_ratios(ratios):
    config, task, *_ = build(ratios=ratios, max_ratio=1.5)
    state = moved()
    found = np.exp(gamps._log_ratios(config, task, state.policy_params, state.dataset))
    data = state.dataset
    target = task.log_probs(state.policy_params, data)
    plain = np.exp(np.cumsum(np.where(data.mask > 0, target - data.behaviour_log_prob, 0.0), axis=1))
    expected = {
        "plain": plain,
        "self_normalised": plain / plain.mean(0),
        "truncated": np.minimum(plain, 1.5),
    }[ratios]
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_steps_have_the_shape_of_scan_and_learn():
    _, _, system, init, step = build(trajectories=200, iterations=15)
    states, metrics = jax.jit(lambda k: jax.lax.scan(system.step, system.init(k), None, length=15))(KEY)
    assert jax.tree.structure(states) == jax.tree.structure(jax.eval_shape(init, KEY))
    assert all(value.shape == (15,) for value in metrics.values())
    returns = metrics["policy/return"]
    assert returns[-1] > returns[0] + 1.0
    assert metrics["data/effective_sample_size"][0] == pytest.approx(200, rel=1e-4)
    assert metrics["data/effective_sample_size"][-1] < 150
    assert states.iteration == 15
    # The same numbers one by one.
    state = init(KEY)
    for i in range(2):
        state, logged = step(state, None)
        assert logged["policy/return"] == pytest.approx(float(returns[i]), rel=1e-4)
    assert step._cache_size() == 1


def test_exact_gradient_is_followed_whatever_the_data():
    _, task, _, init, step = build(gradient="exact")
    state = init(KEY)
    after, metrics = step(state, None)
    assert metrics["policy/cosine"] == pytest.approx(1.0, abs=1e-5)
    gradient = task.exact_gradient(state.policy_params)
    # The first step of Adam is the sign of the gradient.
    change = after.policy_params - state.policy_params
    large = np.abs(gradient) > 1e-4
    np.testing.assert_allclose(change[large], 0.1 * np.sign(gradient[large]), rtol=1e-2)


def test_one_effective_trajectory_stops_the_search_and_keeps_the_result():
    _, _, _, init, step = build()
    state = init(KEY)
    lonely = state.dataset._replace(behaviour_log_prob=state.dataset.behaviour_log_prob.at[0, 0].add(-50.0))
    after, metrics = step(state._replace(dataset=lonely), None)
    assert metrics["data/effective_sample_size"] < gamps.SMALLEST_ESS
    assert metrics["stopped"] == 1.0
    np.testing.assert_array_equal(after.policy_params, state.policy_params)
    # It stays stopped, even if the data were whole again.
    again, metrics = step(after._replace(dataset=state.dataset), None)
    assert metrics["stopped"] == 1.0
    np.testing.assert_array_equal(again.policy_params, state.policy_params)


def with_impossible(data, rows):
    """The second step of these trajectories takes, in an upper cell, an action that the policy never does."""
    upper = int(np.flatnonzero(GRID.fixed_action >= 0)[0])
    never = (int(GRID.fixed_action[upper]) + 1) % 4
    cell = jnp.stack(jnp.divmod(upper, gridworld.SIZE)).astype(data.obs.dtype)
    return data._replace(obs=data.obs.at[rows, 1].set(cell), action=data.action.at[rows, 1].set(never))


@pytest.mark.parametrize("ratios", ["plain", "self_normalised", "truncated"])
@pytest.mark.parametrize("gradient", ["model_value", "reinforce"])
def test_a_trajectory_that_the_policy_never_takes_counts_nothing(ratios, gradient):
    config, task, _, init, step = build(ratios=ratios, gradient=gradient)
    state = init(KEY)
    some = with_impossible(state.dataset, slice(3))
    weights = gamps.step_weights(config, task, state.policy_params, some)
    assert jnp.all(jnp.isfinite(weights))
    if gradient == "model_value":
        assert not np.any(weights[:3, 1:]) and np.any(weights[3:, 1:])
    after, metrics = step(state._replace(dataset=some), None)
    assert metrics["data/effective_sample_size"] == pytest.approx(17, rel=1e-4)
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.array_equal(after.policy_params, state.policy_params)
    # Where no trajectory is left there is nothing to learn from.
    after, metrics = step(state._replace(dataset=with_impossible(state.dataset, slice(None))), None)
    assert metrics["data/effective_sample_size"] == 0 and metrics["stopped"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_array_equal(after.policy_params, state.policy_params)


@pytest.mark.parametrize("name", ["smoke", "minigolf"])
@pytest.mark.parametrize("ratios", ["self_normalised", "truncated"])
def test_ratios_below_the_smallest_float_leave_the_model_whole(name, ratios):
    small = {"trajectories": 8, "episode_steps": 6, "model_horizon": 4, "model_steps": 3, "eval_episodes": 4}
    config, task, _, init, step = build(name, ratios=ratios, **small)
    state = init(KEY)
    # e^-200 at the third step, and back to one at the fourth.
    shift = jnp.zeros(6).at[2].set(200.0).at[3].set(-200.0)
    rare = state.dataset._replace(behaviour_log_prob=state.dataset.behaviour_log_prob.at[0].add(shift))
    weights, usual = (gamps.step_weights(config, task, state.policy_params, data) for data in (rare, state.dataset))
    assert weights[0, 2] == 0
    np.testing.assert_allclose(weights[0, 4:], usual[0, 4:], rtol=1e-2, atol=1e-6)
    after, metrics = step(state._replace(dataset=rare), None)
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(after.model_params))


def test_a_share_of_effective_trajectories_can_be_asked_for():
    _, _, _, _, step = build(ess_fraction=0.9)
    after, metrics = step(moved(), None)
    assert 1.1 < metrics["data/effective_sample_size"] < 18
    assert metrics["stopped"] == 1.0
    np.testing.assert_array_equal(after.policy_params, moved().policy_params)


def test_fresh_trajectories_replace_the_oldest():
    _, _, _, init, step = build(fresh_trajectories=5)
    state = init(KEY)
    after, metrics = step(state, None)
    same = jax.tree.map(lambda a, b: np.array_equal(a[:15], b[5:]), after.dataset, state.dataset)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(after.dataset.action[15:], state.dataset.action[:5])
    assert metrics["env/steps"] == state.env_steps + after.dataset.mask[15:].sum()


def test_updates_that_are_not_finite_are_refused():
    _, _, _, init, step = build(gradient="per_decision")
    state = init(KEY)
    broken = state.dataset._replace(reward=state.dataset.reward.at[0].set(jnp.nan))
    after, metrics = step(state._replace(dataset=broken), None)
    assert metrics["guard/nonfinite"] == 1
    np.testing.assert_array_equal(after.policy_params, state.policy_params)


def test_minigolf_steps():
    small = {"trajectories": 8, "episode_steps": 6, "rollouts": 2, "model_horizon": 4, "model_steps": 3}
    _, task, system, init, step = build("minigolf", eval_episodes=4, **small)
    state = init(KEY)
    after, metrics = step(state, None)
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.array_equal(after.policy_params, state.policy_params)
    assert task.score_norms(state.policy_params, state.dataset).shape == (8, 6)
    action = system.act(after, jnp.array([10.0]), KEY, deterministic=True)
    assert action.shape == (1,)


def test_every_preset_is_checked():
    for name, config in gamps.presets.items():
        assert gamps.checked(config) is config, name
    assert {"paper", "ml", "pgt", "reinforce", "exact", "minigolf", "minigolf/ml"} <= gamps.presets.keys()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gamma": 1.0}, r"gamma=1.0 must lie in \[0, 1\)"),
        ({"gamma": float("nan")}, "gamma=nan"),
        ({"trajectories": 1}, "trajectories=1 must be at least 2"),
        ({"iterations": 0}, "iterations=0 must be positive"),
        ({"score_order": 3.0}, "score_order=3.0 must be 1, 2 or inf"),
        ({"model_weights": "gradient"}, "model_weights='gradient' is unknown: did you mean 'gradient_aware'"),
        ({"ess_fraction": 1.0}, "ess_fraction=1.0"),
        ({"fresh_trajectories": 21}, "fresh_trajectories=21"),
        ({"gradient": "exact", "domain": "minigolf"}, "gradient='exact' needs a finite problem"),
        ({"terminal_value": "least_squares"}, "terminal_value='least_squares' needs roll-outs"),
        ({"antithetic": True, "rollouts": 3}, "rollouts=3 must be even"),
        ({"value_ridge": 0.0}, "value_ridge=0.0 must be positive"),
        ({"physics": "brax"}, "physics='brax' is unknown"),
    ],
)
def test_senseless_numbers_are_refused(changes, match):
    with pytest.raises(InputError, match=match):
        gamps.make(dataclasses.replace(SMOKE, **changes), gridworld.make())


def test_a_data_set_of_ones_own():
    config, _, _, init, _ = build()
    data = init(KEY).dataset
    state = gamps.make(config, gamps.environment(config), data).init(jax.random.key(3))
    np.testing.assert_array_equal(state.dataset.action, data.action)
    named = gamps.make(config, gamps.environment(config), Dataset(data, "gridworld")).init(jax.random.key(3))
    np.testing.assert_array_equal(named.dataset.action, data.action)
    with pytest.raises(InputError, match="env='gridworld', but the data set was recorded in 'minigolf'"):
        gamps.make(config, gamps.environment(config), Dataset(data, "minigolf"))
    with pytest.raises(InputError, match="behaviour_log_prob is missing"):
        gamps.make(config, gamps.environment(config), data._replace(behaviour_log_prob=None))
    never = data.behaviour_log_prob.at[2, 1].set(-jnp.inf)
    with pytest.raises(InputError, match="behaviour_log_prob=-inf at trajectory 2, step 1"):
        gamps.make(config, gamps.environment(config), data._replace(behaviour_log_prob=never))


def test_a_terminal_value_is_that_of_the_current_policy():
    """Rewards that are linear in a state that halves: the value is linear too, and one step tells it all."""
    config = dataclasses.replace(gamps.presets["minigolf"], terminal_value="least_squares", gamma=0.8, value_ridge=1e-6)
    obs = jax.random.normal(KEY, (30, 4, 2))
    zeros = jnp.zeros((30, 4))
    data = Trajectory(obs, obs[..., :1], obs[..., 0] - 1.0, zeros + 1, 0.5 * obs, zeros, zeros + 1)
    # V = x_0 / (1 - 0.8 / 2) - 1 / (1 - 0.8); the masked rows say otherwise and are not listened to.
    masked = data._replace(mask=data.mask.at[:, 3].set(0.0), reward=data.reward.at[:, 3].set(99.0))
    value_fn = terminal_value(config, lambda s: jnp.concatenate([jnp.ones(1), s]), masked, zeros)
    found = jax.vmap(value_fn)(obs[0])
    np.testing.assert_allclose(found, obs[0, :, 0] / 0.6 - 5.0, rtol=1e-3, atol=1e-3)
    # Outside of what was recorded it is the value of the border.
    first, edge = masked.obs[:, :3].reshape(-1, 2), jnp.array([0.3, 0.0])
    beyond = value_fn(jnp.array([1e6, 0.0]))
    np.testing.assert_allclose(beyond, value_fn(edge.at[0].set(first[:, 0].max())), rtol=1e-5)
    # Rewards of actions that the policy takes e times as often count e times as much.
    log_prob = jnp.broadcast_to(jnp.arange(4.0) == 0, (30, 4)).astype(float)
    constant = data._replace(reward=log_prob, obs=0 * obs, next_obs=0 * obs)
    alone = terminal_value(config, lambda s: jnp.ones(1), constant, log_prob)(obs[0, 0])
    assert alone == pytest.approx(np.e / (np.e + 3) / 0.2, rel=1e-4)
    assert terminal_value(dataclasses.replace(config, terminal_value="none"), None, data, zeros) is None


def test_a_network_model_steps_on_any_task_whose_reward_is_known():
    config = dataclasses.replace(
        gamps.presets["swimmer"], trajectories=4, episode_steps=5, rollouts=2, model_horizon=3, model_steps=2,
        eval_episodes=2, terminal_value="least_squares", antithetic=True,
    )  # fmt: skip
    env = envs.make("pendulum")
    system = gamps.make(config, env)
    state = jax.jit(system.init)(KEY)
    recorded = jax.jit(lambda key: gamps.record(config, gamps.make_task(config, env), key))(KEY)
    np.testing.assert_array_equal(recorded.action, state.dataset.action)
    after, metrics = jax.jit(system.step)(state, None)
    assert all(np.isfinite(value) for value in metrics.values())
    assert after.policy_params["gain"].shape == (1, 3)
    assert not np.array_equal(after.policy_params["gain"], state.policy_params["gain"])
    unknown = envs.make("pendulum")
    with pytest.raises(InputError, match="env='pendulum' has no reward as a function of observations"):
        gamps.make(config, unknown._replace(spec=unknown.spec._replace(reward_fn=None)))


def test_a_host_environment_needs_its_recording():
    env = HostEnv(None, None, None, None, 2, envs.make("pendulum").spec)
    config = dataclasses.replace(gamps.presets["swimmer"], trajectories=2)
    with pytest.raises(InputError, match="env='pendulum' runs on the host, outside the compiled step: pass a dataset"):
        gamps.make(config, env)
    with pytest.raises(InputError, match="env='pendulum' runs on the host, which domain='gridworld' does not"):
        gamps.make(SMOKE, env)
