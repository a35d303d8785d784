from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid import segments
from jaxhybrid.errors import InputError
from jaxhybrid.ops.categorical import Categorical
from jaxhybrid.ops.gaussian import Gaussian, TanhGaussian
from jaxhybrid.trajectories import Trajectory
from jaxhybrid.types import Transition

T, K, GAMMA = 4, 2, 0.5
# An episode of three steps, recorded at length four; the padding repeats the last step, and its reward is none.
OBS = jnp.array([[1.0], [2.0], [3.0], [3.0]])
NOISE = jnp.array([[0.1], [-0.2], [0.3], [9.0]])
REWARD = jnp.array([1.0, 2.0, 4.0, jnp.nan])


def policy(obs, kind=Gaussian):
    return kind(0.1 * obs, jnp.full(1, -1.0))


def episode(*, terminated=0.0, mask=(1.0, 1.0, 1.0, 0.0), kind=Gaussian):
    action = jax.vmap(lambda s, n: policy(s, kind).reparameterise(n))(OBS, NOISE)
    discount = jnp.array([1.0, 1.0, 1.0 - terminated, 1.0 - terminated])
    return Trajectory(OBS, action, REWARD, discount, OBS + 1.0, jnp.zeros(T), jnp.array(mask))


def batch(**kwargs):
    return jax.tree.map(lambda x: x[None], episode(**kwargs))


build = partial(segments.of_trajectory, horizon=K, gamma=GAMMA)


