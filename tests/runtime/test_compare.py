import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import compare, statistics
from tests.runtime import figures, runs


def table(capsys):
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("group"))
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[begin:]]
    end = cells.index([])
    return {row[0]: dict(zip(cells[0][1:], row[1:])) for row in cells[1:end]}, "\n".join(lines[begin + end :])


@pytest.fixture
def two(tmp_path):
    a = [runs.write(tmp_path / f"a{i}", runs.rows(0.0, 10.0 + i, 20.0 + i), seed=i) for i in range(3)]
    b = runs.write(tmp_path / "b", runs.rows([0.0, 0.0], [20.0, 5.0], [21.5, 30.0], [99.0, 99.0]), seeds=2)
    return f"a={a[0]},{a[1]},{a[2]}", f"b={b}"


def test_the_table_compares_over_the_range_that_all_have(two, capsys):
    assert compare.main([*two, "--threshold", "11.5"]) == 0
    rows, notes = table(capsys)
    # a: 20, 21, 22 at step 20. b has 21.5 and 30 there, and its last record is beyond the range of a.
    assert rows["a"]["mean"] == rows["a"]["IQM"] == "21.0" and rows["b"]["mean"] == "25.8"
    # Six pairs, of which only 21.5 < 22 does not count.
    assert rows["a"]["P(improvement)"] == "reference" and rows["b"]["P(improvement)"] == "0.83"
    assert rows["a"]["seeds"] == "3" and rows["b"]["seeds"] == "2"
    # a reaches 11.5 at steps 20, 20 and 10; b at steps 10 and 20.
    assert [rows[label]["environment steps to 11.5"] for label in "ab"] == ["20 (3 of 3 seeds)", "20 (2 of 2 seeds)"]
    assert "Compared up to 20 environment steps" in notes and "'b' (30)" in notes and "fewer than 5 seeds" in notes


def test_one_seed_gets_no_interval(two, tmp_path, capsys):
    compare.main([str(tmp_path / "a0"), two[1], "--threshold", "50"])
    rows, notes = table(capsys)
    assert rows["a0"]["95 % interval"] == "none: 1 seed" and "One seed has no interval" in notes
    assert rows["a0"]["environment steps to 50"] == "not reached (0 of 1 seeds)"


def test_a_group_that_is_recorded_more_rarely_is_read_earlier(two, tmp_path, capsys):
    rare = runs.write(tmp_path / "rare", runs.rows(1.0, 2.0, 3.0, every=13))
    compare.main([two[0], str(rare)])
    rows, notes = table(capsys)
    assert rows["rare"]["mean"] == "2" and "'rare' is read at 13 environment steps" in notes


