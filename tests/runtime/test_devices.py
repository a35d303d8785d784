"""One run over several devices, and one job of several processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, policies, records
from jaxhybrid.runtime.devices import divide_cpu
from jaxhybrid.runtime.options import RunOptions, checked
from tests.runtime import toy
from tests.runtime.test_loop import content


def start(module, *arguments, devices=1, **variables):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **variables}
    command = [sys.executable, "-m", *module.split(), *map(str, arguments), "--no-tensorboard"]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return err


def job(*arguments, processes=2):
    """Starts the processes of one job on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes)}
    return [
        start("tests.runtime.toy", *arguments, "--distributed", **shared, JAX_PROCESS_ID=str(index))
        for index in range(processes)
    ]


def numbers(directory, name):
    return np.array([row[name] for row in records.read(directory) if name in row], float)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("devices") / "run"
    finish(start("tests.runtime.toy", "--out", out))
    return out


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_one_run_divided_over_devices_has_the_same_records(alone, tmp_path, devices):
    out = tmp_path / "run"
    err = finish(start("tests.runtime.toy", "--out", out, "--data-parallel", devices=devices))
    assert "divides nothing" not in err
    np.testing.assert_allclose(numbers(out, "critic/loss"), numbers(alone, "critic/loss"), rtol=1e-5, atol=1e-7)
    assert checkpoint.steps(out / "checkpoints") == checkpoint.steps(alone / "checkpoints")


def test_a_divided_run_resumes_to_the_bit(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    finish(start("tests.runtime.toy", "--out", whole, "--data-parallel", devices=2))
    finish(start("tests.runtime.toy", "--out", out, "--data-parallel", "--iterations", 5, devices=2))
    finish(start("tests.runtime.toy", "--out", out, "--data-parallel", "--resume", "--iterations", 12, devices=2))
    assert content(out) == content(whole)


def test_maac_divides_its_batches_and_has_the_same_first_updates(tmp_path):
    small = ("--preset", "sac", "--env", "pendulum", "--iterations", 1, "--config.steps-per-iteration", 32)
    small += ("--config.updates-per-iteration", 1, "--config.initial-steps", 32, "--config.batch-size", 64)
    small += ("--config.policy-hidden", 8, "--config.critic-hidden", 8, "--config.env", "pendulum")
    finish(start("experiments maac", *small, "--out", tmp_path / "one"))
    err = finish(start("experiments maac", *small, "--out", tmp_path / "four", "--data-parallel", devices=4))
    assert "divides nothing" not in err
    for metric in ("critic/loss", "critic/grad_norm", "actor/grad_norm"):
        one, four = (numbers(tmp_path / name, metric) for name in ("one", "four"))
        assert np.all(np.isfinite(one)) and one.size == 1
        np.testing.assert_allclose(four, one, rtol=1e-5, err_msg=metric)


def test_a_cpu_counts_as_several_devices(alone, tmp_path):
    out = tmp_path / "run"
    err = finish(start("tests.runtime.toy", "--out", out, "--data-parallel", "--cpu-devices", 2))
    assert "divides nothing" not in err
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["sessions"][-1]["hardware"]["devices"]) == 2
    np.testing.assert_allclose(numbers(out, "critic/loss"), numbers(alone, "critic/loss"), rtol=1e-5, atol=1e-7)


def test_a_cpu_that_is_in_use_is_not_divided():
    with pytest.raises(InputError, match="cpu_devices=3 came too late"):
        divide_cpu(3)


def test_processes_of_a_job_take_shares_of_the_seeds_and_resume(tmp_path):
    out, apart = tmp_path / "job", tmp_path / "apart"
    for process in job("--seeds", 4, "--out", out, "--iterations", 5):
        finish(process)
    errors = [finish(process) for process in job("--seeds", 4, "--out", out, "--resume", "--iterations", 12)]
    assert "resumed at iteration 5" in errors[0] and "complete" in errors[0] and errors[1] == ""
    finish(start("tests.runtime.toy", "--seeds", 4, "--out", apart))
    np.testing.assert_allclose(numbers(out, "critic/loss"), numbers(apart, "critic/loss"), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(numbers(out, "eval/return")[-1], numbers(apart, "eval/return")[-1], rtol=1e-5)
    assert policies.load(out / "policy").seeds == [0, 1, 2, 3]


def test_seeds_that_do_not_divide_over_the_processes_are_refused(tmp_path):
    errors = [finish(process, code=2) for process in job("--seeds", 3, "--out", tmp_path / "run")]
    assert all("3 members do not divide over the 2 processes" in error for error in errors)
    assert not (tmp_path / "run").exists()


def test_processes_of_a_job_divide_one_run_and_one_of_them_writes(alone, tmp_path):
    out = tmp_path / "run"
    errors = [finish(process) for process in job("--out", out, "--data-parallel")]
    assert "complete at iteration 12" in errors[0] and errors[1] == ""
    np.testing.assert_allclose(numbers(out, "critic/loss"), numbers(alone, "critic/loss"), rtol=1e-5, atol=1e-7)
    assert policies.load(out / "policy").seeds == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distributed": True}, "name it with --out"),
        ({"data_parallel": True, "seeds": 2}, "leave out --seeds"),
        ({"cpu_devices": 0}, "cpu_devices=0 must be at least 1"),
        ({"memory_gib": 0.0}, "memory_gib=0.0 must be positive"),
        ({"memory_gib": float("inf")}, "memory_gib=inf must be positive and finite"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        checked(RunOptions(**options))


def test_a_host_environment_is_not_divided(tmp_path):
    with pytest.raises(InputError, match="data_parallel is not possible"):
        toy.run(toy.Config(), host=True, data_parallel=True, out=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_a_job_whose_processes_do_not_meet_says_how_to_start_it(tmp_path):
    err = finish(start("tests.runtime.toy", "--out", tmp_path / "run", "--distributed"), code=2)
    assert err.startswith("error: distributed: ") and "srun" in err and err.count("\n") == 1
