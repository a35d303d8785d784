"""Where results go: ``~`` is the home of the user in every benchmark and study that opens a directory by itself."""

import pytest

from benchmarks import abstract_throughput, gradient_variance, overheads, throughput, trpo
from experiments import gamps, gradient_error
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    "module",
    [abstract_throughput, gradient_variance, overheads, throughput, trpo, gamps, gradient_error],
    ids=lambda module: module.__name__,
)
def test_out_may_begin_with_the_home_of_the_user(module, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "file").touch()
    # Taken literally it is refused too, instead of a whole run in a directory of that name.
    (tmp_path / "~").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{home}/file' is a file"):
        module.main(["--out", "~/file/run"])