def test_noise_and_masks_of_every_step():
    found = build(episode(), noise=NOISE)
    np.testing.assert_allclose(found.noise[..., 0], [[0.1, -0.2], [-0.2, 0.3], [0.3, 0.0], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(found.mask, [[1, 1], [1, 1], [1, 0], [0, 0]])
    np.testing.assert_array_equal(found.obs, OBS)
    # The last row of a recording that is full has no successor either.
    full = build(episode(mask=(1.0,) * 4), noise=NOISE)
    np.testing.assert_array_equal(full.mask, [[1, 1], [1, 1], [1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("terminated", "value_fn", "last"),
    # 4, and half the value 8 of the observation 4 after the last step where the episode did not terminate.
    [(0.0, None, 4.0), (0.0, lambda s: 2.0 * s[0], 8.0), (1.0, lambda s: 2.0 * s[0], 4.0)],
)
def test_returns_end_with_the_episode(terminated, value_fn, last):
    found = jax.jit(lambda e: build(e, noise=NOISE, value_fn=value_fn))(episode(terminated=terminated))
    # R_2 = last, R_1 = 2 + R_2 / 2, R_0 = 1 + R_1 / 2.
    second = 2.0 + last / 2
    np.testing.assert_allclose(found.empirical_return, [1.0 + second / 2, second, last, 0.0])


@pytest.mark.float64
@pytest.mark.parametrize("kind", [Gaussian, TanhGaussian])
def test_noise_is_inferred_from_actions(kind):
    recorded = build(episode(kind=kind), noise=NOISE)
    inferred = build(episode(kind=kind), policy_fn=partial(policy, kind=kind))
    np.testing.assert_allclose(inferred.noise, recorded.noise, rtol=1e-5, atol=1e-6)


def saturated():
    dataset = batch(kind=TanhGaussian)
    return dataset._replace(action=dataset.action.at[0, 1].set(1.0))


@pytest.mark.parametrize(
    ("dataset", "knobs", "message"),
    [
        (batch(), {"horizon": 5, "noise": NOISE[None]}, "horizon=5 must be at least 1 and no longer"),
        (batch(), {"horizon": 0, "noise": NOISE[None]}, "horizon=0"),
        (batch(), {}, "noise is missing"),
        (batch(), {"policy_fn": lambda s: Categorical(jnp.zeros(3))}, "Categorical has no infer_noise"),
        (saturated(), {"policy_fn": partial(policy, kind=TanhGaussian)}, "trajectory 0, step 1 is saturated"),
        (batch(), {"noise": NOISE}, "noise has the shape"),
        (batch(mask=(1.0,) * 4), {"noise": NOISE[None]}, "trajectory 0 is not finished"),
        (batch(mask=(1.0,) * 4), {"noise": NOISE[None], "time_limit": 5}, "trajectory 0 is not finished"),
    ],
)
def test_bad_data_are_refused(dataset, knobs, message):
    with pytest.raises(InputError, match=message):
        segments.check(dataset, **({"horizon": K} | knobs))


@pytest.mark.parametrize(
    ("dataset", "knobs"),
    [
        (batch(), {}),
        (batch(mask=(1.0,) * 4, terminated=1.0), {}),
        (batch(mask=(1.0,) * 4), {"time_limit": 4}),
        (batch(mask=(1.0,) * 4), {"value_fn": lambda s: s[0]}),
        (saturated(), {}),
        (batch(), {"noise": None, "policy_fn": policy}),
    ],
)
def test_good_data_pass(dataset, knobs):
    segments.check(dataset, **({"horizon": K, "noise": NOISE[None]} | knobs))


def test_bad_arguments_are_refused_under_tracing_too():
    with pytest.raises(InputError, match="noise is missing"):
        jax.jit(build)(episode())
    with pytest.raises(InputError, match="horizon=9"):
        segments.of_trajectory(episode(), horizon=9, gamma=GAMMA, noise=NOISE)


# A recording that goes on across the ends of episodes: two steps that terminate, three up to a time limit, one more.

ENDED = jnp.array([False, True, False, False, True, False])
RECORDING = Transition(
    obs=jnp.arange(6.0)[:, None],
    action=jnp.zeros((6, 1)),
    reward=jnp.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
    discount=jnp.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
    next_obs=jnp.arange(1.0, 7.0)[:, None],
)
ROWS = 0.1 * jnp.arange(1.0, 7.0)[:, None]


def value(obs):
    return 10.0 * obs[0]


def test_ends_are_terminations_and_time_limits():
    ended, steps = segments.ends(RECORDING.discount, jnp.array(0), time_limit=3)
    np.testing.assert_array_equal(ended, ENDED)
    assert steps == 1
    # An episode that is two steps old reaches its limit at once.
    ended, steps = segments.ends(RECORDING.discount, jnp.array(2), time_limit=3)
    np.testing.assert_array_equal(ended, [True, True, False, False, True, False])


@pytest.mark.parametrize("lambda_", [1.0, 0.5])
def test_returns_of_a_recording(lambda_):
    found = segments.of_recording(RECORDING, ENDED, ROWS, horizon=3, gamma=0.5, value_fn=value, lambda_=lambda_)

    # Backwards, from the definition. The fifth step is the last of its episode by the limit: V(5) = 50 follows.
    def before(reward, following, next_value):
        return reward + 0.5 * ((1 - lambda_) * next_value + lambda_ * following)

    fifth = 16.0 + 0.5 * 50.0
    fourth = before(8.0, fifth, 40.0)
    third = before(4.0, fourth, 30.0)
    first = before(1.0, 2.0, 10.0)
    np.testing.assert_allclose(found.empirical_return, [first, 2.0, third, fourth, fifth, 32.0 + 0.5 * 60.0], rtol=1e-5)


def test_noise_of_a_recording_stops_at_the_ends():
    found = segments.of_recording(RECORDING, ENDED, ROWS, horizon=3, gamma=0.5, value_fn=value)
    mask = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(found.mask, mask)
    rows = np.minimum(np.arange(6)[:, None] + np.arange(3)[None], 5)
    np.testing.assert_allclose(found.noise[..., 0], np.asarray(ROWS)[rows, 0] * np.array(mask), rtol=1e-6)


def test_a_recording_of_one_episode_is_a_trajectory():
    whole = batch(mask=(1.0,) * 4, terminated=1.0)
    alone = build(jax.tree.map(lambda x: x[0], whole), noise=NOISE)
    steps = Transition(*(whole._asdict()[name][0] for name in Transition._fields))
    steps = steps._replace(discount=jnp.array([1.0, 1.0, 1.0, 0.0]))
    found = segments.of_recording(
        steps, jnp.array([False] * 3 + [True]), NOISE, horizon=K, gamma=GAMMA, value_fn=lambda s: 3.0 * s[0]
    )
    wanted = segments.of_trajectory(
        Trajectory(*steps[:5], jnp.zeros(T), jnp.ones(T)), horizon=K, gamma=GAMMA, noise=NOISE
    )
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)
    assert alone.obs.shape == found.obs.shape


def test_a_recording_shorter_than_the_horizon_is_refused():
    with pytest.raises(InputError, match="horizon=7"):
        segments.of_recording(RECORDING, ENDED, ROWS, horizon=7, gamma=0.5, value_fn=value)
