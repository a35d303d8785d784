import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import lqr
from jaxhybrid.errors import InputError
from tests.oracles import check_monte_carlo_mean, finite_difference

pytestmark = pytest.mark.float64

NOISE = 0.3


def random_case(seed, obs_dim=3, action_dim=2, **options):
    problem_key, gain_key = jax.random.split(jax.random.key(seed))
    problem = lqr.random_problem(problem_key, obs_dim, action_dim, process_noise=0.2, **options)
    # The free motion has norm 0.9 and B about 1: gains of 0.05 leave the closed loop stable.
    return problem, 0.05 * jax.random.normal(gain_key, (action_dim, obs_dim))


def double_integrator_case(gamma):
    return lqr.double_integrator(gamma), jnp.array([[-0.1, -0.3]])


# Figures computed independently of this implementation, by a Riccati iteration and finite differences.
@pytest.mark.parametrize(
    ("gamma", "gain"), [(1.0, (0.95762, 1.70705)), (0.99, (0.80414, 1.51821)), (0.9, (0.15776, 0.49042))]
)
def test_optimal_gain_of_the_double_integrator(gamma, gain):
    got = lqr.optimal_gain(lqr.double_integrator(gamma))
    np.testing.assert_allclose(got, -np.array([gain]), atol=6e-6)


@pytest.mark.parametrize(
    ("gamma", "gradient", "rtol"), [(0.9, (-3.54068, -2.19532), 3e-6), (0.99, (-985.837, -226.650), 1e-6)]
)
def test_policy_gradient_of_the_double_integrator(gamma, gradient, rtol):
    got = lqr.policy_gradient(*double_integrator_case(gamma), noise_std=NOISE)
    np.testing.assert_allclose(got, np.array([gradient]), rtol=rtol)


@pytest.mark.parametrize(
    ("gamma", "errors"),
    [
        (0.9, (0.904, 0.817, 0.738, 0.666, 0.541, 0.319, 0.106, 0.003)),
        (0.99, (0.982, 0.964, 0.946, 0.928, 0.892, 0.803, 0.634, 0.262)),
    ],
)
def test_truncation_error_shrinks_with_the_horizon(gamma, errors):
    problem, gain = double_integrator_case(gamma)
    full = lqr.policy_gradient(problem, gain, noise_std=NOISE)
    for horizon, error in zip((0, 1, 2, 3, 5, 10, 20, 50), errors, strict=True):
        truncated = lqr.policy_gradient(problem, gain, horizon=horizon, noise_std=NOISE)
        assert jnp.abs(truncated - full).sum() / jnp.abs(full).sum() == pytest.approx(error, abs=5.1e-4)


def test_cost_to_go_of_the_optimum():
    problem = lqr.double_integrator(0.9)
    gain = lqr.optimal_gain(problem)
    curvature = -jax.hessian(lambda obs: lqr.value(problem, gain, obs))(jnp.zeros(2))
    np.testing.assert_allclose(curvature, [[9.745, 3.5924], [3.5924, 10.9879]], rtol=2e-5)


def test_optimal_gain_is_stationary_and_a_maximum():
    problem, _ = random_case(0)
    gain = lqr.optimal_gain(problem)
    gradient = lqr.policy_gradient(problem, gain, noise_std=NOISE)
    np.testing.assert_allclose(gradient, np.zeros((2, 3)), atol=1e-11)
    shifts = 0.01 * np.random.default_rng(0).standard_normal((8, 2, 3)) * (np.arange(8) > 0)[:, None, None]
    returns = jax.jit(jax.vmap(lambda shift: lqr.expected_return(problem, gain + shift, NOISE)))(shifts)
    assert (returns[1:] < returns[0]).all()


@pytest.mark.parametrize("noise_std", [0.0, 0.3, (0.2, 0.5)])
def test_policy_gradient_is_the_derivative_of_the_return(noise_std):
    problem, gain = random_case(1)
    noise_std = jnp.asarray(noise_std, float)
    got = lqr.policy_gradient(problem, gain, noise_std=noise_std)
    fd = finite_difference(lambda k: lqr.expected_return(problem, k, noise_std), gain)
    np.testing.assert_allclose(got, fd, rtol=1e-6, atol=1e-8)
    autodiff = jax.jit(jax.grad(lqr.expected_return, argnums=1))(problem, gain, noise_std)
    np.testing.assert_allclose(got, autodiff, rtol=1e-10)


