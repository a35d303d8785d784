"""Every loss, estimator, pure environment and system through the contract of its kind.

A new loss or estimator is found by its signature and must be given a case here.
"""

import functools
import importlib
import inspect
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import envs, estimators, losses, systems
from jaxhybrid.losses.abstract import (
    disambiguation_loss,
    discount_loss,
    reward_loss,
    transition_loss,
    volume_loss,
)
from jaxhybrid.losses.adaptation import Adaptable, Outcomes, adaptation_loss, outcome_loss
from jaxhybrid.losses.context import bottleneck_loss, decoder_loss
from jaxhybrid.losses.context_model import ContextStep, context_model_loss
from jaxhybrid.losses.control_variate import mscv_loss, qprop_loss, svg_loss
from jaxhybrid.losses.critic import entropy_temperature_loss, sequence_squared_error, squared_error
from jaxhybrid.losses.gradient_matching import critic_slope_loss, gradient_matching_loss
from jaxhybrid.losses.model_value import model_value_surrogate, per_decision_surrogate
from jaxhybrid.losses.multi_step import multi_step_loss
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.losses.value import weighted_td_loss
from jaxhybrid.losses.weighted_likelihood import weighted_nll
from jaxhybrid.ops.gaussian import TanhGaussian
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Env, Segment, System, TimeStep, Transition
from tests.systems import cases

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def same_bits(a, b):
    def data(x):
        return jax.random.key_data(x) if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key) else x

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b)


# Losses and estimators: (params, example, key, *, ...) -> (value, aux).

POLICY = {"gain": jnp.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]]), "log_std": jnp.array([-0.5, -1.0])}
OBS = jnp.array([0.5, -1.0, 0.2])


def policy_fn(params, obs):
    return TanhGaussian(params["gain"] @ obs, params["log_std"])


def step_fn(obs, action, key):
    noise = 0.1 * jax.random.normal(key, obs.shape)
    next_obs = 0.9 * obs + 0.3 * jnp.sin(action[0]) + noise
    return next_obs, -jnp.sum(next_obs**2) - action[1], 1.0 - (next_obs[0] > 2.0).astype(obs.dtype)


def q_fn(obs, action):
    return jnp.stack([-jnp.sum(obs**2) + action[0], -jnp.sum(jnp.abs(obs)) - action[1] ** 2])


ABSTRACT = {"encoder": jnp.array([[1.3, -0.2, 0.1], [0.4, 0.9, -0.6]]), "head": jnp.array([0.3, -0.7])}
STEP = Transition(OBS, jnp.array(1), jnp.array(0.4), jnp.array(1.0), 0.5 * OBS)


def encode_fn(params, obs):
    return params["encoder"] @ obs


def head_fn(params, z, action):
    return params["head"] @ z + 0.1 * action


WALK = {"policy_fn": policy_fn, "step_fn": step_fn, "horizon": 2, "gamma": 0.9}

EPISODE = Trajectory(
    obs=jnp.stack([OBS, OBS + 0.3]),
    action=jnp.array([[0.2, -0.1], [0.0, 0.3]]),
    reward=jnp.array([1.0, -0.5]),
    discount=jnp.ones(2),
    next_obs=jnp.stack([OBS + 0.3, OBS - 0.1]),
    behaviour_log_prob=jnp.array([-0.4, 0.2]),
    mask=jnp.ones(2),
)
VALUED = {"policy_fn": policy_fn, "q_fn": lambda s, a, key: jnp.sum(s) * a[0] + jax.random.normal(key), "gamma": 0.9}

NOISE = jnp.array([[0.3, -0.4], [0.1, 0.6]])
SEGMENT = Segment(OBS, policy_fn(POLICY, OBS).reparameterise(NOISE[0]), NOISE, jnp.array(1.3), jnp.array([1.0, 0.0]))
STATE_VALUE = {"value_fn": lambda s: -jnp.sum(s**2)}


def change_log_prob(params, obs, action, next_obs):
    return -jnp.sum((next_obs - obs - params * action[0]) ** 2)


OUTCOMES = Outcomes(jnp.array([[0, 1], [2, 0]]), jnp.array([1, 0]), jnp.array([[2, 0], [2, 1]]), jnp.array([1.0, 0.5]))


def logits_fn(params, obs, action):
    return params[:3] * jnp.sum(obs), params[:2] * action + params[3]


