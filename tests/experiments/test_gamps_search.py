"""A gradient-aware search through the runtime: stopped and resumed to the bit, in both settings."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gamps_search
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records, training
from tests.runtime.test_loop import content, same

QUIET = "--quiet --no-tensorboard --compile-cache off --eval-every 2 --checkpoint-every 2"


@pytest.fixture
def results(monkeypatch):
    """The results of every run of the test, with their states."""
    found, train = [], training.train

    def kept(*arguments, **options):
        found.append(train(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(training, "train", kept)
    return found


def search(out, *more, iterations=4):
    argv = ["--preset", "smoke", "--seeds", "2", "--parallel", "vmap", "--config.trajectories", "6"]
    return gamps_search.main([*argv, *QUIET.split(), "--iterations", str(iterations), "--out", str(out), *more])


@pytest.mark.parametrize("fresh", [0, 2])
def test_a_resumed_search_is_the_uninterrupted_one(tmp_path, results, fresh):
    numbers = ("--config.fresh-trajectories", str(fresh))
    assert search(tmp_path / "whole", *numbers) == 0
    assert search(tmp_path / "run", *numbers, iterations=2) == 0
    assert search(tmp_path / "run", *numbers, "--resume") == 0
    whole, half, resumed = results
    assert same(resumed.state, whole.state) and not same(half.state, whole.state)
    assert content(resumed.directory) == content(whole.directory)
    rows = records.read(whole.directory)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3, 4]
    # What the system says of its policy is not what the runtime measures of its best actions.
    assert all(len(row["policy/return"]) == 2 and np.all(np.array(row["policy/return"]) < 0) for row in rows[1:])
    grown = np.array(rows[-1]["env/steps"]) - np.array(rows[1]["env/steps"])
    assert np.all(grown > 0) if fresh else not grown.any()
    assert jnp.all(whole.state.iteration == 4)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--preset", "smoke", "--env", "minigolf"], "env='minigolf' is not"),
        (["--preset", "nothing"], "preset='nothing' is unknown"),
        (["--config.gamma", "1"], "gamma=1"),
        (["--preset", "swimmer", "--config.physics", "mujoco"], "runs on the host"),
    ],
)
def test_bad_arguments_are_refused(argv, match):
    with pytest.raises(InputError, match=match):
        gamps_search.main(argv)


def test_a_search_is_started_by_its_own_name(capsys):
    with pytest.raises(SystemExit):
        gamps_search.main(["--help"])
    assert "usage: python -m experiments gamps_search " in capsys.readouterr().out
