from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import segments, trajectories
from jaxhybrid.envs import lqr
from jaxhybrid.losses.batching import batched
from jaxhybrid.losses.control_variate import mscv_loss
from jaxhybrid.ops.gaussian import Gaussian
from jaxhybrid.trust_region import fisher_vector_product, mean_kl, natural_direction, trust_region_step
from tests.estimators.lqr_case import NOISE, case, exact_value
from tests.oracles import linear_policy, lqr_step

pytestmark = pytest.mark.float64

# A Gaussian with linear mean, N(K s, diag(sigma^2)). With S = mean_b s_b s_b' the divergence from K to K + D is
# 1/2 sum_i (D S D')_ii / sigma_i^2, so the Fisher information of K is S / sigma_i^2, row by row, and that of log sigma
# is 2 on the diagonal.
RNG = np.random.default_rng(0)
# NumPy keeps the digits until a test asks for them.
OBS = RNG.normal(size=(40, 3)) * [1.0, 0.3, 2.0]
S = OBS.T @ OBS / 40
PARAMS = {"gain": np.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]]), "log_std": np.array([-0.5, 0.3])}
VARIANCE = np.exp(2.0 * PARAMS["log_std"])[:, None]
GRADS = {"gain": np.array([[1.0, -2.0, 0.5], [0.2, 0.1, -1.0]]), "log_std": np.array([0.7, -0.4])}


def policy_fn(params, obs):
    return Gaussian(params["gain"] @ obs, params["log_std"])


kl_fn = partial(mean_kl, obs=OBS, policy_fn=policy_fn, behaviour_params=PARAMS)


def close(a, b, rtol):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol), a, b)


def inner(a, b):
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)))


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_products_with_the_fisher_information(damping):
    product = fisher_vector_product(kl_fn, PARAMS, damping=damping)(GRADS)
    expected = {
        "gain": GRADS["gain"] @ S / VARIANCE + damping * GRADS["gain"],
        "log_std": (2.0 + damping) * GRADS["log_std"],
    }
    close(product, expected, 1e-10)


def test_the_divergence_is_the_closed_form():
    moved = PARAMS | {"gain": PARAMS["gain"] + GRADS["gain"]}
    expected = 0.5 * jnp.sum(jnp.diag(GRADS["gain"] @ S @ GRADS["gain"].T) / VARIANCE[:, 0])
    assert kl_fn(moved) == pytest.approx(float(expected), rel=1e-12)
    assert kl_fn(PARAMS) == 0


def test_conjugate_gradients_solve_for_the_natural_gradient():
    direction = natural_direction(fisher_vector_product(kl_fn, PARAMS, damping=0.1), GRADS)
    expected = {
        "gain": jnp.stack([jnp.linalg.solve(S / v + 0.1 * jnp.eye(3), g) for v, g in zip(VARIANCE, GRADS["gain"])]),
        "log_std": GRADS["log_std"] / 2.1,
    }
    # Eight unknowns: conjugate gradients end in eight steps, or earlier by the residual of 1e-5.
    close(direction, expected, 1e-4)
    # Fewer iterations leave more.
    rough = natural_direction(fisher_vector_product(kl_fn, PARAMS, damping=0.1), GRADS, iterations=2)
    assert jnp.abs(rough["gain"] - expected["gain"]).max() > 1e-3


def step(loss_fn=None, grads=GRADS, params=PARAMS, **knobs):
    linear = loss_fn or (lambda p: inner(p, GRADS))
    return trust_region_step(params, grads, loss_fn=linear, kl_fn=kl_fn, **({"damping": 0.0} | knobs))


def test_of_the_mean_alone_the_whole_step_uses_up_the_trust_region():
    # Only the gain has a slope: the divergence is quadratic, so the step that its model allows is exact, and ends on
    # the bound itself. Rounding puts it on either side, depending on the bound and on the version of JAX.
    grads = GRADS | {"log_std": jnp.zeros(2)}
    fractions = [step(lambda p: inner(p, grads), grads, max_kl=m)[1]["fraction"] for m in (0.01 * (1 + 1e-9), 0.02)]
    assert fractions == [1, 1]
    params, aux = step(lambda p: inner(p, grads), grads)
    natural = jnp.linalg.solve(S, grads["gain"].T).T * VARIANCE
    length = jnp.sqrt(0.02 / jnp.sum(natural * grads["gain"]))
    # Conjugate gradients stop at a residual of 1e-5.
    np.testing.assert_allclose(params["gain"], PARAMS["gain"] - length * natural, rtol=1e-4)
    np.testing.assert_allclose(params["log_std"], PARAMS["log_std"])
    assert aux["kl"] == pytest.approx(0.01, rel=1e-8)
    assert aux["fraction"] == aux["accepted"] == 1
    # The loss is linear: its slope promises what is kept, length * g' F^-1 g.
    assert aux["improvement"] == pytest.approx(float(length * jnp.sum(natural * grads["gain"])), rel=1e-6)
    assert aux["improvement"] == pytest.approx(float(aux["expected_improvement"]), rel=1e-9)


