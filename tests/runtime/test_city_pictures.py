import io
import itertools

import numpy as np
import pytest
from PIL import Image

from jaxhybrid.envs import city
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import city_pictures, films

UP, RIGHT, RIDE, END = 1, 2, city.RIDE, city.END
TRIAL = {"exploration": [UP, RIDE, RIDE, END, RIGHT], "execution": [UP, RIDE, 3, UP]}


def pictures(task="distraction", goal=(0, 0)):
    return city_pictures.frames(city.make(task), 0, goal, **TRIAL)


def test_a_trial_is_drawn_to_the_end_of_both_episodes():
    """Task 0: the upper bus leads next to (0, 0), which is a step down from there."""
    drawn = pictures()
    assert len(drawn) == (4 + 1) + (3 + 1)
    assert all(picture.dtype == np.uint8 and picture.shape == drawn[0].shape for picture in drawn)
    # What follows the end of an episode is left out, and each picture shows something else.
    assert all((one != two).any() for one, two in itertools.pairwise(drawn))
    yellow = np.array([0xF0, 0xE4, 0x42])
    shown = [(picture == yellow).all(axis=-1).any() for picture in drawn]
    assert shown == [False] * 5 + [True] * 4


def test_buses_are_those_of_the_task():
    quiet = city_pictures.frames(city.make("vanilla"), 0, (0, 0), exploration=[], execution=[])[0]
    others = [("vanilla", 1), ("distraction", 0), ("map", 0)]
    for task, number in others:
        other = city_pictures.frames(city.make(task), number, (0, 0), exploration=[], execution=[])[0]
        assert (other != quiet).any()


def test_a_sheet_and_an_animation_hold_all_pictures():
    drawn = pictures()
    page = city_pictures.sheet(drawn, columns=4)
    height, width, _ = drawn[0].shape
    assert page.shape == (3 * height, 4 * width, 3) and (page[2 * height :, width:] == 255).all()
    np.testing.assert_array_equal(page[height : 2 * height, width : 2 * width], drawn[5])
    with Image.open(io.BytesIO(city_pictures.png(page))) as image:
        np.testing.assert_array_equal(np.asarray(image), page)
    with Image.open(io.BytesIO(films.gif(drawn, 0.5))) as image:
        assert image.n_frames == len(drawn)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: pictures(goal=(1, 1)), r"goal=\(1, 1\) is none of"),
        (lambda: city_pictures.frames(city.make("map"), 24, (0, 0), **TRIAL), "task_id=24 must lie"),
        (lambda: city_pictures.frames(city.make(), 0, (0, 0), exploration=[9], execution=[]), "action=9 must lie"),
        (lambda: city_pictures.sheet([]), "at least one of each is needed"),
    ],
)
def test_bad_input_is_refused(build, why):
    with pytest.raises(InputError, match=why):
        build()
