"""What the documentation says must run, and the names it uses must exist."""

import importlib
import pathlib
import re

import pytest

from jaxhybrid.runtime.cli import studies
from jaxhybrid.systems import maac

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.filterwarnings("default")
def test_readme_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_has_an_example():
    assert len(BLOCKS) >= 1


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_commands_name_studies(package):
    pages = README + "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(rf"python -m {package} ([a-z_]+)", pages))
    assert named and named <= studies(package).keys()


def test_tables_name_what_exists():
    names = re.findall(r"^\| `((?:losses|estimators|planning|systems|ops)[\w.]+)`", README, flags=re.MULTILINE)
    assert len(names) >= 6
    for name in names:
        parent, _, last = f"jaxhybrid.{name}".rpartition(".")
        try:
            importlib.import_module(f"jaxhybrid.{name}")
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(parent), last), name


def test_the_preset_table_is_complete():
    row = next(line for line in README.splitlines() if line.startswith("| `systems.maac`"))
    named = set(re.findall(r"`([\w/-]+)`", row.split("|", 2)[2]))
    assert {name for name in maac.presets if "/" not in name} <= named <= maac.presets.keys()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
