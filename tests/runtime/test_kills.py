"""Processes that end at a bad moment, on the toy, whose every leaf decides its future."""

import signal
import time

import pytest

from jaxhybrid.runtime import checkpoint, records
from tests.runtime import toy
from tests.runtime.test_loop import command, content, same


def started(out, *arguments, iterations, **options):
    settings = ["--no-tensorboard", "--eval-every", 100_000, "--checkpoint-every", 1, "--keep-last", 3]
    return command("--out", out, "--iterations", iterations, *settings, *arguments, **options)


def finished(out, **options):
    return toy.run(toy.Config(), out=str(out), eval_every=100_000, checkpoint_every=1, keep_last=3, **options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_loses_one_iteration_at_most(tmp_path, number):
    out = tmp_path / "run"
    process = started(out, iterations=1_000_000)
    deadline = time.monotonic() + 60
    while max(checkpoint.steps(out / "checkpoints"), default=0) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=30)
    newest = checkpoint.steps(out / "checkpoints")[-1]
    lines = (out / records.METRICS).read_bytes().split(b"\n")[:-1]
    assert newest <= len(lines) - 1 <= newest + 1
    resumed = finished(out, iterations=newest + 3, resume=True)
    whole = finished(tmp_path / "whole", iterations=newest + 3)
    assert same(resumed.state, whole.state)
    assert content(out) == content(whole.directory)


def test_a_full_disk_ends_a_run_in_a_line_and_loses_one_iteration_at_most(tmp_path):
    out = tmp_path / "run"
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "limited"]
    process = started(out, iterations=1000, before=limited)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "cannot be written" in line and "(File too large)" in line and "--resume" in line
    newest = checkpoint.steps(out / "checkpoints")[-1]
    assert newest >= 3
    resumed, whole = finished(out, iterations=newest + 3, resume=True), finished(tmp_path / "w", iterations=newest + 3)
    assert same(resumed.state, whole.state)
    assert content(out) == content(whole.directory)
