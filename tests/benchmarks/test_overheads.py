"""The benchmark of overheads end to end, and what it refuses."""

import json

import pytest

from benchmarks import overheads
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records


def test_the_smoke_preset_measures_a_run_and_its_resumption(tmp_path):
    out = tmp_path / "bench"
    assert overheads.main(["--preset", "smoke", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    spent = results["checkpoint_seconds"], results["record_seconds"]
    assert min(spent) > 0.0 and results["resume_seconds"] > 0.0
    # The last record is of the resumed run.
    *rows, _ = records.read(out / "run")
    learning = sum(row.get("time/iteration", 0.0) + row.get("time/evaluation", 0.0) for row in rows)
    assert learning > 0.0 and results["loop_seconds"] == pytest.approx(learning + sum(spent))
    assert results["share"] == pytest.approx(sum(spent) / results["loop_seconds"])


def test_no_iterations_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="iterations=0"):
        overheads.main(["--iterations", "0", "--out", str(tmp_path / "bench")])
    assert not list(tmp_path.iterdir())
