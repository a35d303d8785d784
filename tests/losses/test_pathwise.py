import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import networks
from jaxhybrid.envs import lqr
from jaxhybrid.losses.pathwise import maac_loss
from jaxhybrid.ops.gaussian import TanhGaussian
from tests.oracles import check_monte_carlo_mean, linear_policy, lqr_start, lqr_step

NOISE, DRAWS = 0.3, 20_000
PROBLEM_KEY, DRAW_KEY = jax.random.key(0), jax.random.key(1)


def lqr_case():
    problem = lqr.random_problem(PROBLEM_KEY, 2, 1, gamma=0.9, start_noise=0.2, process_noise=0.1)
    # A start far from the origin: the gradient is then large next to its noise.
    return problem._replace(start_mean=jnp.array([2.0, -1.5])), jnp.array([[0.1, -0.2]])


@functools.cache
def sampler(horizon, **knobs):
    """Draws of the ascent direction and of the value, each from a start state of its own."""
    problem, gain = lqr_case()

    def one(key, gamma, critic):
        start_key, key = jax.random.split(key)
        loss = partial(
            maac_loss,
            policy_fn=linear_policy(NOISE),
            step_fn=lqr_step(problem),
            q_fn=lambda s, a: critic * lqr.q_value(problem, gain, s, a, NOISE),
            horizon=horizon,
            gamma=gamma,
            **knobs,
        )
        grads, aux = jax.grad(loss, has_aux=True)(gain, lqr_start(problem, start_key), key)
        return -grads, aux["value"]

    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


@functools.cache
def lqr_draws(horizon, *, gamma=0.9, critic=1.0, **knobs):
    return sampler(horizon, **knobs)(jax.random.split(DRAW_KEY, DRAWS), gamma, critic)


def truth(horizon):
    problem, gain = lqr_case()
    return lqr.policy_gradient(problem, gain, horizon=horizon, noise_std=NOISE)


@pytest.mark.float64
@pytest.mark.parametrize("horizon", [0, 3])
def test_a_perfect_model_and_critic_give_the_truncated_gradient(horizon):
    problem, gain = lqr_case()
    grads, values = lqr_draws(horizon)
    check_monte_carlo_mean(grads, truth(horizon))
    check_monte_carlo_mean(values, lqr.expected_return(problem, gain, NOISE))


@pytest.mark.float64
def test_the_bias_against_the_full_gradient_is_the_truncation():
    grads, _ = lqr_draws(3)
    full = truth(None)
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(grads, full)
    missing = np.linalg.norm(grads.mean(0) - full) / np.linalg.norm(full)
    assert missing == pytest.approx(np.linalg.norm(truth(3) - full) / np.linalg.norm(full), rel=0.05)


@pytest.mark.float64
@pytest.mark.parametrize("mistake", [{"gamma": 1.0}, {"critic": 0.0}, {"gamma": 0.9 * 0.97}])
def test_planted_biases_are_noticed(mistake):
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(lqr_draws(3, **mistake)[0], truth(3))


@pytest.mark.float64
def test_an_off_by_one_horizon_is_noticed():
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(lqr_draws(0)[0], truth(1))


@pytest.mark.float64
def test_averages_over_paths_and_actions_change_the_variance_only():
    single, _ = lqr_draws(3)
    several, _ = lqr_draws(3, num_paths=2, num_terminal_actions=2)
    check_monte_carlo_mean(several, truth(3))
    assert several.var() < single.var()


def call(**knobs):
    arguments = {
        "policy_fn": lambda params, obs: TanhGaussian(params * obs, jnp.full(1, -1.0)),
        "step_fn": lambda s, a, noise: (s + a, s[0], jnp.ones(())),
        "q_fn": lambda s, a: a[0],
        "horizon": 0,
        "gamma": 0.5,
    }
    return maac_loss(jnp.array(0.5), jnp.array([1.0]), jax.random.key(0), **(arguments | knobs))


