"""The ablation of GMAS: which runs it makes, how it reads them, what is refused, and a study end to end."""

import json

import pytest

from experiments import gmas_ablation
from experiments._gmas import ablation_figure
from jaxhybrid.errors import InputError

pytestmark = pytest.mark.filterwarnings("default")


def trained(commands, code=0):
    """Stands in for the study that trains: notes the command, and writes what two seeds of a sweep leave."""

    def main(argv):
        out = argv[argv.index("--out") + 1]
        commands.append(argv)
        count = argv[argv.index("--sweep") + 1].count(",") + 1
        gmas_ablation.Path(out).mkdir(parents=True)
        last = {"iteration": 1, "test/greedy_depth0": [float(i) for i in range(2 * count)], "test/noisy_depth0": [9.0]}
        (gmas_ablation.Path(out) / "metrics.jsonl").write_text(json.dumps(last) + "\n")
        return code

    return main


def test_every_cell_is_a_run_and_the_seed_changes_fastest(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gmas_ablation.gmas, "main", trained(commands))
    config = gmas_ablation.Config("reduced/gmas", seeds=2, alphas=(0.05, 1.0), depths=(3,))
    monkeypatch.setitem(gmas_ablation.PRESETS, "reduced", config)
    assert gmas_ablation.main(["--out", str(tmp_path), "--seed", "4"]) == 0
    beta, depth = (" ".join(command) for command in commands)
    assert "--config.alpha 0 --sweep beta=1.0,0.2" in beta and "--seed 4 --seeds 2" in beta
    assert "--config.match-depth 3 --sweep alpha=0.05,1.0" in depth and "--preset reduced/gmas" in depth
    cells = json.loads((tmp_path / "gmas_ablation.json").read_text())["cells"]
    assert [(c["alpha"], c["beta"], c["depth"], c["returns"]["0"]) for c in cells] == [
        (0.0, 1.0, 0, [0.0, 1.0]),
        (0.0, 0.2, 0, [2.0, 3.0]),
        (0.05, 1.0, 3, [0.0, 1.0]),
        (1.0, 1.0, 3, [2.0, 3.0]),
    ]
    assert (tmp_path / "gmas_ablation.png").stat().st_size > 5000


def test_planning_depths_are_drawn_on_one_scale(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(plt, "close", lambda figure: None)
    cell = {"alpha": 0.0, "beta": 1.0, "depth": 0, "returns": {"0": [-5.0, -1.0], "3": [1.0, 2.0]}}
    ablation_figure.draw([cell], tmp_path / "figure.png")
    assert len({axis.get_xlim() for axis in plt.gcf().axes}) == 1
    monkeypatch.undo()
    plt.close("all")


def test_without_betas_a_weight_of_zero_is_the_baseline(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gmas_ablation.gmas, "main", trained(commands))
    assert gmas_ablation.main(["--preset", "smoke", "--out", str(tmp_path)]) == 0
    assert len(commands) == 1 and "alpha=0.0,0.05" in commands[0]


def test_a_run_that_stopped_stops_the_study(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gmas_ablation.gmas, "main", trained(commands, code=3))
    assert gmas_ablation.main(["--out", str(tmp_path)]) == 3
    assert len(commands) == 1 and not (tmp_path / "gmas_ablation.json").exists()


def test_what_is_there_is_continued(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(gmas_ablation.gmas, "main", lambda argv: commands.append(argv) or 1)
    (tmp_path / "manifest.json").write_text("{}")
    gmas_ablation._run(tmp_path, [])
    gmas_ablation._run(tmp_path / "new", [])
    assert ["--resume" in command for command in commands] == [True, False]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="seed=-1"):
        gmas_ablation.main(["--seed", "-1", "--out", str(tmp_path / "study")])
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n')
    with pytest.raises(InputError, match="without tests"):
        gmas_ablation._returns(tmp_path, 1)


@pytest.mark.slow
def test_a_smoke_study(tmp_path):
    assert gmas_ablation.main(["--preset", "smoke", "--out", str(tmp_path / "study")]) == 0
    cells = json.loads((tmp_path / "study" / "gmas_ablation.json").read_text())["cells"]
    assert [cell["alpha"] for cell in cells] == [0.0, 0.05]
    assert all(-1.0 <= cell["returns"]["0"][0] <= 1.0 for cell in cells)
