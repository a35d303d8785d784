"""The study of gradient-aware search: its comparisons, and small runs end to end."""

import json

import numpy as np
import pytest

from experiments import gamps, gamps_horizons, gamps_losses, gamps_theory
from experiments._gamps import figures, report, sweep
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records
from jaxhybrid.systems.gamps_config import checked


def test_paired_bootstrap():
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=20), 0.1 * rng.normal(size=20)
    better = report.compare(base + 0.5 + noise, base, 2000)
    assert better["difference"] == pytest.approx(0.5 + noise.mean(), abs=1e-3)
    assert better["interval"][0] < better["difference"] < better["interval"][1]
    # Standard error 0.1 / sqrt(20): the interval is four of them wide, though the runs themselves differ by one.
    assert better["interval"][1] - better["interval"][0] == pytest.approx(4 * noise.std() / np.sqrt(20), rel=0.15)
    assert better["p"] == pytest.approx(1 / 2001, rel=0.01) and better["wins"] == 20
    same = report.compare(base + noise - noise.mean(), base, 2000)
    assert 0.3 < same["p"] < 0.7


def test_the_return_where_the_data_run_out():
    row = {"returns": [1.0, 2.0, 3.0, 4.0], "effective_sample_size": [100.0, 30.0, 9.0, 2.0], "trajectories": 100}
    assert report.stopped_return(row) == 3.0
    assert report.stopped_return(row | {"effective_sample_size": [100.0] * 4}) == 4.0


