"""The study of DREAM: what is refused, what the papers' words mean, and a run end to end with its figure."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import dream, dream_codes, dream_dynamics, dream_figure, dream_tasks
from experiments._dream import curves, finished
from jaxhybrid.envs import city
from jaxhybrid.errors import InputError
from jaxhybrid.networks import Network
from jaxhybrid.runtime import policies
from jaxhybrid.systems import dream as dream_system
from jaxhybrid.systems import dream_parts
from jaxhybrid.systems.dream_config import VARIANTS, presets
from tests.envs.test_city import buses, moved

pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--variant", "gradints"], "variant='gradints'"),
        (["--task", "map", "--env", "city/map"], "task='map'"),
        (["--task", "map", "--env=city/map"], "task='map'"),
        (["--preset", "smoke", "--variant", "planning", "--config.plan-depth", "9"], "plan_depth=9"),
        (["--preset", "smoke", "--config.learning-rate", "inf"], "learning_rate=inf"),
        (["--task", "maps", "--preset", "smoke"], "city/maps"),
        (["--env", "pendulum", "--preset", "smoke"], "has no trials"),
        (["--preset", "smoke", "--config.parallel-trials", "3"], "parallel_trials=3"),
        (["--preset", "smoke", "--task", "map", "--config.split", "paper"], "split='paper'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, field, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=field):
        dream.main([*arguments, "--out", str(out)])
    assert not out.exists()


def test_the_papers_words_are_an_environment_and_fields():
    assert dream._with_words(["--task", "map", "--variant", "dream", "--seeds", "8"]) == [
        "--seeds",
        "8",
        "--env",
        "city/map",
    ]


@pytest.fixture
def started(monkeypatch):
    """Configs of the runs that the study starts, none of which does anything."""
    configs = []

    def train(setting, *, config, **_):
        configs.append(config)
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr(dream.training, "train", train)
    return configs


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_started_with_its_fields(variant, started):
    assert dream.main(["--variant", variant, "--preset", "smoke"]) == 0
    assert started == [dataclasses.replace(presets["smoke"], **VARIANTS[variant])]


def test_a_field_that_is_given_has_the_last_word_over_the_variant(started):
    fields = ["--config.no-shared", "--config.plan-depth", "0"]
    assert dream.main(["--variant", "planning", "--preset", "smoke", *fields]) == 0
    assert started == [presets["smoke"]]


@pytest.mark.parametrize("given", [[], ["DREAM"], ["=runs/a"], ["DREAM=nowhere"]])
def test_a_figure_of_nothing_is_refused(given, tmp_path):
    with pytest.raises((InputError, SystemExit)):
        dream_figure.main([*given, "--out", str(tmp_path / "figure.png")])
    assert not list(tmp_path.iterdir())


def test_a_label_given_twice_and_a_figure_without_metrics_are_refused(tmp_path):
    out = ["--out", str(tmp_path / "figure.png")]
    with pytest.raises(InputError, match="runs='A=runs/b' has a label that is given before"):
        dream_figure.main(["A=runs/a", "A=runs/b", *out])
    with pytest.raises(InputError, match="metrics is empty"):
        dream_figure.main(["A=runs/a", *out, "--metrics"])


def test_the_numbers_of_a_sweep_are_no_seeds(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"format": 1, "identity": {"sweep": {"noise": [0.1, 0.3]}}, "sessions": [{}]})
    )
    with pytest.raises(InputError, match="is a sweep"):
        curves.read("DREAM", [tmp_path])


def test_a_figure_that_could_not_be_written_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(InputError, match=r"out=.*is no directory"):
        dream_figure.main(["DREAM=nowhere", "--out", str(tmp_path / "none" / "figure.png")])
    with pytest.raises(InputError, match="figure' must end in"):
        dream_figure.main(["DREAM=nowhere", "--out", str(tmp_path / "figure")])


def test_tables_are_of_the_last_fifth_and_its_difference_to_the_first_label_and_of_the_end():
    trials = np.arange(1, 11) * 100
    values = np.arange(10.0)[:, None] + np.array([[0.0, 2.0]])
    # Of ten tests the last two, 8 and 9.
    np.testing.assert_allclose(dream_figure.late(trials, values), [8.5, 10.5])
    drawn = {"test/return": {"one": (trials, values), "two": (trials, values + 1.0)}}
    shown = dream_figure._late_table(drawn, "trials")
    means, gaps = (list(shown.columns[i].cells) for i in (4, 5))
    # Two seeds one apart from their mean: half a width of t(0.975, 1) = 12.706.
    assert means[0] == "9.500 [-3.206, 22.206]"
    assert gaps[0] == "" and gaps[1].startswith("1.000 [")
    ends, means, seeds = (list(dream_figure._last_table(drawn, "trials").columns[i].cells) for i in (2, 3, 4))
    assert ends[0] == "1,000" and means[0] == "10.000 [-2.706, 22.706]" and seeds[1] == "10.000  12.000"
    assert dream_figure._interval(0.0012, 0.0011, 0.00135) == "0.00120 [0.00110, 0.00135]"
    small = {"execution/transition": {"one": (trials, 1e-4 * values)}}
    assert list(dream_figure._last_table(small, "trials").columns[4].cells) == ["0.00090  0.00110"]
    alone = {"execution/transition": {"one": (trials, 5e-5 * values[:, :1])}}
    assert [list(dream_figure._last_table(alone, "trials").columns[i].cells) for i in (3, 4)] == [["0.00045"]] * 2


def test_only_errors_that_shrink_by_orders_of_magnitude_are_drawn_on_a_logarithm(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    curve = np.arange(5.0), np.array([[1.0], [0.3], [0.1], [0.03], [0.01]])
    drawn = {metric: {"one": curve} for metric in ("execution/transition", "execution/distance", "test/return")}
    dream_figure._draw(drawn, tmp_path / "figure.png", "trials")
    assert [axis.get_yscale() for axis in plt.gcf().axes] == ["log", "linear", "linear"]
    assert plt.gcf().axes[0].get_title() == "the model's error of a step"
    assert not plt.gcf().legends[0].get_title().get_text(), "one seed has no band"
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize("panels", [1, 3])
def test_the_legend_is_inside_the_figure(panels, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "close", lambda figure: None)
    curve = np.arange(5.0), np.arange(10.0).reshape(5, 2)
    labels = [f"one variant of the {i} that there are" for i in range(7)]
    drawn = {f"metric/{i}": dict.fromkeys(labels, curve) for i in range(panels)}
    dream_figure._draw(drawn, tmp_path / "figure.png", "trials")
    figure = plt.gcf()
    (legend,) = figure.legends
    assert legend.get_title().get_text().startswith("bands are 95 % t intervals")
    box, outer = legend.get_window_extent(), figure.bbox
    assert 0 <= box.x0 < box.x1 <= outer.width
    assert 0 <= box.y0 < box.y1 < figure.axes[0].get_tightbbox().y0
    monkeypatch.undo()
    plt.close(figure)


def test_a_record_is_what_was_logged(tmp_path):
    group = [
        {"env/trials": np.array([400.0, 800.0]), "test/return": np.array([-2.0, 0.25]), "left/out": np.zeros(2)},
        {"env/trials": np.array([400.0, 800.0]), "test/return": np.array([np.nan, 0.75])},
    ]
    file = tmp_path / "record.json"
    file.write_text(curves.record(group, ["test/return", "left/alone"]))
    again = curves.read("DREAM", [file])
    assert [seed.keys() for seed in again] == [{"env/trials", "test/return"}] * 2
    trials, values = curves.curve("DREAM", again, "test/return")
    # Where one seed has nothing there is no mean over seeds.
    assert trials.tolist() == [800] and values.tolist() == [[0.25, 0.75]]
    with pytest.raises(InputError, match="no finite 'left/out'"):
        curves.curve("DREAM", again, "left/out")
    apart = [{"env/trials": np.array(trials), "test/return": np.zeros(2)} for trials in ([1, 3], [2, 4])]
    with pytest.raises(InputError, match="share no trials with a finite 'test/return'"):
        curves.curve("DREAM", apart, "test/return")
    with pytest.raises(InputError, match="has no 'env/steps'"):
        curves.curve("DREAM", again, "test/return", against="steps")
    with pytest.raises(InputError, match=r"of two labels, one of them 'a b'"):
        curves.new_files(str(tmp_path), ["a_b", "a b"])


def test_curves_over_steps_are_straight_between_tests_and_end_where_all_seeds_are(tmp_path):
    trials = np.array([100.0, 200.0, 300.0])
    group = [
        {"env/trials": trials, "env/steps": np.array([10.0, 20.0, 40.0]), "test/return": np.array([0.0, 1.0, 3.0])},
        {"env/trials": trials, "env/steps": np.array([14.0, 24.0, 34.0]), "test/return": np.array([2.0, np.nan, 0.0])},
    ]
    file = tmp_path / "record.json"
    file.write_text(curves.record(group, ["test/return"]))
    again = curves.read("DREAM", [file])
    steps, values = curves.curve("DREAM", again, "test/return", against="steps")
    # From the later first test to the earlier last one, at as many steps as the second seed has tests: two.
    np.testing.assert_allclose(steps, [14.0, 34.0])
    np.testing.assert_allclose(values, [[0.4, 2.0], [2.4, 0.0]])
    steps, values = curves.curve("DREAM", group[:1], "test/return", against="steps", until=30)
    np.testing.assert_allclose(steps, [10.0, 30.0])
    np.testing.assert_allclose(values, [[0.0], [2.0]])
    trials, _ = curves.curve("DREAM", group[:1], "test/return", until=250)
    assert trials.tolist() == [100, 200]
    with pytest.raises(InputError, match="until=35: a run of 'DREAM' ends after 34 steps"):
        curves.curve("DREAM", group, "test/return", against="steps", until=35)
    with pytest.raises(InputError, match="no 'test/return' in common up to 13 steps"):
        curves.curve("DREAM", group, "test/return", against="steps", until=13)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"0": {}}', '{"0": {"env/trials": [1, 2], "x": [1]}}', '{"0": {"env/trials": ["a"]}}', "{]"]
)
def test_a_record_of_another_form_is_refused(text, tmp_path):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"DREAM=.*record.json"):
        dream_figure.main([f"DREAM={file}", "--out", str(tmp_path / "figure.png")])
    assert list(tmp_path.iterdir()) == [file]


def test_codes_are_spread_by_what_they_tell_apart():
    # Two helpful orders, three useless ones; two numbers tell the helpful order, one the useless one.
    helpful, useless = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    codes = np.stack([2.0 * helpful, -2.0 * helpful, useless], axis=1)
    found = dream_codes.spread(codes, helpful + 24 * useless)
    np.testing.assert_allclose(found, [(8 + 5 / 3 * 2) / 2, 2.0 + 2 / 3, 2 / 3, 2.0])
    with pytest.raises(InputError, match="runs is empty"):
        dream_codes.main([])
    with pytest.raises(InputError, match="run='nowhere' does not exist"):
        dream_codes.main(["nowhere"])


def saved(run, config, *, seeds=(3,), facts=None, **changed):
    """Saves agents that have learnt nothing as those of a finished run; returns what the execution agent knows."""
    env, town = dream_system.setting(config, "city/map").env, city.make("map")
    agents = dream_parts.init_agents(dream_parts.make_parts(config, town), jax.random.key(0))
    params = {name: agent.params for name, agent in agents.items()}
    params["execution"] |= changed
    if len(seeds) > 1:
        params = jax.tree.map(lambda x: np.stack([x + i for i in range(len(seeds))]), params)
    policies.save(
        run, params=params, study="dream", config=vars(config), spec=env.spec, seeds=list(seeds), **(facts or {})
    )
    return params["execution"]


def test_codes_are_read_and_explorations_are_taken_for_tasks_from_a_run(tmp_path, capsys):
    problem = {
        "params": {"task": {"embedding": np.eye(24, 32)}, "code": {"kernel": np.eye(32, 64), "bias": np.zeros(64)}}
    }
    decoder = saved(tmp_path, presets["smoke"])["decoder"]
    # Whatever was explored, the code of task 5 is read.
    decoder["params"]["code"] = {"kernel": np.zeros((128, 64)), "bias": np.eye(64)[5]}
    saved(tmp_path, presets["smoke"], problem=problem, decoder=decoder)
    out = tmp_path / "codes.json"
    assert dream_codes.main([str(tmp_path), "--out", str(out)]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    codes, tasks = ([cell.strip() for cell in row[2:-1]] for row in lines if row[2].strip())
    # On the map every task has helpful buses of its own, there are no others, and no task is new.
    assert codes == ["3", "1", "0.9583", "0", "0.9583"]
    assert tasks[:2] == ["3", "24 of training"] and tasks[4] == f"{1 / 24:.4g}" and 0 < float(tasks[2]) <= 20
    assert tasks[3] == "0"  # these agents have not learnt to ride
    assert all(-2.0 <= float(value) <= 0.8 for value in tasks[5:])
    (row,), (explored,) = json.loads(out.read_text()).values()
    assert row["run"] == str(tmp_path) and row["from the mean"] == pytest.approx(23 / 24)
    assert explored["right"] == pytest.approx(1 / 24)
    with pytest.raises(InputError, match="exists"):
        dream_codes.main([str(tmp_path), "--out", str(out)])
    (_, parts, params), *_ = finished.read(str(tmp_path))
    np.testing.assert_array_equal(dream_dynamics.explored_codes(parts, params), np.tile(np.eye(64)[5], (24, 1)))
    saved(tmp_path, presets["no-exploration"])
    with pytest.raises(InputError, match="has no codes"):
        dream_codes.main([str(tmp_path)])


def test_every_member_of_a_sweep_is_read_with_its_numbers(tmp_path):
    knows = saved(tmp_path, presets["smoke"], seeds=[0, 0], facts={"numbers": [{"noise": 0.1}, {"noise": 0.3}]})
    first, second = finished.read(str(tmp_path))
    assert (first.seed, second.seed) == ("0 noise=0.1", "0 noise=0.3")
    assert (first.parts.config.noise, second.parts.config.noise) == (0.1, 0.3)
    for i, each in enumerate((first, second)):
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_array_equal(x, y[i]),
            each.params["execution"]["problem"],
            knows["problem"],
        )


def test_what_follows_an_exploration_is_told_apart_by_goal():
    right = np.array([[True, True, True, False], [True, True, False, False]])
    returns = np.where(right, 0.8, -2.0)
    found = dream_codes.Explored(np.full((2, 4), 5), right, right, returns)
    assert list(dream_codes._summary(found, np.array([0])).values()) == pytest.approx([5, 0.75, 0.75, 0.1, 0.8, -2.0])
    both = dream_codes._summary(found, np.array([0, 1]))
    assert list(both.values())[2:] == pytest.approx([0.625, -0.25, 0.8, -2.0])
    always = found._replace(right=np.ones((2, 4), bool))
    assert dream_codes._summary(always, np.array([0]))["where wrong"] is None


def test_a_model_that_has_the_tables_predicts_every_step_and_one_of_another_task_some():
    config, town = dataclasses.replace(presets["smoke"], shared=True), city.make("distraction")
    parts = dream_parts.make_parts(config, town)
    params = {name: agent.params for name, agent in dream_parts.init_agents(parts, jax.random.key(0)).items()}
    places = [(x, y) for x in range(9) for y in range(9)]
    ids = np.array([0, 25, 2])
    after = np.array([[[places.index(moved(p, a, buses(n, True))) for a in range(9)] for p in places] for n in ids])
    seen = np.array([(*p, int(p in buses(0, True))) for p in places])
    table = jax.vmap(lambda obs: parts.nets.execution.embed(params["execution"]["policy"], obs))(seen)

    def told(_, x, action, code):
        place = jnp.argmin(jnp.sum(jnp.square(x[None] - table), axis=-1))
        return table[jnp.asarray(after)[code[0].astype(int), place, action]]

    latent = parts.models.latent._replace(dynamics=Network(lambda key: {}, told))
    parts = parts._replace(models=parts.models._replace(latent=latent))
    own, swapped = (np.array(order)[:, None] * np.ones((1, 64)) for order in ([0, 1, 2], [0, 2, 1]))
    found = dream_dynamics.predicted(parts, params, ids, own)
    np.testing.assert_array_equal(found.right, np.ones((3, 3)))
    np.testing.assert_allclose(found.error, np.zeros((3, 3)), atol=1e-12)
    found = dream_dynamics.predicted(parts, params, ids, swapped)
    first, second = buses(25, True), buses(2, True)
    alike = {place for place in first if first[place] == second[place]}
    helpful = {(4, 5), (5, 4), (3, 4), (4, 3), (0, 1), (0, 7), (8, 1), (8, 7)}
    rides = [1.0, len(alike & helpful) / 8, len(alike - helpful) / 8]
    np.testing.assert_allclose(found.right, [[1.0, 1.0, 1.0], rides, rides])
    assert 0.0 < rides[1] < 1.0 and 0.0 < rides[2] < 1.0
    assert ((found.error > 1e-3) == (found.right < 1.0)).all()


def test_what_the_model_of_a_run_knows_is_printed_where_there_is_one(tmp_path, capsys):
    saved(tmp_path, dataclasses.replace(presets["smoke"], shared=True))
    assert dream_dynamics.main([str(tmp_path)]) == 0
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in row[2:-1]] for row in lines if row[2].strip()]
    assert [row[:3] for row in rows] == [["3", "24 of training", told] for told in ("code", "exploration")]
    for row in rows:
        right, error = map(float, row[3:5])
        helpful, its_error = map(float, row[5:7])
        assert 0.0 <= right < 0.5 and 0.0 <= helpful < 0.5 and min(error, its_error) > 0.0
        assert row[7:] == ["", ""]  # there are no useless ones on the map
    saved(tmp_path, presets["smoke"])
    with pytest.raises(InputError, match="has no model that is told the task"):
        dream_dynamics.main([str(tmp_path)])
    with pytest.raises(InputError, match="runs is empty"):
        dream_dynamics.main([])


@pytest.mark.parametrize(
    ("actions", "count"),
    [("35", 1), ("355", 1), ("3552155", 2), ("34445", 1), ("3145", 0), ("325", 0), ("3552155105", 3)],
)
def test_rides_on_helpful_buses_are_counted_once_each(actions, count):
    # Down to a stop, a ride there and one back, right and up to the next; up and left to the third.
    place, seen = city.START, [city.START]
    for action in map(int, actions):
        place = moved(place, action, buses(100, True))
        seen.append(place)
    found = dream_codes.helpful_rides(np.array([(*each, 0) for each in seen]), np.array([*map(int, actions)]))
    assert found == count


def test_what_is_decoded_is_taken_for_the_task_with_the_nearest_code():
    known = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0]])
    taken_for = dream_codes.nearest(np.array([[0.9, 0.0], [1.1, 0.0], [0.0, 2.6]]), known, np.array([7, 3, 9]))
    assert taken_for.tolist() == [7, 3, 9]


@pytest.mark.slow
def test_a_smoke_run_leaves_what_a_run_leaves(tmp_path):
    out = tmp_path / "run"
    arguments = ["--preset", "smoke", "--task", "map", "--out", str(out), "--no-tensorboard", "--quiet"]
    assert dream.main([*arguments, "--compile-cache", jax.config.jax_compilation_cache_dir]) == 0
    assert {"manifest.json", "metrics.jsonl", "checkpoints", "policy"} <= {path.name for path in out.iterdir()}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("env/trials") for row in rows] == [None, 8, 16]
    assert rows[-1]["guard/nonfinite"] == 0 and -2.0 <= rows[-1]["test/return"] <= 0.8
    figure = tmp_path / "figure.png"
    assert dream_figure.main([f"DREAM={out}", "--out", str(figure), "--records", str(tmp_path)]) == 0
    assert figure.stat().st_size > 10_000
    again = tmp_path / "again.png"
    assert dream_figure.main([f"DREAM={tmp_path / 'DREAM.json'}", "--out", str(again)]) == 0
    assert again.read_bytes() == figure.read_bytes()
    with pytest.raises(InputError, match="records="):
        dream_figure.main([f"DREAM={out}", "--out", str(tmp_path / "third.png"), "--records", str(tmp_path)])
    with pytest.raises(InputError, match="exists"):
        dream_figure.main([f"DREAM={out}", "--out", str(figure)])


def test_of_how_many_tasks_the_best_exploration_holds_for_new_ones(tmp_path):
    out = tmp_path / "tasks"
    assert dream_tasks.main(["--preset", "smoke", "--out", str(out)]) == 0
    assert (out / "tasks.png").stat().st_size > 10_000
    found = json.loads((out / "results.json").read_text())
    released = found["splits"]["released split"]
    assert released["tasks"] == 53 and released["right"] + released["wrong"] + released["lost"] == pytest.approx(1.0)
    assert found["random"]["tasks"] == [8, 24] and np.shape(found["random"]["right"]) == (2, 2)
    # Tasks 0 and 25 differ in two helpful buses, one of which is a step and a ride away. Its end in task 0 is that of
    # a quarter of all tasks, which are taken for 0, and likewise of 25: four times 24 less the two are not lost, and of
    # these the 23 with the same helpful buses as either are right.
    one = dream_tasks.outcome(city.make("distraction"), np.array([0, 25]))
    assert one["steps"] == 2.0 and one["right"] == pytest.approx(46 / 574) and one["lost"] == pytest.approx(288 / 574)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [(["--counts", "0"], "counts"), (["--counts", "24", "576"], "below 576"), (["--subsets", "1"], "subsets")],
)
def test_sets_of_tasks_that_there_are_not_are_refused_before_anything_is_written(arguments, field, tmp_path):
    with pytest.raises(InputError, match=field):
        dream_tasks.main([*arguments, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())
