"""Studies that are no training run: their arguments and their directory."""

import dataclasses
import json

import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import records, studies


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers."""

    seeds: int = 3
    """Runs."""
    widths: tuple[int, ...] = (4, 8)
    """Widths."""
    rate: float = 0.5
    """Rate."""


PRESETS = {"full": Config(), "smoke": Config(seeds=1, widths=(2,))}


def parse(*argv):
    least = {"seeds": 1, "widths": 2}
    return studies.parse(
        argv, module="benchmarks toy", description="A toy.\n\nMore.", presets=PRESETS, where="here", least=least
    )


def test_options_change_the_numbers_of_a_preset(tmp_path):
    study = parse("--preset", "smoke", "--rate", "0.1", "--widths", "3", "5", "--out", str(tmp_path / "a"))
    assert study.config == Config(1, (3, 5), 0.1) and (study.name, study.preset, study.seed) == ("toy", "smoke", 0)
    assert parse().config == PRESETS["full"] and parse().out.name.startswith("toy-here-full-0-")


def test_help_says_what_every_number_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "Presets: full, smoke" in text and "Widths." in text and "More." in text


def test_results_are_json_and_a_directory_is_used_once(tmp_path, capsys):
    study = parse("--out", str(tmp_path / "a"), "--seed", "4")
    study.open()
    study.write({"value": float("nan"), "rows": [1.5]})
    assert json.loads((study.out / "results.json").read_text()) == {"value": None, "rows": [1.5]}
    assert records.identity(study.out) == {"study": "toy", "config": records.jsonable(vars(study.config)), "seed": 4}
    assert str(study.out) in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(InputError, match="holds a run"):
        parse("--out", str(tmp_path / "a")).open()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "smok"], "did you mean 'smoke'"),
        (["--seeds", "0"], "seeds=0 must be at least 1"),
        (["--widths", "1"], r"widths=\(1,\) must be at least 2"),
        (["--seed", "-1"], "seed=-1"),
        (["--seed", str(2**31 - 2)], "must stay within"),
        (["--out", " "], "out is empty"),
    ],
)
def test_bad_arguments_are_refused(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)