LOSSES = {
    context_model_loss: (
        ABSTRACT,
        ContextStep(STEP, jnp.array([8, 0]), jnp.array([0.2, -0.5]), 0.5 * OBS, jnp.array(1.0)),
        {
            "encode_fn": encode_fn,
            "dynamics_fn": lambda params, z, action, code: z + params["head"] * action + code,
            "reward_fn": lambda params, z, action, goal, code: head_fn(params, z, action) * code[0],
            "discount_fn": lambda params, z, action, goal, code: head_fn(params, z, action) + 0.1 * goal[0],
        },
    ),
    outcome_loss: (
        jnp.array([0.1, 0.2, -0.3, 0.5]),
        (OUTCOMES.obs[0], OUTCOMES.action[0], OUTCOMES.next_obs[0]),
        {"logits_fn": logits_fn},
    ),
    adaptation_loss: (
        Adaptable(jnp.array([0.1, 0.2, -0.3, 0.5]), jnp.array(-1.0)),
        (OUTCOMES, OUTCOMES._replace(obs=1 - OUTCOMES.obs // 2)),
        {"logits_fn": logits_fn},
    ),
    model_value_surrogate: (POLICY, EPISODE, VALUED),
    per_decision_surrogate: (POLICY, EPISODE, {"policy_fn": policy_fn, "gamma": 0.9}),
    weighted_nll: (
        jnp.array([0.1, 0.2, -0.3]),
        EPISODE,
        {"log_prob_fn": change_log_prob, "step_weights": jnp.array([1.0, 0.5])},
    ),
    mscv_loss: (POLICY, SEGMENT, WALK | STATE_VALUE),
    svg_loss: (POLICY, SEGMENT, WALK | STATE_VALUE | {"fresh_paths": 2}),
    qprop_loss: (
        POLICY,
        SEGMENT,
        STATE_VALUE | {"policy_fn": policy_fn, "q_fn": lambda s, a: jnp.sum(s) * a[0] - jnp.sum(a**2)},
    ),
    multi_step_loss: (
        jnp.array([0.9, 0.2]),
        (Transition(*EPISODE[:5]), EPISODE.mask),
        {"predict_fn": lambda params, obs, action: (params[0] * obs + action[0], params[1] * action[1])},
    ),
    weighted_td_loss: (
        jnp.array([0.1, 0.2, -0.3]),
        (Transition(*(leaf[0] for leaf in EPISODE[:5])), jnp.array(1.5)),
        {"value_fn": jnp.dot, "target_fn": jnp.sum, "gamma": 0.9},
    ),
    maac_loss: (POLICY, OBS, WALK | {"q_fn": q_fn, "temperature": 0.1, "num_paths": 2}),
    squared_error: (
        jnp.array([0.3, -0.7]),
        (OBS, jnp.array([0.1, 0.4]), jnp.array(1.5)),
        {"q_fn": lambda params, obs, action: params * jnp.sum(obs) + action[:1]},
    ),
    sequence_squared_error: (
        jnp.array([[0.3, -0.7]]),
        (jnp.ones((3, 1)), jnp.array([1, 0, 1]), jnp.array([0.2, -0.4, 0.5]), jnp.array([1.0, 1.0, 0.0])),
        {"q_fn": lambda params, inputs: jnp.cumsum(inputs, axis=0) @ params},
    ),
    decoder_loss: (
        jnp.array([[0.3, -0.7]]),
        (jnp.ones((3, 1)), jnp.array([1.0, 0.0]), jnp.array([0.2, -0.4])),
        {"decode_fn": lambda params, inputs: jnp.cumsum(inputs, axis=0) @ params},
    ),
    bottleneck_loss: (
        jnp.array([[3.0, 1.0], [2.0, -3.0]]),
        jnp.array(1),
        {"encode_fn": lambda params, task: params[task]},
    ),
    entropy_temperature_loss: (jnp.array(-0.3), jnp.array(1.2), {"target_entropy": -2.0}),
    transition_loss: (
        ABSTRACT,
        STEP,
        {"encode_fn": encode_fn, "dynamics_fn": lambda params, z, action: z + params["head"] * action},
    ),
    reward_loss: (ABSTRACT, STEP, {"encode_fn": encode_fn, "reward_fn": head_fn}),
    discount_loss: (ABSTRACT, STEP, {"encode_fn": encode_fn, "discount_fn": head_fn, "gamma": 0.9}),
    disambiguation_loss: (ABSTRACT, (OBS, 0.5 * OBS), {"encode_fn": encode_fn}),
    volume_loss: (ABSTRACT, 2.0 * OBS, {"encode_fn": encode_fn}),
    gradient_matching_loss: (
        ABSTRACT,
        (OBS, jnp.array(1)),
        {
            "encode_fn": encode_fn,
            "q_fn": lambda params, z: jnp.sin(params["head"] * z + z[::-1]),
            "plan_fn": lambda z, action: jnp.sum(jnp.cos(z)) * (1.0 + action),
        },
    ),
    critic_slope_loss: (
        {"gain": jnp.array([0.3, -0.7])},
        (OBS, jnp.array([0.1, 0.4])),
        {
            "q_fn": lambda params, obs, action: jnp.sum(obs) + jnp.sum(jnp.sin(params["gain"] * action)),
            "plan_fn": lambda obs, action, key: jnp.sum(action**2) * (1.0 + 0.1 * jax.random.normal(key)),
        },
    ),
}
ESTIMATORS = {
    estimators.control_variate: (POLICY, SEGMENT, WALK | STATE_VALUE | {"eta": {"gain": 0.7, "log_std": 0.2}}),
    estimators.model_value: (POLICY, EPISODE, VALUED),
    estimators.per_decision: (POLICY, EPISODE, {"policy_fn": policy_fn, "gamma": 0.9, "past_rewards": True}),
    estimators.score_function: (POLICY, OBS, WALK | {"value_fn": lambda s: -jnp.sum(s**2)}),
    estimators.pathwise: (POLICY, OBS, WALK | {"value_fn": lambda s: -jnp.sum(s**2)}),
}
ALL = LOSSES | ESTIMATORS


def name_of(value):
    return value.__name__ if callable(value) else ""


def public_functions(package):
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        yield from (getattr(module, name) for name in module.__all__)


def positional(fn):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in inspect.signature(fn).parameters.values() if parameter.kind in kinds]


@pytest.mark.parametrize(
    ("package", "known"), [(losses, LOSSES), (estimators, ESTIMATORS)], ids=["losses", "estimators"]
)
def test_every_member_has_a_case(package, known):
    members = {
        fn
        for fn in public_functions(package)
        if inspect.isfunction(fn) and [p.name for p in positional(fn)][2:3] == ["key"]
    }
    assert members == set(known)


@pytest.mark.parametrize("fn", ALL, ids=name_of)
def test_signature(fn):
    params, _, key = positional(fn)
    assert params.name.endswith("params") or params.name.startswith("log_")
    assert key.name == "key"
    assert all(p.default is inspect.Parameter.empty for p in positional(fn))
    assert all(
        p.kind is inspect.Parameter.KEYWORD_ONLY
        for p in inspect.signature(fn).parameters.values()
        if p not in positional(fn)
    )
    assert inspect.getdoc(fn).count("\n\n") >= 2, "one line, the equation, Args"


def gradient_of(fn):
    """``(params, example, key) -> (grads, aux)`` of a loss or an estimator, with the loss among the aux."""
    _, _, bound = ALL[fn]
    estimator = partial(fn, **bound)
    return estimators.of_loss(estimator) if fn in LOSSES else estimator


@functools.cache
def compiled(fn):
    return jax.jit(gradient_of(fn))


@pytest.mark.parametrize("fn", ALL, ids=name_of)
def test_values_gradients_and_traces(fn):
    params, example, bound = ALL[fn]
    run = compiled(fn)
    grads, aux = run(params, example, KEYS[0])
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert all(g.shape == p.shape and np.isfinite(g).all() for g, p in zip(*map(jax.tree.leaves, (grads, params))))
    assert any(jnp.any(jnp.abs(g) > 1e-6) for g in jax.tree.leaves(grads))
    assert all(isinstance(name, str) and value.shape == () and np.isfinite(value) for name, value in aux.items())
    if fn in LOSSES:
        loss, own_aux = jax.eval_shape(partial(fn, **bound), params, example, KEYS[0])
        assert loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating)
        assert isinstance(own_aux, dict)

    same_bits(run(params, example, KEYS[0]), (grads, aux))
    run(jax.tree.map(lambda x: x + 0.1, params), example, KEYS[1])
    assert run._cache_size() == 1
    close(gradient_of(fn)(params, example, KEYS[0]), (grads, aux))


