"""The front door: ``python -m jaxhybrid``."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import tyro

from jaxhybrid import __main__ as front_door
from jaxhybrid.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runs.md").read_text()


def process(*argv, **options):
    command = [sys.executable, "-m", "jaxhybrid", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def test_it_lists_the_commands_without_loading_jax():
    code = "import sys; from jaxhybrid import __main__ as door; door.main([]); assert 'jax' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: python -m jaxhybrid <command>")
    assert all(f"  {name} " in result.stdout for name in front_door.COMMANDS)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    result = process("compare", str(tmp_path))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: runs='{tmp_path}' is no run: it has no metrics.jsonl.\n"


def test_an_unknown_command_names_the_nearest():
    with pytest.raises(InputError, match="command='compar' is unknown: did you mean 'compare'"):
        front_door.main(["compar"])


def test_the_documentation_names_commands_that_exist():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"python -m jaxhybrid ([a-z_]+)", page.read_text())}
    assert named <= set(front_door.COMMANDS)


@pytest.mark.parametrize("command", re.findall(r"^python -m jaxhybrid (.+)$", PAGE, flags=re.MULTILINE))
def test_commands_of_the_documentation_are_understood(command):
    name, *rest = shlex.split(command)
    tyro.cli(importlib.import_module(f"jaxhybrid.runtime.{name}").Arguments, args=rest)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
def test_code_of_the_documentation_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "runs.md", "exec"), {})