def test_runs_that_collect_nothing_are_compared_over_iterations(tmp_path, capsys):
    a = runs.write(tmp_path / "a", runs.batch_rows(0.0, 1.0, 2.0, 3.0))
    b = runs.write(tmp_path / "b", runs.batch_rows(0.0, 5.0, 6.0, size=900))
    assert compare.main([str(a), str(b), "--threshold", "2"]) == 0
    assert "eval/return at 2 iterations" in (said := capsys.readouterr().out)
    assert "iterations to 2" in said and "2 (1 of 1 seeds)" in said and "Compared up to 2 iterations" in said
    other = runs.write(tmp_path / "other", runs.rows(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="'a' over iterations and 'other' over environment steps cannot be compared"):
        compare.main([str(a), str(other)])


def test_runs_of_one_group_with_other_numbers_are_named(tmp_path, capsys):
    a = runs.write(tmp_path / "a", runs.rows(1.0), seed=0, horizon=1)
    b = runs.write(tmp_path / "b", runs.rows(2.0), seed=1, horizon=2)
    compare.main([f"mixed={a},{b}"])
    assert "differ in more than the seed: config.horizon was 1 and is now 2" in capsys.readouterr().out


def test_what_is_no_training_run_is_refused_by_the_name_of_the_argument(tmp_path):
    run = runs.write(tmp_path / "a0", runs.rows(1.0))
    for content, message in (
        ('{"format": 1, "identity": {"study": "gamps", "seed": 0}, "sessions": [1]}', "a0' is no training run"),
        ("{", "a0' has a manifest.json that is not one of a run.*Name another"),
        (None, "a0' holds no run with a manifest: name another"),
    ):
        (run / "manifest.json").unlink()
        if content is not None:
            (run / "manifest.json").write_text(content)
        with pytest.raises(InputError, match=f"^runs=.*{message}"):
            compare.main([str(run)])


def test_half_a_line_at_the_end_is_left_out(two, tmp_path, capsys):
    compare.main(two)
    whole = capsys.readouterr().out
    with (tmp_path / "a0" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "act')
    compare.main(two)
    said = capsys.readouterr()
    assert said.out == whole and "its last 21 bytes are no record and are left out" in said.err


def test_a_figure_is_drawn_once(two, tmp_path, monkeypatch):
    figure = tmp_path / "curves.png"
    saved = figures.kept(monkeypatch)
    assert compare.main([*two, "--out", str(figure)]) == 0
    drawn = figure.read_bytes()
    assert drawn.startswith(b"\x89PNG")
    # Up to three seeds the interquartile mean is the mean; b goes on to step 30, which a has not reached.
    (axes,) = saved[0].axes
    each = np.array([[0.0, 0.0, 0.0], [10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]), np.array([[0, 0], [20, 5], [21.5, 30]])
    for i, values in enumerate(each):
        figures.check_curve(axes, i, [0, 10, 20], values.mean(axis=1))
        figures.check_band(axes, i, [0, 10, 20], *statistics.interquartile_interval(values))
    said = "(interquartile mean of {} seeds, band: 95 % bootstrap interval)"
    assert figures.legend(saved[0]) == [f"a {said.format(3)}", f"b {said.format(2)}"]
    with pytest.raises(InputError, match="exists"):
        compare.main([*two, "--out", str(figure)])
    assert figure.read_bytes() == drawn


def test_random_actions_are_read_from_before_learning(tmp_path):
    before = {"env/steps": 10, "train/updates": 0, "collect/episodes": 2, "collect/episode_return": 4.0}
    nothing_ended = before | {"collect/episodes": 0, "collect/episode_return": float("nan")}
    more = before | {"collect/episodes": 1, "collect/episode_return": 1.0}
    after = before | {"train/updates": 1, "collect/episode_return": 100.0}
    run = runs.write(tmp_path / "run", [before, nothing_ended, more, after])
    # Two episodes of 4 and one of 1.
    assert compare._random(compare.groups([str(run)])) == ("random actions", pytest.approx(3.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs is empty"),
        (["nowhere"], "is no run"),
        (["a="], "not of the form"),
        (["=a0"], "not of the form"),
        (["a0", "a0"], "label 'a0' of another group"),
        (["twice=a0,a0"], "seed 0 of the same run twice"),
        (["a0", "elsewhere"], "different environments.*'pendulum'.*elsewhere"),
        (["a0", "--metric", "eval/retrun"], "did you mean 'eval/return'"),
        (["a0", "--threshold", "nan"], "threshold=nan must be finite"),
        (["a0", "--out", "missing/curves.png"], "is no directory"),
        (["a0", "--out", "curves"], r"out='curves' must end in .*\.png"),
        (["a0", "--out", "curves.xyz"], r"out='curves\.xyz' must end in .*\.png"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    runs.write(tmp_path / "a0", runs.rows(1.0))
    runs.write(tmp_path / "elsewhere", runs.rows(1.0), env="pendulum")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as raised:
        compare.main(arguments)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_is_a_group_for_each_of_its_numbers(tmp_path, capsys):
    values = [[0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 10.0, 30.0]]
    sweep = runs.write(tmp_path / "s", runs.rows(*values), seeds=2, sweep={"gamma": [0.9, 0.99]})
    assert [group.label for group in compare.groups([str(sweep)])] == ["s gamma=0.9", "s gamma=0.99"]
    compare.main([str(sweep)])
    text = capsys.readouterr().out
    assert [float(line.split()[3]) for line in text.splitlines() if line.startswith("s gamma")] == [2, 20]
    other = runs.write(tmp_path / "o", runs.rows(1.0, 2.0), seed=7)
    with pytest.raises(InputError, match="joins a sweep"):
        compare.groups([f"both={sweep},{other}"])


def test_no_group_takes_the_place_of_another(tmp_path):
    numbers = {"seeds": 1, "sweep": {"gamma": [0.9999991, 0.9999992]}}
    x, y = (runs.write(tmp_path / each / "sw", runs.rows([1.0, 2.0]), **numbers) for each in "xy")
    assert [group.label for group in compare.groups([str(x)])] == ["sw gamma=0.9999991", "sw gamma=0.9999992"]
    with pytest.raises(InputError, match=r"y/sw' has the label 'sw gamma=0.9999991' of another group: write label=dir"):
        compare.groups([str(x), str(y)])
    assert len(compare.groups([str(x), f"other={y}"])) == 4
