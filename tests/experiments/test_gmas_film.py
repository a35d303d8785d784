"""The film of an episode with its plans: the picture, what is refused, and a film of a run."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import gmas, gmas_compare, gmas_film
from jaxhybrid.envs import maze, maze_pool
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


def test_the_plan_is_drawn_where_it_leads():
    pool = maze_pool.make_pool("fair", 1, 0)
    state = maze.start(pool, 0)
    env = maze.make(pool=pool)
    _, picture = env.reset(jax.random.key(0))
    down = 0 if not pool.walls[0, 2, 1] else 1
    step = {"picture": np.asarray(picture), "state": state, "plan": [down, 2, 2], "total": -0.1}
    frame = gmas_film._frame(step)
    assert frame.shape == (384, 384, 3)
    plan = (frame == np.array(gmas_film._PLAN_COLOUR)).all(-1)
    blocks = plan.reshape(8, 48, 8, 48).any(axis=(1, 3))
    # A step, and two that lead back or into the wall of the ring: the start and one cell next to it.
    expected = np.zeros((8, 8), bool)
    expected[1, 1] = expected[tuple(np.array([1, 1]) + maze.MOVES[down])] = True
    np.testing.assert_array_equal(blocks, expected)
    plain = gmas_film._frame(step | {"plan": []})
    assert not (plain == np.array(gmas_film._PLAN_COLOUR)).all(-1).any()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--maze", "-1"], "maze=-1"), (["--depth", "-2"], "depth=-2"), ([], "holds no run")],
)
def test_bad_input_is_refused(arguments, why, tmp_path):
    with pytest.raises(InputError, match=why):
        gmas_film.main(["--run", str(tmp_path), *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["manifest.json", "mine.gif"])
def test_no_file_of_the_run_is_replaced(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}' exists"):
        gmas_film.main(["--run", str(tmp_path), "--out", name.partition(".")[0]])
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_a_film_of_a_run_and_its_returns(tmp_path):
    out = tmp_path / "run"
    options = [
        "--config.test-depths",
        "--config.maze-side",
        "6",
        "--config.maze-keys",
        "1",
        "--config.train-mazes",
        "96",
    ]
    assert gmas.main(["--preset", "smoke", *options, "--out", str(out), "--no-tensorboard"]) == 0
    assert gmas_film.main(["--run", str(out), "--depth", "1"]) == 0
    facts = json.loads((out / "episode.json").read_text())
    film = Image.open(out / "episode.gif")
    assert film.n_frames == len(facts["actions"]) + 1 and -5.001 <= facts["return"] <= 3.0
    with pytest.raises(InputError, match="exists"):
        gmas_film.main(["--run", str(out)])
    path = tmp_path / "compare.json"
    assert gmas_compare.main([f"one={out}", f"same={out}", "--depths", "1", "--out", str(path)]) == 0
    compared = json.loads(path.read_text())
    assert compared["returns"]["one"] == compared["returns"]["same"]
    returns = np.array(compared["returns"]["one"]["1"])
    assert len(returns) == compared["mazes"] and (returns <= np.array(compared["oracle"]) + 1e-5).all()
    # The film is of one of these mazes.
    assert np.isclose(returns, facts["return"], atol=1e-4).any()
