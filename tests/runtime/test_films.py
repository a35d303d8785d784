"""Episodes as pictures."""

import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxhybrid import envs
from jaxhybrid.envs import episodes
from jaxhybrid.runtime import drawings, films, graphics
from tests.runtime import toy

KEY = jax.random.key(3)
NO_GRAPHICS = graphics.Backend(None, ("egl",))


def act(obs, key):
    return 0.3 * obs[:1] + 0.1 * jax.random.normal(key, (1,))


@pytest.mark.parametrize("make", [toy.env, toy.host_env], ids=["pure", "host"])
def test_the_recorded_episode_is_the_first_that_is_played(make):
    env = make()
    if make is toy.env:
        returns, lengths = episodes.episode_returns(env, act, KEY, num_episodes=3)
    else:
        returns, lengths = episodes.host_episode_returns(env, jax.vmap(act), KEY, num_episodes=3)
    spec = env.spec._replace(name="lqr/toy")
    episode = films.record(env._replace(spec=spec), act, KEY, num_episodes=3)
    assert episode.total == pytest.approx(float(returns[0]), rel=1e-5) and episode.length == lengths[0] == 5
    assert len(episode.poses) == 6


def test_an_episode_ends_where_it_terminates():
    env = toy.env()

    def step(env_state, action, key):
        env_state, time_step = env.step(env_state, action, key)
        return env_state, time_step._replace(
            terminated=env_state[1] >= 3, reward=jnp.where(env_state[1] > 3, jnp.nan, 1.0)
        )

    spec = env.spec._replace(name="lqr/toy")
    episode = films.record(env._replace(step=step, spec=spec), act, KEY, num_episodes=1)
    assert episode.length == 3 and episode.total == 3.0 and len(episode.poses) == 4


@pytest.mark.parametrize("name", ["pendulum", "lqr/double_integrator"])
def test_own_environments_are_drawn_in_real_time_without_graphics(name):
    env = envs.make(name, max_episode_steps=12)
    film = films.film(env, films.record(env, act, KEY, num_episodes=1), NO_GRAPHICS)
    assert film.reason == "" and film.shows == f"{12 * env.spec.dt:.1f} s, in real time"
    with Image.open(io.BytesIO(film.content)) as image:
        assert image.n_frames == 13 and image.size == (320, 240)
        assert image.info["duration"] == pytest.approx(1000 * env.spec.dt)


def test_steps_too_short_to_be_seen_are_skipped_and_long_episodes_cut(monkeypatch):
    drawn = []
    draw = drawings.pendulum
    monkeypatch.setattr(drawings, "pendulum", lambda poses, **size: drawn.append(poses) or draw(poses, **size))
    monkeypatch.setattr(films, "_MOST_FRAMES", 4)
    env = envs.make("pendulum")
    env = env._replace(spec=env.spec._replace(dt=0.01))
    angles = np.arange(30)
    episode = films.Episode(np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1), 0.0, 29)
    film = films.film(env, episode, NO_GRAPHICS)
    # Every fourth step, 0.04 s apart; three intervals between four pictures.
    assert film.shows == "0.1 s, in real time"
    np.testing.assert_array_equal(drawn[0], episode.poses[[0, 4, 8, 12]])
    with Image.open(io.BytesIO(film.content)) as image:
        assert image.n_frames == 4 and image.info["duration"] == 40


def test_what_cannot_be_drawn_says_why():
    env = envs.make("pendulum")
    episode = films.Episode(np.zeros((3, 2)), 0.0, 2)
    simulated = env._replace(spec=env.spec._replace(name="brax/ant/spring"))
    assert films.film(simulated, episode, NO_GRAPHICS) == (b"", "", NO_GRAPHICS.reason)
    assert "EGL" in NO_GRAPHICS.reason
    # Poses of another size than the task's: whatever the renderer raises becomes the reason.
    film = films.film(env, episode._replace(poses=np.zeros((3, 1))), NO_GRAPHICS)
    assert film.content == b"" and "the renderer failed" in film.reason and "\n" not in film.reason


def test_a_task_of_2017_is_filmed_by_the_physics_that_it_wraps():
    env = envs.make("mujoco_v1/reacher", max_episode_steps=2)
    episode = films.record(env, lambda obs, key: jnp.zeros(2), KEY, num_episodes=1)
    assert episode.length == 2 and len(episode.poses) == 3 and np.any(episode.poses[0] != episode.poses[2])
    backend = films.backend_for(env.spec.name)
    film = films.film(env, episode, backend)
    assert (film.content == b"") == (backend.name is None), film.reason


def test_the_rod_points_where_the_angle_says():
    angles = np.array([0.0, math.pi / 2, math.pi])
    obs = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    up, right, down = drawings.pendulum(obs, width=160, height=120)

    def tip(picture):
        red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
        rows, columns = np.nonzero((red > 150) & (blue < 60))
        return rows.mean() / 120, columns.mean() / 160

    assert tip(up)[0] < 0.2 and tip(down)[0] > 0.8
    assert tip(right)[0] == pytest.approx(0.5, abs=0.05) and tip(right)[1] > 0.7


def test_graphics_are_only_tried_where_a_simulator_draws(monkeypatch):
    monkeypatch.setattr(graphics, "choose", lambda: NO_GRAPHICS)
    assert films.backend_for("lqr/double_integrator").tried == films.backend_for("pendulum").tried == ()
    assert films.backend_for("mbbl/hopper/spring") == films.backend_for("gymnasium/Ant-v5") == NO_GRAPHICS


def test_a_graphics_library_that_does_not_exist_is_not_chosen(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert graphics.choose() == graphics.Backend(None, ("nonsense",))
