import os
import subprocess
import sys
import types

import jax
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli
from tests.runtime import toy

PRESETS = {"plain": toy.Config(), "other": toy.Config(env="elsewhere"), "any": toy.Config(env="")}


def parse(*argv):
    return cli.parse(argv, module="toy", description="A toy.", presets=PRESETS, preset="plain")


def test_defaults_come_from_the_preset_and_fields_override_it():
    assert parse().config == toy.Config() and parse().env == "toy"
    arguments = parse("--preset", "other", "--config.iterations", "3", "--seeds", "2", "--out", "x", "--no-progress")
    assert arguments.env == "elsewhere" and arguments.config == toy.Config(env="elsewhere", iterations=3)
    assert (arguments.run.seeds, arguments.run.out, arguments.run.progress) == (2, "x", False)
    assert parse("--preset=other").preset == "other"


def test_numbers_meant_for_another_environment_are_refused_unless_taken_on_purpose():
    with pytest.raises(InputError, match=r"meant for, 'toy'.*--config\.env pendulum"):
        parse("--env", "pendulum")
    assert parse("--env", "pendulum", "--config.env", "pendulum").env == "pendulum"
    assert parse("--env", "toy/spring").env == "toy/spring"
    assert parse("--preset", "any", "--env", "pendulum").env == "pendulum"
    with pytest.raises(InputError, match="env is missing"):
        parse("--preset", "any")


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'plain'"):
        parse("--preset", "plane")


def process(*argv):
    return subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_the_front_door_lists_what_there_is(package):
    result = process(package)
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.startswith(f"usage: python -m {package}")
    names = cli.studies(package)
    assert all(f"  {name} " in result.stdout and line for name, line in names.items())


@pytest.mark.parametrize(
    ("package", "preset", "chosen", "hasty"),
    [
        ("experiments", ["--preset", "smoke"], None, True),
        ("experiments", ["--preset=smoke/sac"], None, True),
        ("experiments", ["--preset", "smoke"], "0", False),
        ("experiments", ["--preset", "demo"], None, False),
        ("experiments", [], None, False),
        ("benchmarks", ["--preset", "smoke"], None, False),
    ],
)
def test_smoke_presets_of_experiments_are_compiled_in_haste(package, preset, chosen, hasty, monkeypatch):
    name = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    study = types.SimpleNamespace(main=lambda argv: int(jax.config.values["jax_disable_most_optimizations"]))
    monkeypatch.setattr(cli.importlib, "import_module", lambda module: study)
    monkeypatch.setattr(cli, "studies", lambda package: {"study": ""})
    before = jax.config.values["jax_disable_most_optimizations"]
    monkeypatch.setenv(name, "0")
    if chosen is None:
        monkeypatch.delenv(name)
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        assert cli.front_door(package, ["study", *preset]) == hasty
        # Child processes do as their parent does.
        assert os.environ.get(name) == ("1" if hasty else chosen)
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def test_an_unknown_study_names_the_nearest():
    result = process("experiments", "mac")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: study='mac' is unknown: did you mean 'maac' or 'mscv' or 'gmas'?\n"


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    out = tmp_path / "run"
    result = process("tests.runtime.toy", "--seeds", "0", "--out", str(out))
    assert result.returncode == 2 and result.stderr == "error: seeds=0 must be at least 1, or a range such as 0:16.\n"
    assert not out.exists()


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("argv", [["experiments"], ["tests.runtime.toy", "--help"]])
def test_output_that_nobody_reads_is_no_error(argv, buffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *argv]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_broken_pipe_that_is_not_the_output_is_an_error():
    def main(argv):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        cli.run_main(main, [])


def test_help_names_the_presets(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "plain, other, any" in text and "--config.learning-rate" in text and "--checkpoint-every" in text
