import dataclasses
from typing import Literal, get_origin, get_type_hints

import pytest

from jaxhybrid.errors import InputError, check_choices
from jaxhybrid.systems import dream, gamps, gmas, maac, mscv

CONFIGS = [dream.Config, gamps.Config, gmas.Config, maac.Config, mscv.Config]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__module__)
def test_every_choice_of_a_system_is_one_that_it_declares(cls):
    check_choices(cls())
    names = [name for name, declared in get_type_hints(cls).items() if get_origin(declared) is Literal]
    assert len(names) > 2
    for name in names:
        with pytest.raises(InputError, match=f"{name}='other' is unknown"):
            check_choices(dataclasses.replace(cls(), **{name: "other"}))
