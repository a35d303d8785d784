"""Several members, in processes of their own and side by side in one program."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, members, parts, policies, records
from jaxhybrid.runtime.options import RunOptions
from tests.runtime import toy
from tests.runtime.test_loop import content


def start(*arguments, devices=1, **options):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.toy", "--compile-cache", "off", "--no-tensorboard", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": flags},
        **options,
    )


def finish(process, code=0):
    _, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    return err


def numbers(directory, name):
    return np.array([row[name] for row in records.read(directory) if name in row], float)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Two seeds times two step sizes, a process each."""
    out = tmp_path_factory.mktemp("parts") / "run"
    sweep = ("--sweep", "learning_rate=0.1,0.2", "--seeds", "3:5")
    finish(start("--out", out, *sweep, "--quiet"))
    return out


LABELS = [f"learning_rate={rate}-seed-{seed}" for rate in (0.1, 0.2) for seed in (3, 4)]


def test_processes_leave_one_run_with_a_part_for_each_member(apart):
    identity = records.identity(apart)
    assert (identity["seeds"], identity["sweep"], identity["parallel"]) == (
        [3, 4],
        {"learning_rate": [0.1, 0.2]},
        "processes",
    )
    for i, label in enumerate(LABELS):
        alone = records.read(apart / label)
        merged = numbers(apart, "env/steps")
        assert merged.shape == (13, 4) and merged[:, i].tolist() == [row["env/steps"] for row in alone]
        assert numbers(apart, "eval/return")[:, i].tolist() == numbers(apart / label, "eval/return").tolist()
    assert (apart / "curve.png").read_bytes().startswith(b"\x89PNG")
    policy = policies.load(apart / "policy")
    assert policy.seeds == [3, 4, 3, 4] and policy.params["gain"].shape == (4, 1)
    assert policy.facts["numbers"][2] == {"learning_rate": 0.2}


