import dataclasses

import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import members
from jaxhybrid.runtime.options import RunOptions, seeds


@dataclasses.dataclass(frozen=True)
class Config:
    gamma: float = 0.99
    learning_rate: float = 1e-3
    horizon: int = 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0]),
        ({"seed": 4}, [4]),
        ({"seed": 4, "seeds": 3}, [4, 5, 6]),
        ({"seeds": "2"}, [0, 1]),
        ({"seeds": "3:6"}, [3, 4, 5]),
    ],
)
def test_seeds_are_a_number_or_a_range(options, expected):
    assert list(seeds(RunOptions(**options))) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": "0:0"}, "empty range"),
        ({"seeds": "5:3"}, "empty range"),
        ({"seeds": "-1:3"}, "at least 1, or a range"),
        ({"seeds": "0:x"}, "at least 1, or a range"),
        ({"seeds": "²"}, "at least 1, or a range"),
        ({"seeds": "0:²"}, "at least 1, or a range"),
        ({"seeds": "0:16", "seed": 2}, "both name the first seed"),
        ({"seeds": f"0:{2**31 + 1}"}, "largest seed"),
    ],
)
def test_other_seeds_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        seeds(RunOptions(**options))


def test_members_are_every_combination_with_the_seed_changing_fastest():
    options = RunOptions(seeds=2, sweep=("gamma=0.9,0.99", "config.learning-rate=0.1"))
    found = members.members(options, Config())
    assert [member.label for member in found] == [
        "gamma=0.9-learning_rate=0.1-seed-0",
        "gamma=0.9-learning_rate=0.1-seed-1",
        "gamma=0.99-learning_rate=0.1-seed-0",
        "gamma=0.99-learning_rate=0.1-seed-1",
    ]
    assert members.configured(Config(), found[2].numbers) == Config(gamma=0.99, learning_rate=0.1)
    numbers, values = members.stacked(found)
    assert numbers.tolist() == [0, 1, 0, 1] and values["gamma"].shape == (4,)


def test_labels_tell_numbers_apart_and_stay_short():
    options = RunOptions(sweep=("learning_rate=0.9999991,0.9999992,0.1,64,1e-5,1e6",))
    assert [member.label.removeprefix("learning_rate=") for member in members.members(options, Config())] == [
        "0.9999991-seed-0",
        "0.9999992-seed-0",
        "0.1-seed-0",
        "64-seed-0",
        "1e-05-seed-0",
        "1e+06-seed-0",
    ]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("gamma", "field=value"),
        ("gama=0.9", "did you mean 'gamma'"),
        ("horizon=1,2", "unknown"),
        ("gamma=0.9,x", "not a list of numbers"),
        ("gamma=", "not a list of numbers"),
        ("gamma=0.9,0.9", "twice"),
        ("gamma=nan", "not finite"),
    ],
)
def test_bad_sweeps_name_what_is_wrong(sweep, message):
    with pytest.raises(InputError, match=message):
        members.members(RunOptions(sweep=(sweep,)), Config())
