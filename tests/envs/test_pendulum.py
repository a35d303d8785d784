import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.envs import pendulum
from jaxhybrid.errors import InputError
from tests.oracles import finite_difference


def state_at(angle, speed):
    return pendulum.PendulumState(jnp.asarray(angle, float), jnp.asarray(speed, float), jnp.zeros((), jnp.int32))


@pytest.mark.float64
# At the bottom, where the classic angle wraps; at the top; at full speed and beyond the action bounds.
@pytest.mark.parametrize("state", [(np.pi, 0.0, 0.0), (0.0, 0.5, 1.0), (2.0, 25.0, -1.5), (-3.1, -9.0, 4.0)])
def test_step_is_smooth(state):
    env = pendulum.make()

    def outcome(x):
        state, time_step = env.step(state_at(x[0], x[1]), x[2:], jax.random.key(0))
        # Fixed weights, so that no coordinate can hide behind another.
        return jnp.sin(state.angle) + 0.7 * state.speed + 0.3 * time_step.reward + time_step.obs @ jnp.arange(1.0, 4.0)

    x = jnp.array(state)
    np.testing.assert_allclose(jax.grad(outcome)(x), finite_difference(outcome, x), rtol=1e-8, atol=1e-9)


@pytest.mark.float64
def test_hundred_steps_are_differentiable():
    env = pendulum.make()

    def total(actions):
        def advance(state, action):
            state, time_step = env.step(state, action[None], jax.random.key(0))
            return state, time_step.reward

        return jax.lax.scan(advance, state_at(3.0, 0.0), actions)[1].sum()

    actions = 0.5 * jnp.sin(0.3 * jnp.arange(100.0))
    gradient = jax.jit(jax.grad(total))(actions)
    direction = jnp.cos(jnp.arange(100.0))
    fd = finite_difference(lambda t: total(actions + t * direction), jnp.zeros(()))
    np.testing.assert_allclose(gradient @ direction, fd, rtol=1e-7)


@pytest.mark.float64
def test_energy_is_conserved_without_friction_and_torque():
    env = pendulum.make(friction=0.0)

    def energy(state):  # 1/2 I w^2 + m g l / 2 cos(angle), I = 1/3
        return state.speed**2 / 6.0 + 9.81 / 2.0 * jnp.cos(state.angle)

    def advance(state, _):
        state, _ = env.step(state, jnp.zeros(1), jax.random.key(0))
        return state, energy(state)

    start = state_at(2.0, 0.0)
    _, energies = jax.lax.scan(advance, start, None, length=2000)
    # A symplectic step wobbles about the true energy, within dt times the largest power, and does not drift.
    assert jnp.abs(energies - energy(start)).max() < 1.0
    assert abs(energies[:1000].mean() - energies[1000:].mean()) < 0.02


def run(act_fn):
    env = pendulum.make()

    def advance(state, _):
        state, time_step = env.step(state, act_fn(state), jax.random.key(0))
        return state, time_step

    return jax.lax.scan(advance, state_at(jnp.pi - 0.01, 0.0), None, length=200)[1]


def test_must_be_swung_up():
    pushed = run(lambda state: jnp.ones(1))
    assert pushed.obs[:, 0].max() < 0.5, "full torque alone must not lift it"
    pumped = run(lambda state: jnp.sign(state.speed + 1e-3)[None])
    assert pumped.obs[:, 0].max() > 0.95, "pushing along the speed must"


def test_episode_follows_its_spec():
    time_steps = run(lambda state: jnp.full(1, 0.3))
    env = pendulum.make()
    rewards = jax.vmap(env.spec.reward_fn)(time_steps.obs, jnp.full((200, 1), 0.3), time_steps.obs)
    np.testing.assert_allclose(time_steps.reward, rewards, rtol=1e-6)
    assert not time_steps.terminated.any()
    np.testing.assert_array_equal(time_steps.truncated, np.arange(200) == 199)
    _, obs = env.reset(jax.random.key(0))
    assert obs.shape == (env.spec.obs_dim,) and obs[0] ** 2 + obs[1] ** 2 == pytest.approx(1.0, rel=1e-6)
    best = env.spec.reward_fn(obs, jnp.zeros(1), jnp.array([1.0, 0.0, 0.0]))
    assert best == 0 and (rewards < 0).all()


@pytest.mark.parametrize("options", [{"max_torque": 0.0}, {"friction": -1.0}, {"max_episode_steps": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        pendulum.make(**options)