@pytest.mark.parametrize("horizon", [0, 1])
def test_the_entropy_is_that_of_the_paths_own_first_action(horizon):
    # The value is a_0 itself: as the critic's, or as the only reward.
    own = {"q_fn": lambda s, a: a[0] if horizon == 0 else jnp.zeros(()), "horizon": horizon}
    loss, aux = call(**own, step_fn=lambda s, a, noise: (s, a[0], jnp.ones(())), temperature=0.3)
    expected = TanhGaussian(jnp.array([0.5]), jnp.full(1, -1.0)).log_prob(aux["value"][None])
    assert aux["log_prob"] == pytest.approx(float(expected), abs=1e-4)
    assert loss == pytest.approx(0.3 * float(aux["log_prob"]) - float(aux["value"]), rel=1e-5)


def test_of_several_critics_the_smallest_mean_counts():
    _, first = call(q_fn=lambda s, a: jnp.stack([a[0], 3 + a[0]]))
    _, second = call(q_fn=lambda s, a: jnp.stack([3 + a[0], a[0]]))
    assert first["value"] == second["value"] < 1.0
    # Critics a and -a over many wide actions around 0: the smaller mean is -|mean a|, near 0; the mean of the smaller,
    # -mean |a|, is far from it.
    _, aux = call(
        policy_fn=lambda params, s: TanhGaussian(params * 0.0 * s, jnp.ones(1)),
        step_fn=still,
        q_fn=lambda s, a: jnp.stack([a[0], -a[0]]),
        horizon=1,
        num_terminal_actions=64,
    )
    assert -0.2 < 2 * aux["value"] <= 0.0


def still(s, a, noise):
    return s, jnp.zeros(()), jnp.ones(())


def test_a_terminated_path_earns_nothing_more():
    def ends_at_once(s, a, noise):
        return s + 1.0, 2.0 * s[0], jnp.zeros(())

    assert call(horizon=3, step_fn=ends_at_once, q_fn=lambda s, a: jnp.array(100.0))[1]["value"] == 2.0


def test_recorded_noise_takes_the_place_of_keys():
    def adds(s, a, noise):
        return s + noise, s[0] + noise, jnp.ones(())

    # Paths 1 -> 2 -> 4 and 1 -> 1 -> 1: rewards (2, 4) and (1, 1), critics 4 and 1, gamma = 1/2:
    # (2 + 2 + 1) and (1 + 1/2 + 1/4), averaged.
    noise = jnp.array([[1.0, 2.0], [0.0, 0.0]])
    _, aux = call(horizon=2, num_paths=2, step_fn=adds, q_fn=lambda s, a: s[0], step_noise=noise)
    assert aux["value"] == pytest.approx((5.0 + 1.75) / 2)


@pytest.mark.parametrize("bad", [{"horizon": -1}, {"num_paths": 0}, {"num_terminal_actions": 0}])
def test_bad_counts_are_refused(bad):
    with pytest.raises((AssertionError, ValueError)):
        call(**bad)


def test_the_gradient_survives_any_rounding_of_the_compiler():
    """Unoptimised code rounds twice-computed values in two ways; the derivative of a plain minimum is then NaN."""
    key = jax.random.key(0)
    critic = networks.critics(3, 1, (16, 16))
    params = jax.jit(critic.init)(key)

    def loss(gain, obs, key):
        return maac_loss(
            gain,
            obs,
            key,
            policy_fn=lambda p, s: TanhGaussian(p @ s, jnp.zeros(1)),
            step_fn=lambda s, a, noise: (0.9 * s + a, s[0], jnp.ones(())),
            q_fn=partial(critic.apply, params),
            horizon=1,
            gamma=0.99,
        )[0]

    obs, keys, gain = jax.random.normal(key, (64, 3)), jax.random.split(key, 64), jnp.ones((1, 3))
    gradient = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))).lower(gain, obs, keys)
    unoptimised = gradient.compile(compiler_options={"xla_backend_optimization_level": 0})(gain, obs, keys)
    assert np.isfinite(unoptimised).all()
    np.testing.assert_allclose(unoptimised, gradient.compile()(gain, obs, keys), rtol=1e-3, atol=1e-4)
