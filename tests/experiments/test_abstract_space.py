"""The picture of the simple maze: what its figures mean, what is refused, and a run end to end."""

import json

import jax
import numpy as np
import pytest

from experiments import abstract_space
from jaxhybrid.envs import simple_maze
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


def case():
    """Cells that are their own abstract states, and a model that is right."""
    cells = np.argwhere(~simple_maze.walls())
    z = cells.astype(float)
    return cells, z, z[abstract_space._targets(cells)]


def test_moves_lead_where_the_environment_says():
    cells, z, _ = case()
    env = simple_maze.make()
    targets = abstract_space._targets(cells)
    step = jax.jit(env.step)
    for i in (0, 18, len(cells) - 1):  # two corners, and the door's neighbour
        for action in range(4):
            state = simple_maze.SimpleMazeState(jax.numpy.asarray(cells[i]), jax.numpy.zeros((), int))
            after, _ = step(state, jax.numpy.asarray(action), jax.random.key(0))
            np.testing.assert_array_equal(after.position, z[targets[i, action]])


def test_a_right_model_and_one_that_stands_still():
    cells, z, predicted = case()
    facts = abstract_space._facts(cells, z, predicted)
    assert facts == {
        "right moves": 1.0,
        "right at walls": 1.0,
        "mean error": 0.0,
        "mean distance to the nearest other cell": 1.0,
    }
    still = abstract_space._facts(cells, z, np.repeat(z[:, None], 4, axis=1))
    assert (still["right moves"], still["right at walls"]) == (0.0, 1.0)
    # Every move that is not blocked is off by one cell. The rooms have 3 x 6 and 2 x 6 cells, with 3 x 5 + 2 x 6 and
    # 2 x 5 + 6 pairs of neighbours, and the door has two.
    assert still["mean error"] == pytest.approx(2 * (27 + 16 + 2) / (4 * 31))


def test_the_picture_is_drawn(tmp_path):
    cells, z, predicted = case()
    path = tmp_path / "picture.png"
    abstract_space._draw(path, cells, z, predicted, abstract_space._facts(cells, z, predicted))
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--run", "a", "--out", "b"], "both given"), (["--run", "nowhere"], "nowhere")],
)
def test_bad_input_is_refused(arguments, why):
    with pytest.raises(InputError, match=why):
        abstract_space.main(arguments)


@pytest.mark.parametrize("name", ["abstract_space.json", "abstract_space.png"])
def test_what_was_drawn_is_kept(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name} already"):
        abstract_space.main(["--run", str(tmp_path), "--seed", "1"])
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_a_smoke_run_ends_with_a_picture(tmp_path):
    out = tmp_path / "run"
    assert abstract_space.main(["--preset", "smoke", "--out", str(out)]) == 0
    assert (out / "abstract_space.png").exists()
    facts = json.loads((out / "abstract_space.json").read_text())
    assert 0.0 <= facts["right moves"] <= 1.0
    for name in ("json", "png"):
        (out / f"abstract_space.{name}").unlink()
    with pytest.raises(InputError, match="seed=3 was not trained"):
        abstract_space.main(["--run", str(out), "--seed", "3"])
