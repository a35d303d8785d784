import pytest

from benchmarks import _abstract_throughput, abstract_throughput
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--rounds", "0"], "rounds=0"), (["--methods", "carr", "--no-peers"], "did you mean 'crar'")],
)
def test_bad_input_is_refused(arguments, why, tmp_path):
    with pytest.raises(InputError, match=why):
        abstract_throughput.main(["--preset", "smoke", *arguments, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.glob("run/results.json"))


def test_every_method_has_a_preset_and_a_mode():
    config = abstract_throughput.PRESETS["full"]
    assert set(config.methods) == set(_abstract_throughput._METHODS)


@pytest.mark.slow
def test_a_smoke_run_times_an_update_and_a_plan(tmp_path, capsys):
    out = tmp_path / "run"
    assert abstract_throughput.main(["--preset", "smoke", "--no-peers", "--out", str(out)]) == 0
    assert (out / "results.json").exists()
    assert "crar" in capsys.readouterr().out
