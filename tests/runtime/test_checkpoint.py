import errno
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, devices


def tree():
    return {
        "params": {"w": jnp.arange(6.0).reshape(2, 3)},
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8), 3),
        "empty": jnp.zeros((0, 3)),
        "count": jnp.asarray(5, jnp.int32),
        "half": jnp.ones(3, jnp.bfloat16),
        "worker": (np.arange(4, dtype=np.uint64), np.ones((), bool)),
    }


def template():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x, tree())


def raw(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert type(x) is type(y)
        assert raw(x).tobytes() == raw(y).tobytes()


@pytest.fixture
def saved(tmp_path):
    for iteration in (1, 2):
        checkpoint.save(tmp_path, iteration, tree(), {"position": iteration})
    return tmp_path


def quiet(_):
    raise AssertionError("no damage was expected")


def test_a_step_comes_back_to_the_bit(saved):
    restored = checkpoint.restore(saved, template(), quiet)
    assert (restored.iteration, restored.facts) == (2, {"position": 2})
    assert_same(restored.tree, tree())


def test_a_relative_directory_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = pathlib.Path("run")
    checkpoint.save(relative, 1, tree(), {})
    assert checkpoint.restore(relative, template(), quiet).iteration == 1


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert checkpoint.restore(tmp_path / "none", template(), quiet) is None


def test_prune_keeps_the_newest(saved):
    checkpoint.prune(saved, 1)
    assert checkpoint.steps(saved) == [2]


def test_prune_keeps_steps_at_regular_intervals_too(tmp_path):
    for iteration in range(6):
        checkpoint.save(tmp_path, iteration, {"params": jnp.ones(2)}, {})
    checkpoint.prune(tmp_path, 1, keep_every=2)
    assert checkpoint.steps(tmp_path) == [0, 2, 4, 5]
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == [5]
    assert not list(tmp_path.glob(".*"))


def test_a_step_of_another_run_is_refused_by_name_and_left_alone(tmp_path):
    checkpoint.save(tmp_path, 1, tree(), {"identity": {"seed": 1, "config": {"gain": 0.5}}})
    with pytest.raises(InputError, match=r"00000001 is of another run: config\.gain was 0\.5 and is now 0\.6; seed"):
        checkpoint.restore(tmp_path, template(), quiet, identity={"seed": 2, "config": {"gain": 0.6}})
    assert checkpoint.steps(tmp_path) == [1]
    same = {"seed": 1, "config": {"gain": np.float32(0.5)}}
    assert checkpoint.restore(tmp_path, template(), quiet, identity=same).iteration == 1


class KilledError(BaseException):
    """Stands for a kill: nothing in the library catches it."""


def killed_at(monkeypatch, name, where, count):
    """Lets the n-th call of a function kill, before it does anything."""
    original, calls = getattr(where, name), [0]

    def fatal(*arguments, **options):
        calls[0] += 1
        if calls[0] == count:
            raise KilledError
        return original(*arguments, **options)

    monkeypatch.setattr(where, name, fatal)


@pytest.mark.parametrize(
    ("name", "where", "count"),
    [
        ("mkdir", pathlib.Path, 2),
        ("_save_arrays", checkpoint, 1),
        ("_sha256", checkpoint, 1),
        ("_sha256", checkpoint, 3),
        ("_write_last", checkpoint, 1),
        ("_publish", checkpoint, 1),
        ("_sync_directory", checkpoint, 2),
        ("rename", pathlib.Path, 1),
        ("rename", pathlib.Path, 2),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_save_killed_anywhere_leaves_a_good_step(saved, monkeypatch, name, where, count, again):
    """``again`` writes a step that exists: at no moment is there neither the old nor the new one."""
    with monkeypatch.context() as patch:
        killed_at(patch, name, where, count)
        try:
            checkpoint.save(saved, 2 if again else 3, tree(), {"position": 3})
        except KilledError:
            pass
        else:
            assert name == "rename" and count == 2 and not again
    restored = checkpoint.restore(saved, template(), quiet)
    assert_same(restored.tree, tree())
    assert restored.iteration >= (1 if again else 2)
    checkpoint.save(saved, 4, tree(), {})
    assert checkpoint.restore(saved, template(), quiet).iteration == 4
    assert not list(saved.glob(".*"))


@pytest.mark.parametrize("name", ["_save_arrays", "_write_last", "_sync_directory"])
def test_a_full_disk_is_one_line_and_costs_no_step(saved, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, name, full)
    with pytest.raises(InputError, match=r"00000003 cannot be written .*No space left.*--resume") as raised:
        checkpoint.save(saved, 3, tree(), {})
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in saved.iterdir()) == ["00000001", "00000002"]
    assert checkpoint.restore(saved, template(), quiet).iteration == 2


def test_everything_is_on_disk_before_a_step_has_its_name(tmp_path, monkeypatch):
    synced, named = set(), []
    fsync, rename = os.fsync, pathlib.Path.rename

    def noted(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def published(path, target):
        named.append(({str(each) for each in (path, *path.rglob("*"))}, set(synced)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(pathlib.Path, "rename", published)
    checkpoint.save(tmp_path, 1, tree(), {})
    parts, before = named[-1]
    assert parts <= before
    assert str(tmp_path) in synced - before


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("file", range(14))
def test_any_flipped_bit_is_noticed_and_the_step_before_is_used(saved, file):
    files = sorted(path for path in (saved / "00000002").rglob("*") if path.is_file() and path.stat().st_size)
    path = files[file % len(files)]
    flip(path, 12345 * (file + 1))
    told = []
    restored = checkpoint.restore(saved, template(), told.append)
    assert restored.iteration == 1
    assert_same(restored.tree, tree())
    assert len(told) == 1 and "00000002 is damaged" in told[0]
    assert checkpoint.steps(saved) == [1]
    assert (saved / "00000002.damaged").is_dir()


@pytest.mark.parametrize("damage", ["truncate", "delete", "add", "no manifest", "renamed"])
def test_other_damage_is_noticed(saved, damage):
    step = saved / "00000002"
    payload = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if damage == "truncate":
        payload.write_bytes(payload.read_bytes()[:-1])
    elif damage == "delete":
        payload.unlink()
    elif damage == "add":
        (step / "extra").write_text("x")
    elif damage == "no manifest":
        (step / "manifest.json").unlink()
    else:
        step.rename(saved / "00000003")
    assert checkpoint.restore(saved, template(), lambda _: None).iteration == 1


def test_no_good_step_is_an_error_and_not_a_fresh_start(saved):
    for step in ("00000001", "00000002"):
        (saved / step / "manifest.json").write_text("{}")
    told = []
    # The steps may be those of a capsule, which no argument called out names.
    with pytest.raises(InputError, match=rf"^{re.escape(repr(str(saved)))} holds no good checkpoint: bring back"):
        checkpoint.restore(saved, template(), told.append)
    assert len(told) == 2


def test_one_process_of_a_job_sets_a_damaged_step_aside(saved, monkeypatch):
    flip(saved / "00000002" / "manifest.json", 99)
    monkeypatch.setattr(devices, "is_first", lambda: False)
    assert checkpoint.restore(saved, template(), lambda _: None).iteration == 1
    assert checkpoint.steps(saved) == [1, 2]


@pytest.mark.parametrize(
    ("name", "reason", "told"),
    [
        ("_orbax", MemoryError(), r"\(MemoryError\)"),
        ("_orbax", ImportError("No module named 'orbax'"), r"\(ImportError: No module named 'orbax'\)"),
        ("_orbax", OSError(errno.EMFILE, "Too many open files"), r"\(Too many open files\)"),
        ("_sha256", OSError(errno.EMFILE, "Too many open files"), r"\(Too many open files\)"),
    ],
)
def test_what_the_machine_lacks_is_no_damage(saved, monkeypatch, name, reason, told):
    def lacking(*_):
        raise reason

    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"00000002 in .* not be read here {told}"):
        patch.setattr(checkpoint, name, lacking)
        checkpoint.restore(saved, template(), quiet)
    assert checkpoint.restore(saved, template(), quiet).iteration == 2


@pytest.mark.parametrize(("name", "place"), [("_sha256", "arrays"), ("iterdir", "00000002")])
def test_a_step_that_the_disk_does_not_give_back_is_damaged(saved, monkeypatch, name, place):
    where = pathlib.Path if name == "iterdir" else checkpoint
    original = getattr(where, name)

    def broken(path):
        if "00000002" in path.parts and place in path.parts:
            raise OSError(errno.EIO, "Input/output error")
        return original(path)

    monkeypatch.setattr(where, name, broken)
    told = []
    assert checkpoint.restore(saved, template(), told.append).iteration == 1
    assert told == ["checkpoint 00000002 is damaged and set aside: it cannot be read (Input/output error)"]


def test_another_program_is_refused_without_setting_the_step_aside(saved):
    other = template()
    other["params"]["w"] = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    with pytest.raises(InputError, match=r"another program: .*params.*w"):
        checkpoint.restore(saved, other, quiet)
    assert checkpoint.steps(saved) == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_never_written(tmp_path, value):
    bad = tree()
    bad["params"]["w"] = bad["params"]["w"].at[0, 1].set(value)
    with pytest.raises(checkpoint.NonFiniteError, match="params"):
        checkpoint.save(tmp_path, 3, bad, {})
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_was_killed_leaves_nothing_in_the_way(saved):
    (saved / ".00000003.partial").mkdir()
    assert checkpoint.restore(saved, template(), quiet).iteration == 2
    checkpoint.save(saved, 3, tree(), {})
    assert checkpoint.steps(saved) == [1, 2, 3]
    assert not list(saved.glob(".*"))


def test_the_manifest_says_what_it_holds(saved):
    manifest = json.loads((saved / "00000002" / "manifest.json").read_text())
    by_path = {leaf["path"]: leaf for leaf in manifest["leaves"]}
    assert by_path["['params']['w']"]["shape"] == [2, 3]
    assert by_path["['key']"]["key_impl"] == "threefry2x32"