@pytest.mark.parametrize("horizon", [0, 1, 4])
def test_truncated_gradient_is_that_of_a_frozen_critic(horizon):
    """Differentiates ``sum_{t<H} gamma^t r_t + gamma^H Q(s_H, a_H)`` in moments, with ``Q`` at a gain held fixed."""
    problem, gain = random_case(2)
    A, B, Q, R, gamma = problem.A, problem.B, problem.Q, problem.R, problem.gamma
    action_noise = NOISE**2 * jnp.eye(2)
    step_noise = B @ action_noise @ B.T + problem.process_scale @ problem.process_scale.T

    # The critic is quadratic in x = (s, a): its Hessian is all that a second moment needs.
    critic = jax.jit(jax.hessian(lambda x: lqr.q_value(problem, gain, x[:3], x[3:], NOISE)))(jnp.zeros(5))

    def objective(gain):
        moment = jnp.outer(problem.start_mean, problem.start_mean) + problem.start_scale @ problem.start_scale.T
        total = 0.0
        for t in range(horizon):
            action_moment = gain @ moment @ gain.T + action_noise
            total -= 0.5 * gamma**t * (jnp.trace(Q @ moment) + jnp.trace(R @ action_moment))
            moment = (A + B @ gain) @ moment @ (A + B @ gain).T + step_noise
        joint = jnp.block([[moment, moment @ gain.T], [gain @ moment, gain @ moment @ gain.T + action_noise]])
        return total + 0.5 * gamma**horizon * jnp.trace(critic @ joint)

    truncated = lqr.policy_gradient(problem, gain, horizon=horizon, noise_std=NOISE)
    np.testing.assert_allclose(truncated, jax.jit(jax.grad(objective))(gain), rtol=1e-10)


def test_truncated_gradient_tends_to_the_full_one():
    problem, gain = random_case(3)
    full = lqr.policy_gradient(problem, gain, noise_std=NOISE)
    long = lqr.policy_gradient(problem, gain, horizon=800, noise_std=NOISE)
    np.testing.assert_allclose(long, full, rtol=1e-12)


def test_bellman_equations():
    problem, gain = random_case(4)
    obs = jnp.array([0.3, -1.0, 0.7])
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    # Gauss-Hermite with three nodes per coordinate is exact for the quadratic integrand.
    grid = jnp.stack(jnp.meshgrid(*[jnp.asarray(nodes)] * 2, indexing="ij"), -1).reshape(-1, 2)
    mass = jnp.prod(jnp.stack(jnp.meshgrid(*[jnp.asarray(weights)] * 2, indexing="ij"), -1).reshape(-1, 2), -1)
    expected_q = mass @ jax.vmap(lambda eps: lqr.q_value(problem, gain, obs, gain @ obs + NOISE * eps, NOISE))(grid)
    np.testing.assert_allclose(expected_q, lqr.value(problem, gain, obs, NOISE), rtol=1e-12)


def test_return_is_the_mean_value_of_the_start():
    problem, gain = random_case(5)
    # Antithetic pairs along the columns of the scale have the start's mean and, times sqrt(D), its covariance.
    offsets = jnp.concatenate([problem.start_scale.T, -problem.start_scale.T]) * 3**0.5
    values = jax.vmap(lambda d: lqr.value(problem, gain, problem.start_mean + d, NOISE))(offsets)
    np.testing.assert_allclose(values.mean(), lqr.expected_return(problem, gain, NOISE), rtol=1e-12)


def simulate(problem, gain, obs, key, steps, episodes):
    env = lqr.make(problem, max_episode_steps=steps)

    def episode(key):
        def advance(state, key):
            noise_key, env_key = jax.random.split(key)
            action = gain @ state.obs + NOISE * jax.random.normal(noise_key, (gain.shape[0],))
            state, time_step = env.step(state, action, env_key)
            return state, time_step.reward

        start = lqr.LQRState(obs, jnp.zeros((), jnp.int32))
        _, rewards = jax.lax.scan(advance, start, jax.random.split(key, steps))
        return rewards @ problem.gamma ** jnp.arange(steps)

    return jax.jit(jax.vmap(episode))(jax.random.split(key, episodes))


def test_value_by_simulation():
    problem, gain = random_case(6, gamma=0.8)
    obs = jnp.array([1.0, -0.5, 0.2])
    # The tail after 80 steps weighs 0.8^80 = 2e-8.
    returns = simulate(problem, gain, obs, jax.random.key(0), 80, 4000)
    check_monte_carlo_mean(returns, lqr.value(problem, gain, obs, NOISE))
    with pytest.raises(AssertionError, match="bias of"):
        check_monte_carlo_mean(returns, lqr.value(problem, gain, obs, 0.0))


def test_second_moments_by_simulation():
    problem, gain = random_case(7)
    env = lqr.make(problem)

    def visit(key):
        reset_key, scan_key = jax.random.split(key)
        state, _ = env.reset(reset_key)

        def advance(state, key):
            noise_key, env_key = jax.random.split(key)
            action = gain @ state.obs + NOISE * jax.random.normal(noise_key, (2,))
            return env.step(state, action, env_key)[0], jnp.outer(state.obs, state.obs)

        return jax.lax.scan(advance, state, jax.random.split(scan_key, 4))[1]

    draws = jax.jit(jax.vmap(visit))(jax.random.split(jax.random.key(1), 40_000))
    check_monte_carlo_mean(draws, lqr.second_moments(problem, gain, horizon=3, noise_std=NOISE))


