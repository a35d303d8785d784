"""The benchmark of overheads end to end, and what it refuses."""

import json

import pytest

from benchmarks import overheads
from jaxhybrid.errors import InputError


def test_the_smoke_preset_measures_a_run_and_its_resumption(tmp_path):
    out = tmp_path / "bench"
    assert overheads.main(["--preset", "smoke", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert 0.0 < results["checkpoint_seconds"] + results["record_seconds"] < results["loop_seconds"]
    assert 0.0 < results["share"] < 1.0 and results["resume_seconds"] > 0.0


def test_no_iterations_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="iterations=0"):
        overheads.main(["--iterations", "0", "--out", str(tmp_path / "bench")])
    assert not list(tmp_path.iterdir())
