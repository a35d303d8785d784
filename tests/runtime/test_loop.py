import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, loop, members, programs, records
from jaxhybrid.runtime.options import RunOptions
from tests.runtime import toy


def content(directory):
    """The records as text, without wall-clock fields."""
    lines = (directory / records.METRICS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same(a, b):
    def raw(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return all(raw(x) == raw(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def command(*arguments, before=(), **options):
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tests.runtime.toy", "--compile-cache", "off", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 12 iterations."""
    return toy.run(toy.Config(), out=str(tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_leaves_its_files(whole):
    assert whole.exit_code == 0 and whole.iteration == 12
    rows = content(whole.directory)
    assert [row["iteration"] for row in rows] == list(range(13))
    assert [row["iteration"] for row in rows if "eval/return" in row] == [0, 3, 6, 9, 12]
    assert rows[1]["collect/episode_return"] is None and rows[2]["collect/episode_return"] is not None
    assert (whole.directory / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert checkpoint.steps(whole.directory / "checkpoints") == [8, 12]
    manifest = json.loads((whole.directory / "manifest.json").read_text())
    assert manifest["identity"]["config"]["learning_rate"] == 0.1
    assert manifest["sessions"][0]["reproducibility"]["level"] == "R3"


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("stop", [4, 7])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, whole, host, stop):
    reference = toy.run(toy.Config(), out=str(tmp_path / "whole"), host=True) if host else whole
    # The last policy of the short run is evaluated too, unless that was due anyway.
    options = {"out": str(tmp_path / "run"), "host": host, "eval_every": 1 if stop % 3 else 3}
    if options["eval_every"] == 1:
        reference = toy.run(toy.Config(), **{**options, "out": str(tmp_path / "every")})
    toy.run(toy.Config(), **options, iterations=stop)
    resumed = toy.run(toy.Config(), **options, resume=True, iterations=12)
    assert same(resumed.state, reference.state)
    assert content(resumed.directory) == content(reference.directory)


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path, whole):
    run = toy.run(toy.Config(), out=str(tmp_path / "run"))
    checkpoint_12 = run.directory / "checkpoints" / "00000012" / "manifest.json"
    checkpoint_12.write_text(checkpoint_12.read_text().replace("12", "13", 1))
    resumed = toy.run(toy.Config(), out=str(tmp_path / "run"), resume=True)
    assert same(resumed.state, whole.state)
    assert content(resumed.directory) == content(whole.directory)
    assert checkpoint.steps(resumed.directory / "checkpoints") == [8, 12]


@pytest.mark.parametrize("leaf", ["params", "momentum", "buffer", "key", "count"])
def test_the_comparison_would_notice_a_lost_leaf(whole, leaf):
    state = toy.make(toy.Config()).init(jax.random.key(0))
    step = jax.jit(toy.make(toy.Config()).step)
    for _ in range(4):
        state, _ = step(state, None)
    lost = {"key": jax.random.key(99)}.get(leaf)
    lost = jax.tree.map(lambda x: x * 0, getattr(state, leaf)) if lost is None else lost
    state = state._replace(**{leaf: lost})
    for _ in range(8):
        state, _ = step(state, None)
    assert not same(state._replace(key=whole.state.key), whole.state)


def test_a_fresh_process_resumes_to_the_bit(tmp_path, whole):
    out = tmp_path / "run"
    toy.run(toy.Config(), out=str(out), iterations=6)
    process = command("--out", out, "--resume", "--iterations", 12, "--eval-every", 3, "--no-tensorboard")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert content(out) == content(whole.directory)


def test_a_complete_run_is_left_alone(whole):
    before = (whole.directory / records.METRICS).read_bytes()
    again = toy.run(toy.Config(), out=str(whole.directory), resume=True)
    assert again.exit_code == 0 and same(again.state, whole.state)
    assert (whole.directory / records.METRICS).read_bytes() == before


def test_a_resumed_run_goes_on_to_what_it_was_last_to_do(tmp_path, capsys):
    out = tmp_path / "run"
    toy.run(toy.Config(), out=str(out), iterations=14)
    for _ in range(2):
        shutil.rmtree(out / "checkpoints" / "00000014")
        assert toy.run(toy.Config(), out=str(out), resume=True).iteration == 14
    assert toy.run(toy.Config(), out=str(out), resume=True, iterations=5, quiet=False).iteration == 14
    said = capsys.readouterr().err
    assert "has 14 iterations already, more than the 5" in said and "complete" not in said


def test_each_function_is_traced_once(tmp_path):
    toy.traces.update(init=0, step=0, act=0)
    toy.run(toy.Config(), out=str(tmp_path / "run"))
    assert toy.traces == {"init": 1, "step": 1, "act": 1}


def test_a_seed_starts_from_the_same_key_alone_and_among_others(tmp_path):
    alone = toy.run(toy.Config(), out=str(tmp_path / "alone"), seed=4, iterations=1)
    among = toy.run(toy.Config(), out=str(tmp_path / "among"), seed=3, seeds=3, iterations=1)
    assert jax.random.key_data(among.state.key)[1].tolist() == jax.random.key_data(alone.state.key).tolist()
    np.testing.assert_allclose(among.state.params["gain"][1], alone.state.params["gain"], rtol=1e-6)
    row, rows = records.read(alone.directory)[-1], records.read(among.directory)[-1]
    assert len(rows["eval/return"]) == 3 and rows["env/steps"] == [5, 5, 5]
    np.testing.assert_allclose(rows["eval/return"][1], row["eval/return"], rtol=1e-5)


def test_chunks_of_iterations_give_the_same_records(tmp_path, whole):
    run = toy.run(toy.Config(), out=str(tmp_path / "run"), chunk=3, checkpoint_every=6)
    rows, expected = content(run.directory), content(whole.directory)
    assert [list(row) for row in rows] == [list(row) for row in expected]
    for row, want in zip(rows, expected, strict=True):
        assert (row["iteration"], row["env/steps"]) == (want["iteration"], want["env/steps"])
        assert row.get("critic/loss", 0.0) == pytest.approx(want.get("critic/loss", 0.0), rel=1e-5)


def test_evaluation_neither_shares_keys_with_training_nor_changes_it(tmp_path, whole):
    seldom = toy.run(toy.Config(), out=str(tmp_path / "run"), eval_every=12)
    assert same(seldom.state, whole.state)
    keys = [programs.training_key(3), programs.evaluation_key(3), programs.collection_key(3, 0)]
    keys += [programs.evaluation_key(4), programs.collection_key(3, 1), programs.collection_key(4, 0)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_a_streak_of_refused_updates_stops_the_run_with_a_capsule(tmp_path, capsys):
    config = toy.Config(poison_at=6)
    result = toy.run(config, out=str(tmp_path / "run"), max_nonfinite=3, checkpoint_every=2)
    assert result.exit_code == 3 and result.iteration == 8
    assert "error: 3 updates in a row were refused (seed-0) by iteration 8" in capsys.readouterr().err
    (capsule,) = result.directory.glob("capsule-*")
    facts = json.loads((capsule / "capsule.json").read_text())
    assert facts["checkpoint_iteration"] == 4 and facts["iterations_to_replay"] == 4 and facts["members"] == ["seed-0"]

    system = toy.make(config)
    template = {"state": jax.eval_shape(system.init, jax.random.key(0))}
    state = checkpoint.restore(capsule / "checkpoints", template, pytest.fail).tree["state"]
    for _ in range(facts["iterations_to_replay"]):
        state, metrics = jax.jit(system.step)(state, None)
    assert metrics["guard/nonfinite_streak"] == 3


def test_a_run_whose_updates_were_refused_says_so_at_its_end(tmp_path, capsys):
    assert toy.run(toy.Config(poison_at=6), out=str(tmp_path / "run")).exit_code == 0
    said = capsys.readouterr().err
    assert "warning: 7 updates were refused" in said and "the last 7 in a row" in said and "--max-nonfinite 7" in said
    toy.run(toy.Config(), out=str(tmp_path / "good"), iterations=4)
    loop.warn_of_refused(["seed-0", "seed-1"], np.zeros(2), np.zeros(2))
    assert capsys.readouterr().err == ""
    loop.warn_of_refused(["seed-0", "seed-1"], np.array([0, 2]), np.zeros(2))
    said = capsys.readouterr().err
    assert said == "warning: 2 updates were refused because something in them was not finite (seed-1).\n"


def test_parameters_that_are_not_finite_stop_the_run_and_reach_no_disk(tmp_path):
    result = toy.run(toy.Config(poison_at=6, unguarded=True), out=str(tmp_path / "run"), checkpoint_every=2)
    assert result.exit_code == 3
    assert checkpoint.steps(result.directory / "checkpoints") == [2, 4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_that_continues(tmp_path, number, code):
    out = tmp_path / "run"
    arguments = ("--out", out, "--iterations", 1_000_000, "--no-tensorboard", "--eval-every", 100_000)
    process = command(*arguments, "--checkpoint-every", 1_000_000)
    deadline = time.monotonic() + 60
    while not (out / records.METRICS).exists() or len((out / records.METRICS).read_bytes()) < 2000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "stopped at iteration" in err and "Traceback" not in err
    rows = content(out)
    last = rows[-1]["iteration"]
    assert checkpoint.steps(out / "checkpoints")[-1] == last
    resumed = toy.run(
        toy.Config(), out=str(out), resume=True, iterations=last + 2, eval_every=100_000, checkpoint_every=1_000_000
    )
    assert resumed.iteration == last + 2
    assert [row["iteration"] for row in content(out)] == list(range(last + 3))


def test_the_second_interrupt_does_not_wait_for_the_iteration(tmp_path):
    out = tmp_path / "run"
    process = command("--out", out, "--config.busy", 1_000_000, "--no-tensorboard")
    deadline = time.monotonic() + 60
    while not checkpoint.steps(out / "checkpoints"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and "stopped at once" in err and "Traceback" not in err
    assert checkpoint.steps(out / "checkpoints") == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"seed": 2**31 - 1, "seeds": 2}, "largest seed"),
        ({"iterations": 0}, "iterations=0"),
        ({"eval_episodes": 9}, "eval_episodes=9 must be at least 10"),
        ({"chunk": 5}, "multiple of chunk=5"),
        ({"keep_last": 0}, "keep_last=0"),
        ({"resume": True, "out": None}, "--out"),
        ({"seeds": "x"}, "a range such as"),
        ({"diagnose": True}, "no diagnosis"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        toy.run(toy.Config(), **{"out": "run", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_changes_its_shapes_is_named(tmp_path):
    system = toy.make(toy.Config())
    broken = system._replace(step=lambda s, b: (s._replace(buffer=jnp.zeros(5)), {}))
    group = members.members(RunOptions(), toy.Config())
    template, _ = programs.lower_init(lambda _: broken, RunOptions(), group)
    with pytest.raises(TypeError, match="buffer"):
        options = RunOptions(compile_cache="off")
        programs.compile_programs(
            lambda _: broken, toy.env(), options, group, template=template, worker=None, num_steps=None
        )


def test_an_unusable_compile_cache_costs_time_only(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    before = jax.config.values["jax_compilation_cache_dir"]
    result = toy.run(
        toy.Config(), out=str(tmp_path / "run"), iterations=1, compile_cache=str(tmp_path / "file" / "cache")
    )
    assert result.exit_code == 0 and "compile_cache" in capsys.readouterr().err
    assert jax.config.values["jax_compilation_cache_dir"] == before
