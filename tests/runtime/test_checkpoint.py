import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint


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
    with pytest.raises(InputError, match="no good checkpoint"):
        checkpoint.restore(saved, template(), told.append)
    assert len(told) == 2


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
