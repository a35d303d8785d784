"""The study of GMAS: what is refused, what the paper's words mean, and a run end to end."""

import json

import jax
import pytest

from experiments import gmas
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--method", "gmas-cosin"], "gmas-cosine"),
        (["--method", "crar", "--preset", "smoke"], "method='crar'"),
        (["--method", "crar", "--preset=smoke"], "method='crar'"),
        (["--method", "crar", "--depth", "-1"], "match_depth=-1"),
        (["--preset", "smoke", "--env", "pendulum"], "real-valued actions"),
        (["--preset", "crar", "--env", "catcher"], "env='catcher'"),
        (["--preset", "crar", "--config.alpha", "-1"], "alpha=-1"),
        (["--preset", "crar", "--seeds", "0"], "seeds=0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, field, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=field):
        gmas.main([*arguments, "--out", str(out)])
    assert not out.exists()


def test_the_papers_words_are_a_preset_and_a_field():
    words = gmas._with_method(["--method", "gmas-l2", "--depth", "5", "--seeds", "8"])
    assert words == ["--preset", "gmas-l2", "--seeds", "8", "--config.match-depth", "5"]


@pytest.mark.slow
def test_a_smoke_run_leaves_what_a_run_leaves(tmp_path):
    out = tmp_path / "run"
    arguments = ["--preset", "smoke", "--env", "catcher", "--out", str(out), "--no-tensorboard", "--quiet"]
    assert gmas.main([*arguments, "--compile-cache", jax.config.jax_compilation_cache_dir]) == 0
    assert {"manifest.json", "metrics.jsonl", "checkpoints", "policy"} <= {path.name for path in out.iterdir()}
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in records] == [0, 1, 2]
    assert records[-1]["train/updates"] == 4 and records[-1]["guard/nonfinite"] == 0
    assert -1.0 <= records[-1]["test/greedy_depth1"] <= 1.0
