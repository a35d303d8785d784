"""The study end to end: a tiny run, its planning evaluation, and what is refused."""

import json

import jax
import pytest

from experiments import maac, maac_planning
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    arguments = ["--preset", "smoke", "--env", "pendulum", "--out", str(out), "--no-tensorboard", "--quiet"]
    assert maac.main([*arguments, "--compile-cache", jax.config.jax_compilation_cache_dir]) == 0
    return out


def test_a_smoke_run_leaves_what_a_run_leaves(run):
    names = {path.name for path in run.iterdir()}
    assert {"manifest.json", "metrics.jsonl", "checkpoints", "curve.png", "policy"} <= names
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in records] == [0, 1, 2, 3]
    assert records[-1]["env/steps"] == 3 * 64
    assert records[-1]["guard/nonfinite"] == 0
    assert records[-1]["eval/return"] < 0.0


def test_planning_evaluates_the_run(run):
    # Fewer sequences than the planner has elites by itself.
    assert maac_planning.main(["--run", str(run), "--preset", "smoke", "--candidates", "8"]) == 0
    facts = json.loads((run / "planning.json").read_text())
    assert (facts["planner"]["candidates"], facts["planner"]["elites"]) == (8, 1)
    assert facts["returns"].keys() == {"policy", "policy + planning"}
    assert [len(returns) for returns in facts["returns"]["policy"]] == [2]
    before = (run / "planning.json").read_bytes()
    with pytest.raises(InputError, match=r"result=.*planning.json' exists"):
        maac_planning.main(["--run", str(run), "--preset", "smoke"])
    assert (run / "planning.json").read_bytes() == before


def test_a_second_result_of_planning_is_kept_elsewhere(run, tmp_path):
    options = ["--preset", "smoke", "--episodes", "1", "--horizon", "1", "--candidates", "4", "--iterations", "1"]
    assert maac_planning.main(["--run", str(run), *options, "--result", str(tmp_path / "second.json")]) == 0
    assert json.loads((tmp_path / "second.json").read_text())["planner"]["episodes"] == 1


def test_planning_trains_nothing_whose_result_cannot_be_kept(tmp_path):
    (tmp_path / "taken.json").touch()
    arguments = ["--preset", "smoke", "--out", str(tmp_path / "run"), "--result", str(tmp_path / "taken.json")]
    with pytest.raises(InputError, match=r"result=.*taken.json' exists"):
        maac_planning.main(arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--preset", "smok"], "smoke"),
        (["--preset", "paper-ant", "--env", "pendulum"], "env="),
        (["--preset", "smoke", "--env", "pendulun"], "pendulum"),
        (["--preset", "smoke", "--env", "brax/reacher/sprin"], "spring"),
        (["--preset", "smoke", "--env", "pendulum", "--config.horizon", "-1"], "horizon=-1"),
        (["--preset", "smoke", "--env", "pendulum", "--config.batch-size", "0"], "batch_size=0"),
        (["--preset", "smoke", "--env", "pendulum", "--seeds", "0"], "seeds=0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, field, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=field):
        maac.main([*arguments, "--out", str(out)])
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run"),
        (["--horizon", "0"], "horizon=0"),
        (["--elites", "0"], "elites=0 must be at least 1"),
        (["--candidates", "8", "--elites", "9"], "elites=9 must be at most candidates=8"),
        (["--out", "elsewhere"], "both given"),
    ],
)
def test_planning_refuses_what_is_no_run_or_no_planner(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        maac_planning.main(["--run", str(tmp_path), *arguments])
    assert not list(tmp_path.iterdir())