@pytest.mark.parametrize("fn", ALL, ids=name_of)
def test_vmap_is_a_loop(fn):
    params, example, _ = ALL[fn]
    examples = jax.tree.map(lambda x: jnp.stack([x, x + 0.1, x - 0.2]).astype(x.dtype), example)
    together = jax.jit(jax.vmap(gradient_of(fn), in_axes=(None, 0, 0)))(params, examples, KEYS)
    alone = [compiled(fn)(params, jax.tree.map(lambda x, i=i: x[i], examples), KEYS[i]) for i in range(3)]
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


# Pure environments: those that need no simulator.

PURE = [name for name in envs.names() if not name.startswith(("brax/", "gymnasium/", "mbbl/", "mujoco_v1/"))]


@functools.cache
def environment(name):
    env = envs.make(name)
    return env, jax.jit(env.reset), jax.jit(env.step)


def action_of(env):
    if env.spec.num_actions is not None:
        return jnp.array(1)
    return jnp.linspace(0.3, -0.4, env.spec.action_dim)


@pytest.mark.parametrize("name", PURE)
def test_environment_shapes_and_facts(name):
    env, reset, step = environment(name)
    assert isinstance(env, Env)
    spec = env.spec
    env_state, obs = reset(KEY)
    action = action_of(env)
    after, time_step = step(env_state, action, KEYS[0])
    assert isinstance(time_step, TimeStep)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, env_state)
    assert obs.shape == time_step.obs.shape == (spec.obs_shape or (spec.obs_dim,))
    assert obs.size == spec.obs_dim
    assert obs.dtype == time_step.obs.dtype == time_step.reward.dtype == jnp.float32
    assert time_step.reward.shape == time_step.terminated.shape == time_step.truncated.shape == ()
    assert time_step.terminated.dtype == time_step.truncated.dtype == bool
    assert spec.action_low.shape == spec.action_high.shape == (spec.action_dim,)
    assert (spec.action_low < spec.action_high).all()
    if spec.reward_fn is not None:
        close(spec.reward_fn(obs, action, time_step.obs), time_step.reward)
    if spec.terminated_fn is not None:
        assert spec.terminated_fn(obs, action, time_step.obs) == time_step.terminated
    assert spec.name == name


