import errno
import fcntl
import json
import math
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import loop, records, training
from tests.runtime import toy


def run(out, **options):
    return toy.run(toy.Config(**options.pop("config", {})), out=str(out), iterations=2, **options)


def test_what_a_session_was_told_of_its_iterations(tmp_path):
    run(tmp_path / "run")
    assert records.iterations(tmp_path / "run") == 2
    for session in (7, {}, {"options": []}, {"options": {"iterations": "9"}}, {"options": {"iterations": None}}):
        (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "identity": {}, "sessions": [session]}))
        assert records.iterations(tmp_path) is None


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
        r"config\.learning_rate was 0\.1 and is now 0\.2; seeds was \[0\] and is now \[1\]",
        tmp_path / "run",
        resume=True,
        seed=1,
        config={"learning_rate": 0.2},
    )
    run(tmp_path / "run", resume=True)


def test_a_number_that_is_none_is_refused_and_infinity_is_kept(tmp_path):
    refused(tmp_path, r"config\.learning_rate=nan", tmp_path / "run", config={"learning_rate": math.nan})
    identity = {"config": {"bounds": (1.0, math.inf), "inner": {"order": -math.inf, "none": None}}}
    records.open_run(tmp_path / "run", identity, {}, resume=False)
    records.open_run(tmp_path / "run", identity, {}, resume=True)
    for config in ({"bounds": (1.0, np.float32("nan"))}, {"bounds": {"inner": [math.nan]}}):
        with pytest.raises(InputError, match=r"config\.bounds.*=nan"):
            records.open_run(tmp_path / "run", {"config": config}, {}, resume=True)


def test_a_run_of_another_study_differs_in_that_alone(tmp_path):
    records.open_run(tmp_path, {"study": "toy", "config": {"a": 1}, "seeds": [0]}, {}, resume=False)
    with pytest.raises(InputError, match=r'resumed: study was "toy" and is now "other"\. Repeat the arguments'):
        records.open_run(tmp_path, {"study": "other", "config": {"b": 1}, "seeds": [1]}, {}, resume=True)


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


WHOLE = b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    "tail",
    [b'{"a": 3', b"\0" * 40, b"\x93\xff\n\x00", b"{}}\n", b'{"a": 3}\n{"b"', b'{"a": NaN}\n', b"[1]\n[2]\n"],
)
def test_a_damaged_end_is_dropped_with_a_note(tmp_path, capsys, tail):
    path = tmp_path / records.METRICS
    path.write_bytes(WHOLE + tail)
    good = 3 if tail.startswith(b'{"a": 3}') else 2
    if b"\n" not in tail or good == 3:
        assert [record["a"] for record in records.read(tmp_path)] == list(range(1, good + 1))
        assert "damaged" in capsys.readouterr().err
    else:
        with pytest.raises(InputError, match="line"):
            records.read(tmp_path)
    assert [record["a"] for record in records.read(tmp_path, mend=True)] == list(range(1, good + 1))
    assert "damaged" in capsys.readouterr().err
    with records.Writer(tmp_path, position=len(WHOLE + tail), tensorboard=False) as writer:
        writer.write({"env/steps": 1, "a": 4})
    assert "damaged" in capsys.readouterr().err
    assert [record["a"] for record in records.read(tmp_path)] == [*range(1, good + 1), 4]


def test_a_missing_end_of_line_is_mended(tmp_path, capsys):
    (tmp_path / records.METRICS).write_bytes(WHOLE[:-1])
    assert len(records.read(tmp_path)) == 2
    with records.Writer(tmp_path, position=len(WHOLE), tensorboard=False) as writer:
        writer.write({"env/steps": 1, "a": 3})
    assert "damaged" in capsys.readouterr().err
    assert [record["a"] for record in records.read(tmp_path)] == [1, 2, 3]


def test_records_that_are_gone_are_reported_and_not_filled_in(tmp_path, capsys):
    (tmp_path / records.METRICS).write_bytes(WHOLE)
    with records.Writer(tmp_path, position=1000, tensorboard=False):
        pass
    assert "18 bytes, and 1000 when" in capsys.readouterr().err
    assert (tmp_path / records.METRICS).read_bytes() == WHOLE


def test_a_good_end_is_left_alone(tmp_path, capsys):
    (tmp_path / records.METRICS).write_bytes(WHOLE)
    with records.Writer(tmp_path, position=len(WHOLE), tensorboard=False) as writer:
        assert writer.position == len(WHOLE)
    assert len(records.read(tmp_path, mend=True)) == 2 and capsys.readouterr().err == ""


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    with records.Writer(tmp_path, position=0, tensorboard=False) as writer:
        writer.write({"env/steps": 1})

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"metrics.jsonl' cannot be written \(No space left.*--resume"):
            writer.sync()


HOLD = """
import sys, time
from pathlib import Path
from jaxhybrid.runtime import lock
lock.acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_processes_never_share_a_run(tmp_path):
    run(tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    refused(tmp_path, f"is in use by process {holder.pid}: wait for it or stop it", tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="in use"):
        records.Writer(tmp_path / "run", position=0, tensorboard=False)
    # However it ends, the lock ends with it.
    holder.kill()
    holder.communicate()
    assert run(tmp_path / "run", resume=True).exit_code == 0


def test_a_run_is_locked_until_its_last_file_is_written(tmp_path, monkeypatch):
    def locked():
        with (tmp_path / "run" / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    noted = []
    monkeypatch.setattr(training, "_draw", lambda *_: noted.append(locked()))
    run(tmp_path / "run")
    assert noted == [True] and not locked()
    with records.Writer(tmp_path / "run", position=0, tensorboard=False):
        assert locked()
    assert not locked()


def test_a_curve_that_no_disk_has_room_for_is_told_of(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training.plots, "learning_curves", full)
    assert run(tmp_path / "run").exit_code == 0
    assert "curve.png was not drawn" in capsys.readouterr().err


def test_a_start_that_was_killed_is_not_in_the_way(tmp_path):
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / "manifest.partial").write_text('{"format"')
    assert run(tmp_path).exit_code == 0


def test_a_run_that_failed_before_its_first_checkpoint_may_be_deleted(tmp_path, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(loop, "_begin", failing)
        run(tmp_path / "run", tensorboard=True)
    refused(tmp_path, "failed before its first checkpoint: delete it or name another", tmp_path / "run")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    refused(tmp_path, f"is in use by process {holder.pid}", tmp_path / "run")
    holder.kill()
    holder.communicate()
    # A run in processes, which is stopped, has its results in its parts.
    (tmp_path / "run" / "seed-0").mkdir()
    (tmp_path / "run" / "seed-0" / records.METRICS).write_text("{}\n")
    refused(tmp_path, "holds a run: continue it with --resume or name another", tmp_path / "run")


def test_tensorboard_events_are_written(tmp_path):
    result = run(tmp_path / "run", tensorboard=True, seeds=2)
    (events,) = (result.directory / "tensorboard").iterdir()
    assert b"critic/loss" in events.read_bytes()
