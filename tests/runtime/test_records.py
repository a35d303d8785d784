import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records
from tests.runtime import toy


def run(out, **options):
    return toy.run(toy.Config(**options.pop("config", {})), out=str(out), iterations=2, **options)


def listing(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def refused(tmp_path, message, out, **options):
    before = listing(tmp_path)
    with pytest.raises(InputError, match=message) as raised:
        run(out, **options)
    assert "\n" not in str(raised.value)
    assert listing(tmp_path) == before


def test_an_out_that_is_a_file_or_under_one_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(tmp_path, "is a file", tmp_path / "file")
    refused(tmp_path, "is a file", tmp_path / "file" / "run")


def test_an_out_that_cannot_be_written_is_refused(tmp_path):
    refused(tmp_path, "cannot be written", "/proc/jaxhybrid/run")


def test_somebody_elses_directory_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path, "holds no run", tmp_path)
    refused(tmp_path, "holds no run to resume", tmp_path, resume=True)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    refused(tmp_path, "not one of a run", tmp_path, resume=True)


def test_a_run_is_neither_overwritten_nor_resumed_as_another(tmp_path):
    run(tmp_path / "run")
    refused(tmp_path, "--resume", tmp_path / "run")
    refused(
        tmp_path,
        r"config\.learning_rate was 0\.1 and is now 0\.2; seed was 0 and is now 1",
        tmp_path / "run",
        resume=True,
        seed=1,
        config={"learning_rate": 0.2},
    )
    run(tmp_path / "run", resume=True)


def test_an_empty_directory_is_fine(tmp_path):
    assert run(tmp_path).exit_code == 0


def test_values_survive_json(tmp_path):
    with records.Writer(tmp_path, position=0, tensorboard=False) as writer:
        writer.write(
            {"env/steps": jnp.asarray(3), "a": np.float32(0.1), "b": jnp.asarray([1.0, np.nan]), "c": -math.inf}
        )
        position = writer.position
        writer.write({"env/steps": 4})
    text = (tmp_path / records.METRICS).read_text()
    assert json.loads(text.splitlines()[0]) == {"env/steps": 3, "a": 0.1, "b": [1.0, None], "c": "-inf"}
    assert np.float32(records.read(tmp_path)[0]["a"]) == np.float32(0.1)
    assert math.isnan(records.read(tmp_path)[0]["b"][1]) and records.read(tmp_path)[0]["c"] == -math.inf
    with records.Writer(tmp_path, position=position, tensorboard=False) as writer:
        assert writer.position == position
    assert len(records.read(tmp_path)) == 1


@pytest.mark.parametrize("line", ["{", "[]", "null", "\xff"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / records.METRICS).write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2"):
        records.read(tmp_path)


def test_tensorboard_events_are_written(tmp_path):
    result = run(tmp_path / "run", tensorboard=True, seeds=2)
    (events,) = (result.directory / "tensorboard").iterdir()
    assert b"critic/loss" in events.read_bytes()
