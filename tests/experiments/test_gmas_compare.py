"""Runs of GMAS compared maze by maze: what is refused, and the mazes and the oracle behind the table."""

import dataclasses

import numpy as np
import pytest

from experiments import gmas_compare
from experiments._gmas import trained
from jaxhybrid.errors import InputError
from jaxhybrid.systems import gmas

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "must name a run"),
        (["label"], "label=directory"),
        (["label=nowhere"], "nowhere"),
        (["label=nowhere", "label=elsewhere"], "label=elsewhere' has a label that is given before"),
        (["label=nowhere", "--depths", "-1"], "depths"),
    ],
)
def test_bad_input_is_refused(arguments, why, tmp_path):
    with pytest.raises(InputError, match=why):
        gmas_compare.main([*arguments, "--out", str(tmp_path / "compare.json")])
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept(tmp_path):
    path = tmp_path / "compare.json"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists"):
        gmas_compare.main(["a=b", "--out", str(path)])
    assert path.read_text() == "mine"


def test_the_mazes_are_different_and_solved_by_the_oracle():
    config = dataclasses.replace(gmas.presets["reduced"], maze_keys=2)
    pool = trained.held_out_mazes(config)
    assert len(np.unique([wall.tobytes() + key.tobytes() for wall, key in zip(*pool, strict=True)])) == len(pool.walls)
    best = trained.oracle(pool)
    # Two keys that lie side by side next to the start are worth two, and the farthest ones are some 16 steps apart.
    assert best.shape == (len(pool.walls),) and best.min() > 0.0 and best.max() <= 2.0


def test_means_by_hand():
    assert gmas_compare._said([1.0, 3.0]) == "2.00 [-10.71, 14.71]"