@pytest.mark.parametrize("name", PURE)
def test_environment_steps_are_pure(name):
    env, reset, step = environment(name)
    env_state, _ = reset(KEY)
    action = action_of(env)
    alone = [step(env_state, action, k) for k in KEYS]
    same_bits(step(env_state, action, KEYS[0]), alone[0])
    step(alone[0][0], action, KEYS[1])
    assert step._cache_size() == 1
    close(env.step(env_state, action, KEYS[0]), alone[0])
    close(env.reset(KEYS[1]), reset(KEYS[1]))
    together = jax.vmap(step, in_axes=(None, None, 0))(env_state, action, KEYS)
    close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


@pytest.mark.parametrize("name", PURE)
def test_environment_is_truncated_at_its_limit_and_not_before(name):
    env, reset, _ = environment(name)
    env_state, _ = reset(KEY)

    def advance(carry, _):
        carry, time_step = env.step(carry, jnp.zeros_like(action_of(env)), KEY)
        return carry, time_step.truncated

    truncated = jax.jit(lambda s: jax.lax.scan(advance, s, None, length=env.spec.max_episode_steps)[1])(env_state)
    assert truncated.tolist() == [False] * (env.spec.max_episode_steps - 1) + [True]


@pytest.mark.parametrize("name", PURE)
def test_environment_is_differentiable_as_declared(name):
    env, reset, _ = environment(name)
    env_state, _ = reset(KEY)
    for declared, pick in (
        (env.spec.differentiable_transition, lambda t: jnp.sum(t.obs)),
        (env.spec.differentiable_reward, lambda t: t.reward),
    ):
        if declared:
            gradient = jax.grad(lambda a, pick=pick: pick(env.step(env_state, a, KEY)[1]))(action_of(env))
            assert np.isfinite(gradient).all() and np.any(gradient != 0)


# Systems: the smoke preset of each.


def system_modules():
    for info in pkgutil.iter_modules(systems.__path__, systems.__name__ + "."):
        module = importlib.import_module(info.name)
        if hasattr(module, "make"):
            yield info.name.split(".")[-1]


def test_every_system_has_a_case():
    assert list(system_modules()) == ["dream", "gamps", "gmas", "maac", "mscv"]


def test_system_steps_have_the_shape_of_scan():
    _, system, init, step = cases.build("smoke/sac")
    assert isinstance(system, System)
    states, metrics = cases.run("smoke/sac", 3)
    for state, logged in zip(states[1:], metrics):
        assert jax.tree.structure(state) == jax.tree.structure(states[0])
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, states[0])
        assert list(logged) == list(metrics[0])
        assert all(isinstance(name, str) and value.shape == () for name, value in logged.items())
    assert step._cache_size() == 1
    same_bits(step(states[1], None), (states[2], metrics[1]))
    same_bits(init(jax.random.key(0)), states[0])
    assert len({tuple(jax.random.key_data(state.key).tolist()) for state in states}) == len(states)


def test_system_actions_are_pure_and_inside_the_box():
    _, system, _, _ = cases.build("smoke/sac")
    state = cases.run("smoke/sac", 3)[0][3]
    act = jax.jit(partial(system.act, deterministic=False))
    action = act(state, jnp.ones(3), KEY)
    assert action.shape == (1,)
    assert jnp.abs(action[0]) < 1
    same_bits(act(state, jnp.ones(3), KEY), action)
    assert act(state, jnp.ones(3), KEYS[1]) != action
