import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxhybrid.envs import minigolf
from jaxhybrid.errors import InputError

KEY = jax.random.key(0)


def stroke(position, action, **options):
    env = minigolf.make(noise=0.0, **options)
    state = minigolf.MinigolfState(jnp.asarray(position), jnp.asarray(0))
    return env.step(state, jnp.array([action]), KEY)[1]


def test_a_stroke_by_hand():
    # d = 5/7 0.131 9.81 = 0.9179; from 5 m, 2 rad/s: 5 - 4 / 1.8359 = 2.8212 m.
    after = stroke(5.0, 2.0)
    assert after.obs[0] == pytest.approx(2.8212, abs=1e-3)
    assert after.reward == -1.0 and not after.terminated
    # Into the hole between v_min = sqrt(2 d x) = 3.030 and v_max = sqrt(7.332 + v_min^2) = 4.064.
    assert [float(stroke(5.0, a).reward) for a in (3.02, 3.04, 4.05, 4.08)] == [-1.0, 0.0, 0.0, -100.0]
    assert bool(stroke(5.0, 3.04).terminated) and bool(stroke(5.0, 4.08).terminated)
    # A full stroke, clipped to 5 rad/s, rolls 13.6 m.
    assert stroke(19.9, 9.0, far_friction=None).obs[0] == pytest.approx(19.9 - 13.62, abs=0.01)


@pytest.mark.parametrize(("far", "roll"), [(0.19, 9.39), (0.5, 3.57), (1.0, 1.78)])
def test_far_friction_at_the_start_of_the_stroke(far, roll):
    assert 19.9 - stroke(19.9, 5.0, far_friction=far).obs[0] == pytest.approx(roll, abs=0.01)


def test_far_friction_along_the_path():
    far = 5 / 7 * 0.5 * 9.81
    near = 5 / 7 * 0.131 * 9.81
    # One metre of sand costs far, the rest of the energy goes on the near ground.
    expected = 40 / 3 - (0.5 * 25 - far) / near
    after = stroke(40 / 3 + 1.0, 5.0, far_friction=0.5, path_integrated=True)
    assert after.obs[0] == pytest.approx(expected, abs=1e-3)
    assert stroke(19.0, 2.0, far_friction=0.5, path_integrated=True).obs[0] == pytest.approx(19.0 - 2.0 / far, abs=1e-4)


def test_noise_is_truncated():
    env = minigolf.make(noise=0.6, far_friction=None)
    state = minigolf.MinigolfState(jnp.asarray(15.0), jnp.asarray(0))
    after = jax.vmap(lambda k: env.step(state, jnp.array([2.0]), k)[1].obs[0])(jax.random.split(KEY, 20_000))
    eps = jnp.sqrt((15.0 - after) * 2 * 5 / 7 * 0.131 * 9.81) / 2.0 - 1.0
    assert np.abs(eps).max() <= 1.0 + 1e-4
    # Standard deviation of a normal of 0.6 cut at 1: 0.6 sqrt(1 - 2 b phi(b) / (2 Phi(b) - 1)), b = 1 / 0.6.
    assert eps.std() == pytest.approx(0.468, abs=0.01)


@pytest.mark.parametrize(
    ("options", "optimum"),
    [
        ({"far_friction": None}, -0.32),
        ({"far_friction": 0.5}, -0.49),
        ({"far_friction": 0.5, "path_integrated": True}, -0.48),
        ({"far_friction": 1.0}, -0.80),
        ({"far_friction": 1.0, "path_integrated": True}, -0.79),
    ],
)
def test_best_returns_without_noise(options, optimum):
    """Worked out independently by dynamic programming, to two digits."""
    assert minigolf.optimal_return(noise=0.0, **options) == pytest.approx(optimum, abs=0.013)


def test_best_return_of_one_stroke_from_the_distribution_function():
    x = (np.arange(400)[:, None] + 0.5) / 20
    a = np.linspace(0.01, 5.0, 4000)[None]
    low = np.sqrt(2 * 0.91789 * x)
    high = np.sqrt(7.332 + low**2)

    def below(eps):
        outside = scipy.stats.norm.cdf(-1 / 0.3)
        inside = scipy.stats.norm.cdf(np.clip(eps, -1.0, 1.0) / 0.3)
        return (inside - outside) / (1 - 2 * outside)

    short, over = below(low / a - 1), 1 - below(high / a - 1)
    expected = np.max(-short - 100 * over, axis=1).mean()
    found = minigolf.optimal_return(far_friction=None, max_episode_steps=1, nodes=401)
    assert found == pytest.approx(expected, abs=2e-3)
    # The most likely holes in one stroke, worked out independently to two digits.
    for distance, chance in ((1, 0.82), (3, 0.53), (5, 0.39), (10, 0.23), (20, 0.10)):
        row = 20 * distance - 1 if distance == 20 else 20 * distance
        assert np.max(1 - short - over, axis=1)[row] == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"friction": 0.0}, "friction=0.0 must be positive"),
        ({"far_friction": -1.0}, "far_friction=-1.0 must be positive"),
        ({"noise": -0.1}, "noise=-0.1 must be 0 or more"),
        ({"max_episode_steps": 0}, "max_episode_steps=0"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    with pytest.raises(InputError, match=match):
        minigolf.make(**options)
