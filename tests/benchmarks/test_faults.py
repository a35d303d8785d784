"""The benchmarks of kills and of damaged checkpoints: a small run of each, and damage that would go unnoticed."""

import gc
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import checkpoint_faults, kill_points
from benchmarks._kill_points import chain
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint

pytestmark = pytest.mark.filterwarnings("default")


def test_all_damage_is_noticed(tmp_path):
    out = tmp_path / "run"
    assert checkpoint_faults.main(["--preset", "smoke", "--out", str(out)]) == 0
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert [row["fault"] for row in summary] == list(checkpoint_faults.FAULTS)
    assert all(row["trials"] == row["noticed"] == row["exact"] == 2 for row in summary)


def test_the_benchmark_would_notice_a_check_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: "")
    out = tmp_path / "run"
    assert checkpoint_faults.main(["--preset", "smoke", "--out", str(out)]) == 1
    # What Orbax left behind when it failed complains when it is collected: here, where that is allowed.
    gc.collect()
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert sum(row["noticed"] for row in summary) < sum(row["trials"] for row in summary)


def test_the_benchmark_would_notice_steps_that_are_lost(tmp_path, monkeypatch):
    def lose(directory, template, tell):
        tell("one step")
        tell("the other")
        raise InputError("nothing is left")

    monkeypatch.setattr(checkpoint, "restore", lose)
    out = tmp_path / "run"
    assert checkpoint_faults.main(["--preset", "smoke", "--out", str(out)]) == 1
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert [row["fault"] for row in summary if row["exact"]] == ["files swapped between steps"]


def _ends(directory, monkeypatch, code, said, lost=False):
    """What is said of a run that ends on a full disk, before its first checkpoint or with the loss of all of them."""

    def start(*unused, **options):
        if lost:
            shutil.rmtree(directory / "checkpoints")
        program = f"import sys; sys.stderr.write({said!r}); sys.exit({code})"
        return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)

    monkeypatch.setattr(chain, "_start", start)
    task = chain.Task("smoke/sac", "lqr/double_integrator", 12)
    known = chain.Reference(task, {}, [], None, directory, 0.0, 0.0)
    return chain.Chain(known, directory).live("full disk", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("code", "said", "struck", "identical"),
    [
        (2, "error: no space\n", True, True),
        (2, "Traceback (most recent call last):\nerror: no space\n", True, False),
        (1, "error: no space\n", True, False),
        (0, "", False, True),
    ],
)
def test_a_run_on_a_full_disk_ends_with_one_line_and_its_code(tmp_path, monkeypatch, code, said, struck, identical):
    point = _ends(tmp_path, monkeypatch, code, said)
    assert (point["struck"], point["identical"], point["iteration"], point["lost"]) == (struck, identical, None, 0)


def test_checkpoints_that_are_gone_count_as_lost(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 3)
    point = _ends(tmp_path, monkeypatch, 2, "error: no space\n", lost=True)
    assert (point["identical"], point["lost"], point["complete"]) == (False, 2, False)


@pytest.mark.slow
def test_killed_runs_end_as_the_one_that_was_not(tmp_path):
    out = tmp_path / "run"
    assert kill_points.main(["--preset", "smoke", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert sum(point["struck"] for point in results["points"] if point["fault"] != "none") == 5
    assert results["points"][-1]["complete"]


@pytest.mark.parametrize(("main", "option"), [(kill_points.main, "--points"), (checkpoint_faults.main, "--faults")])
def test_bad_input_is_refused(tmp_path, main, option):
    with pytest.raises(InputError, match=r"=0 must be at least 1"):
        main([option, "0", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
