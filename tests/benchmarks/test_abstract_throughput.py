import dataclasses

import pytest

from benchmarks import abstract_throughput
from jaxhybrid.envs import maze
from jaxhybrid.errors import InputError
from jaxhybrid.systems import gmas
from jaxhybrid.systems.gmas_config import checked

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--rounds", "0"], "rounds=0"),
        (["--depths", "-1"], "depths="),
        (["--states", "0"], "states="),
        (["--methods", "carr"], "did you mean 'crar'"),
    ],
)
def test_bad_input_is_refused(arguments, why, tmp_path):
    with pytest.raises(InputError, match=why):
        abstract_throughput.main(["--preset", "smoke", *arguments, "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())


def test_every_method_is_one_that_the_system_accepts():
    spec = maze.make(pool_size=2, observation="cells").spec
    for preset, mode, share in abstract_throughput.METHODS.values():
        numbers = dataclasses.replace(gmas.presets[preset], loss_mode=mode, share_patches=share)
        assert checked(numbers, spec) == numbers


@pytest.mark.slow
def test_a_smoke_run_times_an_update_and_a_plan(tmp_path, capsys):
    out = tmp_path / "run"
    assert abstract_throughput.main(["--preset", "smoke", "--no-peers", "--out", str(out)]) == 0
    assert (out / "results.json").exists()
    assert "crar" in capsys.readouterr().out
