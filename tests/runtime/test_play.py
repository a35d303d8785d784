"""``python -m jaxhybrid play``."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxhybrid.envs import episodes, gymnasium, pendulum
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import play, policies, programs
from tests.runtime.test_policies import save

NO_GRAPHICS = 77


def numbers(text):
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d,]+\.\d+", text)]


def test_it_earns_what_the_runs_own_evaluation_would_say(tmp_path, capsys):
    directory = save(tmp_path / "run" / "policy", seeds=(3, 4))
    assert play.main([str(tmp_path / "run"), "--episodes", "4", "--seed", "4"]) == 0
    act = policies.act_fn(policies.of_seed(policies.load(directory), 4))
    returns, _ = episodes.episode_returns(
        pendulum.make(), lambda o, k: act(o, k, deterministic=True), programs.evaluation_key(4), num_episodes=4
    )
    printed = numbers(capsys.readouterr().out)
    wanted = [returns.mean(), returns.std(), returns.min(), returns.max(), 200.0]
    np.testing.assert_allclose(printed, wanted, atol=0.006)


def test_actions_are_rescaled_on_a_host_environment(tmp_path, capsys):
    save(tmp_path / "policy")
    command = [str(tmp_path / "policy"), "--env", "gymnasium/Pendulum-v1", "--episodes", "2", "--start-seed", "7"]
    assert play.main(command) == 0
    act = policies.act_fn(policies.load(tmp_path / "policy"))
    bare = gymnasium.make("Pendulum-v1", num_envs=2)

    def torque(obs, keys):
        return 2.0 * jax.vmap(lambda o, k: act(o, k, deterministic=True))(obs, keys)

    returns, _ = episodes.host_episode_returns(bare, jax.jit(torque), programs.evaluation_key(7), num_episodes=2)
    np.testing.assert_allclose(numbers(capsys.readouterr().out)[0], returns.mean(), atol=0.006)


def test_the_first_episode_is_filmed_and_nothing_is_replaced(tmp_path):
    save(tmp_path / "policy")
    command = [str(tmp_path / "policy"), "--episodes", "1", "--video", str(tmp_path / "film")]
    assert play.main(command) == 0
    film = tmp_path / "film" / "episode.gif"
    content = film.read_bytes()
    assert content.startswith(b"GIF89a")
    with pytest.raises(InputError, match="already has"):
        play.main(command)
    assert film.read_bytes() == content


@pytest.mark.parametrize(
    "drawn",
    [
        "from jaxhybrid.envs.brax_frames import render; poses = np.array([[0, 0], [0, 0.6]]); "
        "frames = render('inverted_pendulum', 'spring', poses, width=64, height=48)",
        "from jaxhybrid.envs import gymnasium, gymnasium_frames; env = gymnasium.make('InvertedPendulum-v5'); "
        "state, _ = env.reset(0); after = [state := env.step(state, np.ones((1, 1)))[0] for _ in range(20)]; "
        "poses = np.stack([after[0].physics[0], after[-1].physics[0]]); "
        "frames = gymnasium_frames.render('InvertedPendulum-v5', poses, width=64, height=48)",
    ],
    ids=["brax", "gymnasium"],
)
def test_simulators_draw_their_tasks(drawn):
    # A process of its own, since a graphics library is chosen before MuJoCo is loaded.
    code = (
        "import sys; import numpy as np; from jaxhybrid.runtime import graphics; "
        f"graphics.choose().name or sys.exit({NO_GRAPHICS}); "
        f"{drawn}; assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2; "
        "assert np.ptp(frames[0]) > 20 and np.any(frames[0] != frames[1])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    if result.returncode == NO_GRAPHICS:
        pytest.skip("no graphics library works with MuJoCo here")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "episodes=0 must be at least 1"),
        (["--start-seed", "-1"], "start_seed=-1"),
        (["--seed", "1"], "seed=1 was not trained"),
        (["--env", "pendulun"], "did you mean 'pendulum'"),
        (["--env", "lqr/double_integrator"], r"obs_dim=\[2.0\].*needs \[3.0\]"),
        (["--video", "policy/policy.json"], "is a file"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "policy")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        play.main(["policy", *arguments])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_does_not_exist_is_not_one_without_a_policy(tmp_path):
    with pytest.raises(InputError, match=r"run='.*nowhere' does not exist"):
        play.main([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"has no policy.*--resume"):
        play.main([str(tmp_path)])


def test_a_range_of_actions_that_differs_is_refused(tmp_path):
    spec = pendulum.make().spec._replace(action_low=np.full(1, -np.inf), action_high=np.full(1, np.inf))
    with pytest.raises(InputError, match="action_low"):
        policy = policies.load(save(tmp_path / "policy", spec=spec))
        play.compatible_env("pendulum", policy, 1)