def test_a_hard_bound_shortens_what_the_quadratic_model_would_allow():
    # Shrinking the deviation costs more than the quadratic model says: KL grows like 1/2 exp(2 x).
    grads = jax.tree.map(jnp.zeros_like, GRADS) | {"log_std": jnp.array([1.0, 0.0])}
    knobs = {"loss_fn": lambda p: p["log_std"][0], "grads": grads, "max_kl": 0.5}
    hard, hard_aux = step(**knobs)
    soft, soft_aux = step(**knobs, hard_kl=False)
    # Whole step: F = 2, x = 1/2, x' F x = 1/2, length sqrt(2), a fall of sqrt(1/2) in log sigma.
    assert soft["log_std"][0] == pytest.approx(-0.5 - 0.5**0.5, rel=1e-9)
    x = 0.5**0.5
    assert soft_aux["kl"] == pytest.approx(0.5 * (np.exp(2 * x) - 1) - x, rel=1e-9)
    assert soft_aux["kl"] > 0.5 >= hard_aux["kl"]
    assert (soft_aux["fraction"], hard_aux["fraction"]) == (1.0, 0.5)
    assert hard["log_std"][0] == pytest.approx(-0.5 - 0.5 * x, rel=1e-9)


def test_the_line_search_halves_until_the_promise_is_kept():
    # Along the step the loss is promised * (c f^2 - f): it improves by f - c f^2 of the promise, at least a tenth of f
    # iff f <= 0.9 / c. With c = 3: 1/4.
    whole, _ = step(hard_kl=False)
    change = jax.tree.map(jnp.subtract, whole, PARAMS)
    promised = -inner(GRADS, change)

    def loss_fn(p):
        f = inner(jax.tree.map(jnp.subtract, p, PARAMS), change) / inner(change, change)
        return promised * (3.0 * f**2 - f)

    params, aux = step(loss_fn, hard_kl=False)
    assert aux["fraction"] == 0.25
    assert aux["improvement"] == pytest.approx(float(promised) * (0.25 - 3 / 16), rel=1e-9)
    close(params, jax.tree.map(lambda p, c: p + 0.25 * c, PARAMS, change), 1e-9)
    params, aux = step(loss_fn, hard_kl=False, backtracks=2)
    close(params, PARAMS, 0)
    assert aux["accepted"] == aux["fraction"] == aux["kl"] == 0


@pytest.mark.parametrize("value", [0.0, jnp.nan, jnp.inf])
def test_a_gradient_without_direction_moves_nothing(value):
    params, aux = step(grads=jax.tree.map(lambda g: jnp.full_like(g, value), GRADS))
    close(params, PARAMS, 0)
    assert aux["accepted"] == 0
    assert all(np.isfinite(x) for x in aux.values())


def test_a_loss_that_is_not_finite_is_not_accepted():
    params, aux = step(lambda p: jnp.where(jnp.all(p["gain"] == PARAMS["gain"]), 0.0, jnp.nan))
    close(params, PARAMS, 0)
    assert aux["accepted"] == 0


def test_jit_and_vmap_change_nothing():
    alone = [step(max_kl=m) for m in (0.01, 0.1)]
    together = jax.jit(jax.vmap(lambda m: step(max_kl=m)))(jnp.array([0.01, 0.1]))
    close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), 1e-6)


def test_from_episodes_to_a_better_policy():
    """Collection, segments, the surrogate's slope and one step, whose promise the exact return keeps."""
    problem, gain = case()
    env, policy, model = lqr.make(problem, max_episode_steps=5), linear_policy(NOISE), lqr_step(problem)

    def act(obs, key):
        return policy(gain, obs).sample_and_log_prob(key)

    @jax.jit
    def update(key, eta):
        keys = jax.random.split(key, 200)
        episodes = jax.vmap(partial(trajectories.collect, env, act_fn=act, length=5))(keys)
        build = partial(
            segments.of_trajectory, horizon=2, gamma=0.9, policy_fn=partial(policy, gain), value_fn=exact_value
        )
        batch = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), jax.vmap(build)(episodes))
        functions = {"policy_fn": policy, "step_fn": model, "value_fn": exact_value, "behaviour_params": gain}
        loss = batched(partial(mscv_loss, horizon=2, gamma=0.9, eta=eta, **functions))
        grads = jax.grad(lambda g: loss(g, batch, key)[0])(gain)
        divergence = partial(mean_kl, obs=batch.obs, policy_fn=policy, behaviour_params=gain)
        return trust_region_step(gain, grads, loss_fn=lambda g: loss(g, batch, key)[0], kl_fn=divergence)

    for eta in (0.0, 1.0):
        better, aux = update(jax.random.key(0), eta)
        assert aux["accepted"] == 1
        assert 0.001 < aux["kl"] <= 0.01
        assert lqr.expected_return(problem, better, NOISE) > lqr.expected_return(problem, gain, NOISE)