def test_jit_vmap_and_loop_agree():
    problem, gain = random_case(8)
    gains = gain[None] + 0.01 * jax.random.normal(jax.random.key(0), (3, *gain.shape))
    for horizon in (None, 2):

        def gradient(k, horizon=horizon):
            return lqr.policy_gradient(problem, k, horizon=horizon, noise_std=NOISE)

        loop = jnp.stack([gradient(k) for k in gains])
        np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(gains), loop, rtol=1e-12)
    problems = jax.tree.map(lambda x: jnp.stack([x, x]), problem)
    optimum = lqr.optimal_gain(problem)
    np.testing.assert_allclose(jax.jit(jax.vmap(lqr.optimal_gain))(problems)[1], optimum, rtol=1e-10)


def test_second_derivatives_exist():
    problem, gain = double_integrator_case(0.9)
    hessian = jax.jit(jax.hessian(lqr.expected_return, argnums=1))(problem, lqr.optimal_gain(problem), NOISE).reshape(
        2, 2
    )
    assert (jnp.linalg.eigvalsh(hessian) < 0).all()
    by_autodiff = jax.grad(lqr.expected_return, argnums=2)(problem, gain, NOISE)
    fd = finite_difference(lambda sigma: lqr.expected_return(problem, gain, sigma), jnp.asarray(NOISE))
    np.testing.assert_allclose(by_autodiff, fd, rtol=1e-8)


@pytest.mark.parametrize("radius", [1.001, 1.5, 30.0])
def test_unstable_gain_is_refused_or_not_a_number(radius):
    problem = lqr.double_integrator(1.0 - 1e-9)._replace(A=radius * jnp.eye(2))
    gain = jnp.zeros((1, 2))
    with pytest.raises(InputError, match="unstable"):
        lqr.expected_return(problem, gain)
    assert jnp.isnan(jax.jit(lqr.expected_return)(problem, gain))
    assert jnp.isnan(jax.jit(lqr.policy_gradient)(problem, gain)).all()
    # The discount stabilises: sqrt(0.4) * 1.5 < 1.
    assert jnp.isfinite(jax.jit(lqr.expected_return)(lqr.double_integrator(0.4)._replace(A=1.5 * jnp.eye(2)), gain))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"A": jnp.ones((2, 3))}, "problem.A has shape"),
        ({"A": jnp.ones(2)}, "must be matrices"),
        ({"Q": jnp.ones((3, 3))}, "problem.Q has shape"),
        ({"R": jnp.ones((1, 2))}, "problem.R has shape"),
        ({"gamma": jnp.asarray(1.0)}, "problem.gamma=1.0"),
        ({"gamma": jnp.asarray(-0.1)}, "problem.gamma=-0.1"),
        ({"start_mean": jnp.ones(3)}, "problem.start_mean"),
        ({"B": jnp.ones((2, 1), int)}, "problem.B has dtype"),
    ],
)
def test_bad_problems_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        lqr.expected_return(lqr.double_integrator()._replace(**change), jnp.zeros((1, 2)))


def test_bad_arguments_are_refused():
    problem = lqr.double_integrator()
    with pytest.raises(InputError, match="gain has shape"):
        lqr.expected_return(problem, jnp.zeros((2, 1)))
    with pytest.raises(InputError, match="noise_std has shape"):
        lqr.expected_return(problem, jnp.zeros((1, 2)), jnp.ones(2))
    with pytest.raises(InputError, match="horizon=-1"):
        lqr.policy_gradient(problem, jnp.zeros((1, 2)), horizon=-1)
    with pytest.raises(InputError, match="positive definite"):
        lqr.optimal_gain(problem._replace(R=jnp.zeros((1, 1))))
    with pytest.raises(InputError, match="max_episode_steps=0"):
        lqr.make(problem, max_episode_steps=0)


def test_environment_follows_its_spec():
    problem, gain = random_case(9)
    env = lqr.make(problem, "lqr/test", max_episode_steps=2)
    state, obs = env.reset(jax.random.key(0))
    action = gain @ obs + 3.0
    next_state, time_step = env.step(state, action, jax.random.key(1))
    assert (env.spec.obs_dim, env.spec.action_dim) == (3, 2)
    np.testing.assert_allclose(time_step.reward, env.spec.reward_fn(obs, action, time_step.obs), rtol=1e-12)
    assert not time_step.terminated and not time_step.truncated
    assert env.step(next_state, action, jax.random.key(2))[1].truncated
    jacobian = jax.jacrev(lambda a: env.step(state, a, jax.random.key(1))[1].obs)(action)
    np.testing.assert_allclose(jacobian, problem.B, rtol=1e-12)


def test_only_the_symmetric_part_of_a_cost_matters():
    problem, gain = random_case(10)
    skew = jnp.array([[0.0, 1.0, 2.0], [-1.0, 0.0, 3.0], [-2.0, -3.0, 0.0]])
    skewed = problem._replace(Q=problem.Q + skew)
    np.testing.assert_allclose(lqr.expected_return(skewed, gain), lqr.expected_return(problem, gain), rtol=1e-12)
    np.testing.assert_allclose(lqr.policy_gradient(skewed, gain), lqr.policy_gradient(problem, gain), rtol=1e-12)
