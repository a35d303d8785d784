import json

import numpy as np
import pytest

from experiments import gmas_figure
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import lock, records

pytestmark = pytest.mark.filterwarnings("default")


def run(directory, returns):
    """A run whose tests at depths 0 and 3 returned ``returns`` and one more, by seed, after each 10 updates."""
    directory.mkdir()
    rows = [{"iteration": 0}] + [
        {
            "iteration": i + 1,
            "train/updates": [10 * (i + 1)] * len(value),
            "test/greedy_depth0": value,
            "test/greedy_depth3": [x + 1 for x in value],
        }
        for i, value in enumerate(returns)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_runs_of_one_label_are_joined_by_their_seeds(tmp_path, capsys):
    one = run(tmp_path / "one", [[-5.0, -4.0], [-1.0, 0.0]])
    two = run(tmp_path / "two", [[-3.0], [1.0], [2.0]])
    out = tmp_path / "figure.png"
    assert gmas_figure.main([f"cosine:depth 3={one},{two}", f"l2:CRAR={two}", "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    said = capsys.readouterr().err + capsys.readouterr().out
    # After the 20 updates that both have: -1, 0, 1, mean 0, 4.303 * 1 / sqrt(3) = 2.48.
    assert "depth 0 0.00 +- 2.48, depth 3 1.00 +- 2.48" in " ".join(said.split())
    with pytest.raises(InputError, match="exists"):
        gmas_figure.main([f"l2:CRAR={two}", "--out", str(out)])
    with pytest.raises(InputError, match="figure' must end in"):
        gmas_figure.main([f"l2:CRAR={two}", "--out", str(out.with_suffix(""))])


def test_bands_are_spoken_of_where_there_are_some(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    for seeds, said in ((1, "updates"), (2, "updates; bands are 95 % t intervals of the mean")):
        rows = {"mazes": {"CRAR": {0: (np.array([10, 20]), np.ones((2, seeds)))}}}
        gmas_figure._draw(rows, tmp_path / "figure.png", "greedy")
        assert plt.gcf().get_supxlabel() == said
    monkeypatch.undo()
    plt.close("all")


def test_the_band_by_hand():
    mean, half = gmas_figure._band(np.array([[1.0, 3.0]]))
    assert mean[0] == 2.0 and half[0] == pytest.approx(12.706, rel=1e-3)


@pytest.mark.parametrize("item", ["no-row=a", "row:no-directory=", "row:label", "row:label=nowhere"])
def test_what_is_no_run_is_refused(item, tmp_path):
    with pytest.raises(InputError):
        gmas_figure.main([item, "--out", str(tmp_path / "figure.png")])
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_refused(tmp_path):
    directory = tmp_path / "sweep"
    records.open_run(directory, {"study": "gmas", "sweep": {"alpha": [0, 1]}}, {}, resume=False)
    lock.release(directory)
    with pytest.raises(InputError, match="sweep' is a sweep"):
        gmas_figure.main([f"row:label={directory}", "--out", str(tmp_path / "figure.png")])


def test_a_label_is_given_once_in_a_row(tmp_path):
    one = run(tmp_path / "one", [[-5.0]])
    with pytest.raises(InputError, match="given before"):
        gmas_figure.main([f"l2:CRAR={one}", f"l2:CRAR={one}", "--out", str(tmp_path / "figure.png")])


def test_a_run_without_tests_is_refused(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "metrics.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(InputError, match="without greedy tests"):
        gmas_figure.main([f"row:label={directory}", "--out", str(tmp_path / "figure.png")])