def test_small_run(tmp_path, capsys):
    out = tmp_path / "run"
    argv = "--preset smoke --seeds 2 --trajectories 4 --iterations 3 --method gamps ml --no-progress"
    assert gamps.main([*argv.split(), "--out", str(out)]) == 0
    rows = records.read(out)
    assert len(rows) == 2 * 2
    assert all(len(row["returns"]) == 4 and np.isfinite(row["returns"]).all() for row in rows)
    by_method = {(row["method"], row["seed"]): row["returns"][0] for row in rows}
    assert by_method["gamps", 0] == by_method["ml", 0], "methods share their start"
    assert by_method["gamps", 0] != by_method["gamps", 1]
    results = json.loads((out / "results.json").read_text())
    likely = next(entry for entry in results["settings"] if entry["method"] == "ml")
    assert set(likely["gamps_minus_this"]) == {"final", "best", "mean_over_iterations", "stopped"}
    for name in ("returns_two_areas", "cosines", "weights"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    # Of a single run there is nothing to say.
    report.write_results([row for row in rows if row["seed"] == 0], gamps.PRESETS["smoke", "gridworld"], 0, tmp_path)
    alone = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert len(alone) == 2 and not any("gamps_minus_this" in entry for entry in alone)


def test_the_lowest_panel_of_every_column_says_what_it_is_over(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    run = {"topology": "", "method": "ml", "seed": 0, "returns": [-2.0, -1.0]}
    figures.draw_returns([run | {"trajectories": count} for count in range(7)], "swimmer", tmp_path)
    # Four columns, the last of two lines has three panels.
    panels = plt.gcf().axes
    labelled = [i for i, panel in enumerate(panels) if panel.get_visible() and panel.get_xlabel() == "policy updates"]
    assert labelled == [3, 4, 5, 6]
    assert all(panels[i].xaxis.get_tick_params()["labelbottom"] for i in labelled)
    monkeypatch.undo()
    plt.close("all")


def test_small_run_on_the_host(tmp_path, capsys):
    out = tmp_path / "run"
    argv = "--domain swimmer --method pgt reinforce --trajectories 2 --iterations 1 --seeds 2 --no-progress"
    assert gamps.main([*argv.split(), "--out", str(out)]) == 0
    rows = records.read(out)
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for m in ("pgt", "reinforce") for s in (0, 1)]
    assert all(len(row["returns"]) == 2 and np.isfinite(row["returns"]).all() for row in rows)
    starts = [row["returns"][0] for row in rows]
    assert starts[0] == starts[2] != starts[1], "methods share start and evaluation, seeds do not"
    assert (out / "returns.png").stat().st_size > 10_000


def test_small_study_of_horizons(tmp_path, capsys):
    out = tmp_path / "horizons"
    assert gamps_horizons.main(["--preset", "smoke", "--out", str(out)]) == 0
    rows = json.loads((out / "results.json").read_text())
    assert [(row["horizon"], row["terminal_value"]) for row in rows] == [
        (1, "none"), (1, "least_squares"), (3, "none"), (3, "least_squares"),
    ]  # fmt: skip
    # Five steps of a fit give no true values; the horizon and the terminal value both change them.
    assert all(-1.0 <= row["cosine"] < 0.9999 for row in rows)
    assert len({f"{row['q_error']:.4g}" for row in rows}) == len(rows)
    assert (out / "horizons.png").stat().st_size > 10_000


def test_presets_are_numbers_of_the_algorithm():
    for (preset, domain), config in gamps.PRESETS.items():
        for setting in sweep.settings(config):
            chosen = checked(sweep.numbers(config, setting))
            assert (chosen.domain, chosen.trajectories) == (domain, setting.trajectories)
            assert (chosen.fresh_trajectories > 0) == (preset == "interactive")
            assert not (chosen.fresh_trajectories and chosen.env.endswith("mujoco")), "nothing collects on the host"


def test_theory(tmp_path, capsys):
    out = tmp_path / "theory"
    assert gamps_theory.main(["--preset", "smoke", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["corrected_violations"] == 0 < results["printed_violations"]
    assert results["slope"] == pytest.approx(-0.5, abs=0.05)
    assert results["counter_example"][0]["error"] == pytest.approx(0.5047, rel=1e-3)
    assert (out / "theory.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("study", "argv", "field"),
    [
        (gamps, ["--seeds", "0"], "seeds"),
        (gamps, ["--trajectories", "1"], "trajectories"),
        (gamps, ["--method", "gmaps"], "method='gmaps' is unknown: did you mean 'gamps'"),
        (gamps, ["--domain", "minigolf", "--method", "exact"], "method='exact' is unknown"),
        (gamps, ["--seed", "-1"], "seed"),
        (gamps, ["--out", " "], "out"),
        (gamps_horizons, ["--seeds", "1"], "seeds"),
        (gamps_horizons, ["--horizons", "0"], "horizons"),
        (gamps_horizons, ["--trajectories", "1"], "trajectories"),
        (gamps_horizons, ["--seed", "-1"], "seed"),
        (gamps_horizons, ["--out", ""], "out"),
        (gamps_losses, ["--seeds", "0"], "seeds"),
        (gamps_theory, ["--problems", "1"], "problems"),
        (gamps_theory, ["--trajectories", "100"], "trajectories"),
        (gamps_theory, ["--seed", "-1"], "seed"),
        (gamps_theory, ["--out", ""], "out"),
    ],
)
def test_bad_arguments_are_refused(study, argv, field):
    with pytest.raises(InputError, match=rf"^{field}"):
        study.main(argv)


def test_losses(tmp_path, capsys):
    out = tmp_path / "losses"
    assert gamps_losses.main(["--preset", "smoke", "--fit-steps", "30", "--out", str(out)]) == 0
    rows = {(row["topology"], row["loss"]): row for row in json.loads((out / "results.json").read_text())}
    assert len(rows) == 12
    assert rows["two_areas", "gradient-aware"]["first_cosine"] > 0.999
    assert rows["two_areas", "likelihood"]["first_cosine"] < 0.9
    assert rows["literal", "gradient-aware"]["first_cosine"] < 0.95
    assert all(rows[topology, "true gradient"]["first_cosine"] > 0.9999 for topology in ("two_areas", "literal"))
    assert (out / "losses.png").stat().st_size > 10_000
