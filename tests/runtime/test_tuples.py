import numpy as np
import pytest

from jaxhybrid import envs
from jaxhybrid.errors import InputError
from jaxhybrid.runtime import tuples
from jaxhybrid.types import Transition


def steps(shape=(8, 8), count=5):
    rng = np.random.default_rng(0)
    return Transition(
        obs=rng.integers(0, 5, size=(count, *shape)).astype(np.uint8),
        action=rng.integers(0, 4, size=count),
        reward=rng.normal(size=count).astype(np.float32),
        discount=np.ones(count, np.float32),
        next_obs=rng.integers(0, 5, size=(count, *shape)).astype(np.uint8),
    )


def spec(**options):
    return envs.make("maze", pool_size=2, **options).spec


def test_steps_come_back_as_they_were(tmp_path):
    path = tuples.save(tmp_path / "steps.npz", steps(), spec(observation="cells"))
    again = tuples.load(path, spec(observation="cells", split="train", max_episode_steps=None))
    for name, value in steps()._asdict().items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert getattr(again, name).dtype == value.dtype


def test_a_vector_of_actions_is_kept_too(tmp_path):
    pendulum = envs.make("pendulum").spec
    data = Transition(np.ones((3, 3)), np.ones((3, 1)), np.ones(3), np.ones(3), np.ones((3, 3)))
    assert tuples.load(tuples.save(tmp_path / "a.npz", data, pendulum), pendulum).action.shape == (3, 1)


def test_a_file_of_another_environment_is_refused(tmp_path):
    path = tuples.save(tmp_path / "steps.npz", steps(), spec(observation="cells"))
    with pytest.raises(InputError, match=r"another environment: its obs_dim is 64, that of 'maze' is 2304"):
        tuples.load(path, spec())
    with pytest.raises(InputError, match="its name is 'maze', that of 'catcher' is 'catcher'"):
        tuples.load(path, envs.make("catcher").spec)


def test_what_is_no_data_set_is_refused(tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.ones(3))
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    single = tmp_path / "single.npy"
    np.save(single, np.ones(3))
    listed = tmp_path / "listed.npz"
    np.savez(listed, facts=np.array("[1]"), **steps()._asdict())
    for path in (tmp_path / "missing.npz", other, text, single, listed):
        with pytest.raises(InputError, match="no data set"):
            tuples.load(path, spec())


def test_a_file_with_an_inverted_byte_is_refused_or_read(tmp_path):
    whole = tuples.save(tmp_path / "steps.npz", steps(), spec(observation="cells")).read_bytes()
    damaged = tmp_path / "damaged.npz"
    refused = 0
    for i in range(0, len(whole), 7):
        damaged.write_bytes(whole[:i] + bytes([255 - whole[i]]) + whole[i + 1 :])
        try:
            tuples.load(damaged, spec(observation="cells"))
        except InputError:
            refused += 1
    # Some bytes, such as those of dates, mean nothing to the reader.
    assert refused > len(whole) / 7 / 2


def test_nothing_is_overwritten_and_nothing_wrong_is_written(tmp_path):
    path = tmp_path / "steps.npz"
    with pytest.raises(InputError, match=r"obs of shape \(5, 7, 8\), expected \(5, 8, 8\)"):
        tuples.save(path, steps((7, 8)), spec(observation="cells"))
    assert not path.exists()
    before = tuples.save(path, steps(), spec(observation="cells")).read_bytes()
    with pytest.raises(InputError, match="exists"):
        tuples.save(path, steps(count=6), spec(observation="cells"))
    assert path.read_bytes() == before
