"""The benchmark of DREAM: what is refused, and a run end to end."""

import json

import pytest

from benchmarks import dream
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--variants", "gradints"], "variants='gradints'"),
        (["--variants"], "variants is empty"),
        (["--seeds", "0"], "seeds=0"),
        (["--trials", "30"], "trials=30 must be a multiple of 20"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, field, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=field):
        dream.main([*arguments, "--out", str(out)])
    assert not out.exists()


def test_rates_are_trials_over_the_median_time():
    row = dream._row("dream", [(2.0, 1.0), (4.0, 3.0), (5.0, 2.0)], 100)
    assert (row["trials_per_second"], row["slowest"], row["fastest"]) == (25.0, 20.0, 50.0)
    assert row["processor_ms_per_trial"] == 20.0


@pytest.mark.slow
def test_a_smoke_run_leaves_its_results(tmp_path):
    out = tmp_path / "run"
    assert dream.main(["--preset", "smoke", "--out", str(out)]) == 0
    assert [row["task"] for row in json.loads((out / "results.json").read_text())["tasks"]] == ["dream"]
