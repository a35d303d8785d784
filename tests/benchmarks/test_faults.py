"""The benchmarks of kills and of damaged checkpoints: a small run of each, and damage that would go unnoticed."""

import gc
import json

import pytest

from benchmarks import checkpoint_faults, kill_points
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
