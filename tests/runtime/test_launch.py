"""Jobs through submitit's local executor: what is refused, what runs, and what a preemption leaves."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from experiments import launch as command
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, launch, records

# Submitit leaves pipes and event loops to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

STUDY = ["maac", "--preset", "sac", "--env", "pendulum", "--no-tensorboard", "--checkpoint-every", "1"]
STUDY += ["--config.env", "pendulum", "--config.steps-per-iteration", "20", "--config.updates-per-iteration", "1"]
STUDY += ["--config.initial-steps", "20", "--config.policy-hidden", "8", "--config.critic-hidden", "8"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["local"], "no study"),
        (["local", "--", "mac", "--out", "x"], "did you mean 'maac'"),
        (["local", "--", "maac", "--out"], "needs --out DIR"),
        (["local", "--minutes", "0", "--", "maac", "--out", "x"], "minutes=0"),
        (["local", "--gpus-per-node", "-1", "--", "maac", "--out", "x"], "gpus_per_node=-1"),
        (["local", "--nodes", "2", "--", "maac", "--out", "x"], "--distributed"),
        (["local", "--", "maac", "--preset", "smok", "--out", "x"], "preset='smok' is unknown: did you mean 'smoke'"),
        (["local", "--", "mscv", "--method", "tpro", "--out", "x"], "method='tpro' is unknown: did you mean 'trpo'"),
        (["local", "--", "dream", "--variant", "none", "--out", "x"], "variant='none' is unknown"),
        (["local", "--", "gmas", "--seeds", "0", "--out", "x"], "seeds=0 must be at least 1"),
        (["local", "--", "gamps_search", "--preset", "nothing", "--out", "x"], "preset='nothing' is unknown"),
        (["local", "--", "maac", "--distributed", "--cpu-devices", "2", "--seed", "-1", "--out", "x"], "seed=-1"),
        (["local", "--", "maac", "--cpu-devices", "0", "--out", "x"], "cpu_devices=0 must be at least 1"),
        (["local", "--", "maac", "--sweep", "gama=1", "--out=x"], "did you mean 'gamma'"),
        (["local", "--memory-gb", "-5", "--", "maac", "--out", "x"], "memory_gb=-5 must be at least 1"),
        (["slurm", "--", "maac", "--out", "x"], "cluster='slurm' is not here"),
        (["slurm", "--", "maac", "--resume", "--out=x"], "cluster='slurm' is not here"),
    ],
)
def test_jobs_that_cannot_run_are_refused_before_anything_is_written(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=message):
        command.main(argv)
    assert not list(tmp_path.iterdir())


def test_an_option_that_the_study_has_not_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        command.main(["local", "--", "maac", "--stes", "3", "--out", "x"])
    assert stopped.value.code == 2 and "--stes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_preempted_job_saves_and_the_one_in_its_place_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(launch.__file__).parents[2]))
    out = tmp_path / "run"
    job = launch.submit(
        "local", tmp_path / "jobs", launch.Resources(), [*STUDY, "--out", str(out), "--iterations", "150"]
    )
    deadline = time.monotonic() + 120
    while not checkpoint.steps(out / "checkpoints") or checkpoint.steps(out / "checkpoints")[-1] < 3:
        assert time.monotonic() < deadline and not job.done(), job.stderr()
        time.sleep(0.1)
    # What SLURM sends before it preempts; the local executor has one task, a child of its controller.
    (task,) = pathlib.Path(f"/proc/{job.job_id}/task/{job.job_id}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    assert job.result() == 0
    log = job.stderr()
    assert "stopping after this iteration" in log and "resumed at iteration" in log
    assert [row["iteration"] for row in records.read(out)] == list(range(151))


def test_a_job_that_fails_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(launch.__file__).parents[2]))
    arguments = ["local", "--folder", str(tmp_path / "jobs"), "--wait"]
    code = command.main([*arguments, "--", "maac", "--config.horizon", "-1", "--out", str(tmp_path / "run")])
    assert code == 1
    assert "exit code 2" in capsys.readouterr().err


OUTS = (["--out", "run"], ["--out=run"], ["--out", "other", "--out", "run"], ["--out", "~/run"], ["--out=~/run"])


# A run, and one for each method of a study.
BEGUN = ("manifest.json", "trpo/manifest.json")


@pytest.mark.parametrize("manifest", BEGUN)
@pytest.mark.parametrize("out", OUTS)
def test_a_job_resumes_the_run_that_its_study_would_write_to(tmp_path, monkeypatch, out, manifest):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\necho $@ >>log\n")
    (tmp_path / "python").chmod(0o755)
    job = launch.StudyJob(["maac", *out])
    for _ in range(2):
        assert job() == 0
        (tmp_path / "run" / manifest).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / manifest).touch()
    begins, resumes = (tmp_path / "log").read_text().splitlines()
    assert resumes == f"{begins} --resume"


# What the script finds in its PATH. Like Slurm's own, this srun kills its step when it gets a SIGTERM itself.
COMMANDS = {
    "srun": """trap 'kill -KILL "$step"' TERM; "$@" & step=$!; wait "$step"; """,
    "python": """trap "echo saved >>log; exit 143" TERM; echo "$@" >>log; echo $$ >step; while sleep .1; do :; done""",
    "scancel": """[[ "$*" == "--signal=TERM 7" ]] && kill -TERM "$(cat step)" """,
    "scontrol": """echo "scontrol $*" >>log""",
}


def script(folder, *arguments, **other):
    """Starts the script for sbatch in a directory, among commands that stand for those of Slurm."""
    for name, body in (COMMANDS | other).items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    path = pathlib.Path(launch.__file__).parents[2] / "docs" / "slurm.sbatch"
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "HOME": str(folder)}
    return subprocess.Popen(["bash", path, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_script_for_sbatch_lets_the_study_save_and_requeues_itself(tmp_path):
    job = script(tmp_path, "maac", "--out", "run")
    deadline = time.monotonic() + 30
    while not (tmp_path / "step").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    log = (tmp_path / "log").read_text()
    assert log.splitlines() == ["-m experiments maac --out run", "saved", "scontrol requeue 7"]


@pytest.mark.parametrize("manifest", BEGUN)
@pytest.mark.parametrize("out", OUTS)
def test_the_script_for_sbatch_resumes_the_run_that_its_study_would_write_to(tmp_path, out, manifest):
    (tmp_path / "run" / manifest).parent.mkdir(parents=True)
    (tmp_path / "run" / manifest).touch()
    job = script(tmp_path, "maac", *out, python='echo "$@" >>log')
    job.communicate(timeout=30)
    assert (tmp_path / "log").read_text() == f"-m experiments maac {' '.join(out)} --resume\n"


def test_the_script_for_sbatch_needs_a_directory(tmp_path):
    job = script(tmp_path, "maac", "--out")
    assert "name the directory" in job.communicate(timeout=30)[1] and job.returncode == 2