def test_a_part_equals_the_run_of_that_seed_alone(apart, tmp_path):
    alone = toy.run(toy.Config(learning_rate=0.2), out=str(tmp_path / "run"), seed=4, eval_every=5, checkpoint_every=10)
    assert content(alone.directory) == content(apart / LABELS[3])


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_members_side_by_side_equal_those_apart_on_any_number_of_devices(apart, tmp_path, devices):
    out = tmp_path / "run"
    sweep = ("--sweep", "learning_rate=0.1,0.2", "--seeds", "3:5", "--parallel", "vmap", "--chunk", "2")
    intervals = ("--eval-every", "4", "--checkpoint-every", "4")
    err = finish(start("--out", out, *sweep, *intervals, devices=devices))
    assert "12/12" in err
    np.testing.assert_allclose(numbers(out, "critic/loss"), numbers(apart, "critic/loss"), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(numbers(out, "eval/return")[-1], numbers(apart, "eval/return")[-1], rtol=1e-5)


def test_members_that_do_not_fit_the_memory_run_in_turns(tmp_path):
    everything = {"seeds": 5, "parallel": "vmap", "iterations": 6}
    config = toy.Config(busy=1)
    whole = toy.run(config, out=str(tmp_path / "whole"), **everything)
    # The product of 400 x 400 matrices takes 1.3 MB of work space per member.
    turns = toy.run(config, out=str(tmp_path / "turns"), **everything, memory_gib=4e6 / 2**30)
    np.testing.assert_allclose(
        numbers(turns.directory, "critic/loss"), numbers(whole.directory, "critic/loss"), rtol=1e-5
    )
    with pytest.raises(InputError, match=r"seeds=5 do not fit .*--jobs 1"):
        toy.run(config, out=str(tmp_path / "none"), **everything, memory_gib=1e3 / 2**30)


def test_a_signal_stops_every_part_with_a_checkpoint_and_all_continue(tmp_path):
    out = tmp_path / "run"
    long = ("--out", out, "--seeds", "2", "--iterations", 1_000_000, "--eval-every", 100_000)
    process = start(*long, "--checkpoint-every", 1_000_000)
    deadline = time.monotonic() + 90
    logs = [out / f"seed-{i}" / records.METRICS for i in range(2)]
    while not all(log.exists() and log.stat().st_size > 2000 for log in logs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process, code=143)
    ends = [checkpoint.steps(out / f"seed-{i}" / "checkpoints")[-1] for i in range(2)]
    assert [content(out / f"seed-{i}")[-1]["iteration"] for i in range(2)] == ends
    total = max(ends) + 5
    finish(start(*long[:4], "--resume", "--iterations", total, *long[6:], "--checkpoint-every", 1_000_000))
    assert records.read(out)[-1]["iteration"] == total
    # A member that had not begun when the others stopped goes as far as they do.
    shutil.rmtree(out / "seed-1")
    finish(start(*long[:4], "--resume", *long[6:], "--checkpoint-every", 1_000_000))
    assert content(out / "seed-1")[-1]["iteration"] == total


def test_a_part_that_fails_is_named_with_its_reason(tmp_path):
    out = tmp_path / "run"
    poison = ("--config.poison-at", "3", "--max-nonfinite", "2")
    err = finish(start("--out", out, "--seeds", "2", *poison, "--quiet"), code=3)
    assert "at a time" not in err
    assert "seed-1 ended with exit code 3: " in err and "updates in a row were refused" in err
    assert not (out / "policy").exists()
    assert json.loads((out / "manifest.json").read_text())["identity"]["seeds"] == [0, 1]


# Members that run for a moment and leave what a training run might.
STUB = """
import os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir()
(out / "metrics.jsonl").write_text(RECORD)
print(LOG)
THEN
sys.exit(CODE)
"""
REFUSED = '{"iteration": 3, "guard/nonfinite": 3, "guard/nonfinite_streak": 2}\n'


def stubs(out, *, record=REFUSED, log="", then="", code=1, quiet=True):
    out.mkdir()
    script = STUB.replace("RECORD", repr(record)).replace("LOG", repr(log)).replace("THEN", then)
    options = RunOptions(seeds=2, jobs=2, progress=False, quiet=quiet)
    command = (sys.executable, "-c", script.replace("CODE", str(code)))
    return parts.run(out, options, members.members(options, toy.Config()), command, 3)


def test_the_line_of_a_failed_member_is_that_of_its_exception(tmp_path, capsys):
    @jax.jit
    def broken(x):
        raise ZeroDivisionError("of no use")

    try:
        broken(1.0)
    except ZeroDivisionError:
        log = traceback.format_exc()
    assert "removed its internal frames" in log
    stubs(tmp_path / "run", log=log)
    assert "seed-1 ended with exit code 1: ZeroDivisionError: of no use (all of it in" in capsys.readouterr().err


def test_updates_that_members_refused_are_told(tmp_path, capsys):
    assert stubs(tmp_path / "run") == (3, 1)
    assert "6 updates were refused" in (said := capsys.readouterr().err) and "the last 2 in a row" in said
    assert stubs(tmp_path / "again", code=3) == (3, 3)
    assert "were refused" not in capsys.readouterr().err


def test_a_return_that_is_not_finite_is_told_like_any_other(tmp_path, capsys):
    run = tmp_path / "run"
    assert stubs(run, record='{"iteration": 3, "eval/return": "-inf"}\n', quiet=False) == (3, 1)
    assert "seed-1: iteration 3/3, eval return -inf\n" in capsys.readouterr().err
    assert records.read(run) == [{"iteration": 3, "eval/return": [-np.inf, -np.inf]}]
    stubs(tmp_path / "none", record='{"iteration": 3, "eval/return": null}\n', quiet=False)
    assert "seed-1: iteration 3/3\n" in capsys.readouterr().err


def test_a_signal_reaches_members_that_do_not_listen_yet_or_start_after_it(tmp_path, monkeypatch, capsys):
    start, signalled, passed_on = parts._start, parts._signal, threading.Event()

    def late(part, *arguments):
        assert part.member.seed == 0 or passed_on.wait(30)
        return start(part, *arguments)

    def noted(*arguments):
        signalled(*arguments)
        passed_on.set()

    monkeypatch.setattr(parts, "_start", late)
    monkeypatch.setattr(parts, "_signal", noted)
    # Seed 0 stands for whoever stops the run.
    stop = "if out.name == 'seed-0': os.kill(os.getppid(), signal.SIGTERM)"
    assert stubs(tmp_path / "run", then=f"{stop}\ntime.sleep(10)\n(out / 'survived').touch()")[1] == 143
    assert "error" not in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/survived"))


def test_records_are_read_once_and_only_for_a_bar(tmp_path, monkeypatch):
    path, parsed, parse = tmp_path / records.METRICS, [], records.parse
    monkeypatch.setattr(records, "parse", lambda line: parsed.append(line) or parse(line))
    seen = parts._NOTHING
    for text, latest in (
        ('{"a": 1, "b": 1}\n{"a"', {"a": 1, "b": 1}),
        (": 2}\n", {"a": 2, "b": 1}),
        ("", {"a": 2, "b": 1}),
    ):
        with path.open("a") as file:
            file.write(text)
        seen = parts._read_on(tmp_path, seen)
        assert seen.latest == latest
    assert parsed == [b'{"a": 1, "b": 1}', b'{"a": 2}']
    # A member that resumes cuts off its records.
    path.write_text('{"a": 3}\n')
    assert parts._read_on(tmp_path, seen).latest["a"] == 3
    parsed.clear()
    stubs(tmp_path / "run", then="time.sleep(1)")
    # By the warning of refused updates and by the merged records.
    assert len(parsed) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 2, "host": True}, "command line"),
        ({"seeds": 2, "parallel": "processes"}, "command line"),
        ({"seeds": 2, "host": True, "parallel": "vmap"}, "parallel='vmap' is not possible"),
        ({"sweep": ("learning_rat=1",)}, "did you mean 'learning_rate'"),
    ],
)
def test_members_that_cannot_run_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        toy.run(toy.Config(), out=str(tmp_path / "run"), **options)
    assert not list(tmp_path.iterdir())


def test_records_of_parts_that_differ_in_length_are_merged_up_to_the_shortest(tmp_path):
    for label, length in (("a", 3), ("b", 2)):
        (tmp_path / label).mkdir()
        lines = [json.dumps({"iteration": i, "x": float(i)}) + "\n" for i in range(length)]
        (tmp_path / label / records.METRICS).write_text("".join(lines))
    assert parts.merge(tmp_path, [tmp_path / "a", tmp_path / "b"]) == 1
    assert records.read(tmp_path) == [{"iteration": 0, "x": [0.0, 0.0]}, {"iteration": 1, "x": [1.0, 1.0]}]
