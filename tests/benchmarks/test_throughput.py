import json

import pytest

from benchmarks import throughput
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.allow_rank_promotion
def test_smoke_run_times_every_task(tmp_path):
    out = tmp_path / "run"
    assert throughput.main(["--preset", "smoke", "--no-peers", "--out", str(out)]) == 0
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert [task["name"] for task in tasks] == [
        "matmul 64",
        "pendulum, 64 side by side",
        "SAC update",
        "batched products of a layer, 8 x 32 x 16 x 16",
        "ensemble step",
        "MAAC actor step, H = 1",
    ]
    for task in tasks:
        assert 0 < task["lowest"] <= task["per_second"] <= task["highest"]
        assert task["compile_seconds"] > 0


def test_ratios_are_taken_round_by_round():
    tasks = [
        throughput.Task("ours", "x", 10, lambda: None, flops=1.0),
        throughput.Task("theirs", "x", 10, lambda: None, rival="ours"),
    ]
    # Both slow down by three in the second round: the ratio does not.
    rows = throughput._rows(tasks, throughput.np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert rows[1]["ours_over_this"] == 2.0
    assert rows[0]["per_second"] == pytest.approx((10 + 10 / 3) / 2)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="rounds=0"):
        throughput.main(["--rounds", "0", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
