"""The study end to end: a tiny run on the host, its table and its predictions, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import mscv, mscv_prediction, mscv_table
from experiments._mscv import states
from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, lock, loop, programs, records
from jaxhybrid.runtime.curves import Curve
from jaxhybrid.runtime.statistics import mean_difference
from jaxhybrid.systems import mscv as mscv_system

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    arguments = ["--preset", "smoke", "--env", "reacher", "--out", str(out / "mscv"), "--no-tensorboard", "--quiet"]
    assert mscv.main([*arguments, "--compile-cache", jax.config.jax_compilation_cache_dir]) == 0
    return out


def test_a_smoke_run_leaves_what_a_run_leaves(runs):
    names = {path.name for path in (runs / "mscv").iterdir()}
    assert {"manifest.json", "metrics.jsonl", "checkpoints", "curve.png", "policy"} <= names
    rows = [json.loads(line) for line in (runs / "mscv" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]["env/steps"] == 3 * 64
    assert rows[-1]["policy/kl"] > 0
    # Episodes of 50 steps: the second batch of 32 is the first that one ends in.
    assert rows[1]["collect/episode_return"] is None and rows[2]["collect/episode_return"] < 0


def test_the_model_predicts_open_loop(runs):
    assert mscv_prediction.main(["--run", str(runs / "mscv"), "--episode-steps", "20", "--starts", "50"]) == 0
    found = json.loads((runs / "mscv" / "prediction.json").read_text())["over_steps_ahead"]
    assert {len(values) for values in found.values()} == {15}
    assert (runs / "mscv" / "prediction.png").stat().st_size > 10_000
    assert np.isfinite(list(found.values())).all()
    assert min(found["difference"]) > 0 and min(found["reward_std"]) > 0
    before = (runs / "mscv" / "prediction.json").read_bytes()
    with pytest.raises(InputError, match=r"prediction.json' exists"):
        mscv_prediction.main(["--run", str(runs / "mscv")])
    assert (runs / "mscv" / "prediction.json").read_bytes() == before


def test_a_second_prediction_is_kept_elsewhere(runs, tmp_path):
    out = tmp_path / "second.json"
    options = ["--steps", "2", "--episode-steps", "5", "--starts", "5", "--out", str(out)]
    assert mscv_prediction.main(["--run", str(runs / "mscv"), *options]) == 0
    assert json.loads(out.read_text())["steps"] == 2 and (tmp_path / "second.png").exists()


def test_the_table_says_what_was_reached(runs):
    assert mscv_table.main(["--runs", str(runs), "--threshold", "-1000"]) == 0
    facts = json.loads((runs / "table1.json").read_text())
    assert facts["threshold"] == -1000 and facts["paper"] == [34, 42]
    assert (runs / "curves.png").exists()
    with pytest.raises(InputError, match=r"table1.json' exists"):
        mscv_table.main(["--runs", str(runs)])
    with pytest.raises(InputError, match=r"end it in \.json"):
        mscv_table.main(["--runs", str(runs), "--out", str(runs / "second.png")])
    assert json.loads((runs / "table1.json").read_text()) == facts
    assert mscv_table.main(["--runs", str(runs), "--out", str(runs / "second.json")]) == 0
    assert json.loads((runs / "second.json").read_text())["threshold"] == -7
    assert (runs / "second.png").exists()


@pytest.mark.slow
def test_one_command_runs_every_method(tmp_path):
    out = tmp_path / "all"
    arguments = ["--method", "all", "--preset", "smoke", "--env", "reacher", "--out", str(out)]
    cache = ["--compile-cache", jax.config.jax_compilation_cache_dir]
    assert mscv.main([*arguments, *cache, "--no-tensorboard", "--quiet"]) == 0
    facts = json.loads((out / "table1.json").read_text())
    assert set(facts["iterations_to_threshold"]) == set(mscv.METHODS)
    assert (out / "curves.png").exists()


@pytest.fixture
def trained(monkeypatch):
    """Lets the study open the directory of a method instead of training it; the values are exit codes by method."""
    codes = {}

    def train(setting, *, study, options, **_):
        directory = Path(options.out)
        records.open_run(directory, {"study": study, "env": setting.env.spec.name}, {}, resume=options.resume)
        lock.release(directory)
        return loop.RunResult(directory, None, 0, codes.setdefault(directory.name, 0))

    monkeypatch.setattr(mscv.training, "train", train)
    return codes


def test_every_method_goes_on_where_it_was_stopped(trained, tmp_path, capsys):
    arguments = ["--method", "all", "--env", "pendulum", "--out", str(tmp_path / "all")]
    with pytest.raises(InputError, match="holds no run to resume"):
        mscv.main([*arguments, "--resume"])
    trained["trpo"] = 130
    assert mscv.main(arguments) == 130
    assert set(trained) == {"mscv", "trpo"}
    trained["trpo"] = 0
    assert mscv.main([*arguments, "--resume"]) == 0
    assert set(trained) == set(mscv.METHODS)
    # The paper has no threshold here.
    line = f"python -m experiments mscv_table --runs {tmp_path / 'all'} --threshold RETURN"
    assert f"{line}\n" in capsys.readouterr().err
    (tmp_path / "all" / "table1.json").touch()
    assert mscv.main([*arguments, "--resume"]) == 0
    assert f"{line} --out FILE\n" in capsys.readouterr().err


def test_reached_by_hand():
    # Means over three: 4 is reached at the fourth by the first seed, at the third by the second, never by the third.
    values = np.array([[9.0, 3.0, 0.0], [0.0, 4.0, 0.0], [0.0, 5.0, 0.0], [12.0, 0.0, 0.0], [0.0, 0.0, 11.0]])
    found = mscv_table.reached(Curve(np.arange(5.0), values), 4.0)
    assert found["iterations"] == [4, 3, None]
    assert (found["median"], found["quartiles"], found["total"]) == (4, [3, None], 5)


def test_seeds_are_compared_in_pairs_where_runs_are_of_one_study():
    # Only the seeds that both have are pairs; another library's runs are not, and need not name seeds.
    ours, base = {"last": [4.0, 2.0, 6.0, 99.0]}, {"last": [1.0, 2.0, 3.0]}
    run, base_run = {"study": "mscv", "seeds": [1, 0, 2, 7]}, {"study": "mscv", "seeds": [0, 1, 2]}
    paired = mean_difference([2, 4, 6], [1, 2, 3], paired=True)
    np.testing.assert_allclose(mscv_table._minus_trpo(ours, base, run, base_run), paired, atol=0.006)
    apart = mean_difference([4, 2, 6, 99], [1, 2, 3], paired=False)
    np.testing.assert_allclose(
        mscv_table._minus_trpo(ours, base, {"study": "trpo_returns"}, base_run), apart, atol=0.006
    )
    alone = {"last": [4.0]}, {"last": [1.0]}, {"study": "mscv", "seeds": [1]}, {"study": "mscv", "seeds": [1]}
    assert mscv_table._minus_trpo(*alone) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "tpro"], "method='tpro' is unknown: did you mean 'trpo'"),
        (["--env", "swimer"], "swimer"),
        (["--method", "all", "--env", "pendulum", "--sweep", "eta=0,1"], "sweep=eta=0,1: the table of all methods"),
        (["--method", "trpo", "--preset", "paper/svg"], "both name the method"),
        (["--preset", "paper-hopper", "--env", "swimmer"], "env='mujoco_v1/swimmer' is not what"),
        (["--config.num-envs", "7"], "multiple of num_envs=7"),
        (["--env", "reacher", "--config.horizon", "900"], "horizon=900"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        mscv.main([*arguments, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_study_has_no_place_in_the_table(tmp_path):
    directory = tmp_path / "slopes"
    records.open_run(directory, {"study": "critic_slopes"}, {}, resume=False)
    lock.release(directory)
    (directory / records.METRICS).touch()
    with pytest.raises(InputError, match="a run of the study 'critic_slopes' in 'slopes', and the table is of mscv"):
        mscv_table.main(["--runs", str(tmp_path)])


def test_a_sweep_has_no_place_in_the_table(tmp_path):
    directory = tmp_path / "horizons"
    records.open_run(directory, {"study": "mscv", "env": "pendulum", "sweep": {"horizon": [1, 2]}}, {}, resume=False)
    lock.release(directory)
    (directory / records.METRICS).touch()
    with pytest.raises(InputError, match="has a sweep in 'horizons'"):
        mscv_table.main(["--runs", str(tmp_path), "--threshold", "0"])


def test_a_seed_of_several_in_one_program_is_read(tmp_path):
    config, seeds = mscv_system.presets["smoke"], [4, 7]
    system = mscv_system.make(config, envs.make_rescaled("pendulum", config.num_envs))
    both = jax.jit(jax.vmap(system.init))(jax.numpy.stack([programs.training_key(seed) for seed in seeds]))
    identity = {"study": "mscv", "env": "pendulum", "config": dataclasses.asdict(config), "seeds": seeds}
    records.open_run(tmp_path / "run", identity | {"sweep": {}, "parallel": "vmap"}, {}, resume=False)
    lock.release(tmp_path / "run")
    checkpoint.save(tmp_path / "run" / "checkpoints", 3, {"state": both}, {})
    run = states.load(tmp_path / "run", 7)
    assert run.iteration == 3
    jax.tree.map(lambda x, every: np.testing.assert_array_equal(x, every[1]), run.state.learner, both.learner)


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(InputError, match="has no run in it"):
        mscv_table.main(["--runs", str(tmp_path)])
    with pytest.raises(InputError, match=r"run=.* holds no run"):
        mscv_prediction.main(["--run", str(tmp_path)])
    with pytest.raises(InputError, match="steps=30 is more than episode_steps=20"):
        mscv_prediction.main(["--run", str(tmp_path), "--steps", "30", "--episode-steps", "20"])
