"""``python -m jaxhybrid export``: the file, and what is refused."""

import jax
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import export, policies
from tests.runtime.test_policies import OBS, save


@pytest.mark.parametrize("seed", [3, 4])
def test_the_program_of_a_seed_is_written_once(tmp_path, seed):

    save(tmp_path / "run" / "policy", seeds=(3, 4))
    out = tmp_path / "policy.bin"
    assert export.main([str(tmp_path / "run"), "--out", str(out), "--seed", str(seed)]) == 0
    actions = jax.export.deserialize(bytearray(out.read_bytes())).call(OBS)
    act = policies.act_fn(policies.of_seed(policies.load(tmp_path / "run" / "policy"), seed))
    key = jax.random.key(0)
    np.testing.assert_allclose(actions[1], act(OBS[1], key, deterministic=True), rtol=1e-6)
    with pytest.raises(InputError, match="exists"):
        export.main([str(tmp_path / "run"), "--out", str(out)])


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    save(tmp_path / "policy")
    out = tmp_path / "policy.bin"
    monkeypatch.setattr(policies, "export", lambda *_, **__: out.write_bytes(b"another") and b"mine")
    with pytest.raises(InputError, match=r"out='.*policy.bin' was written by somebody else meanwhile"):
        export.main([str(tmp_path / "policy"), "--out", str(out)])
    assert out.read_bytes() == b"another"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "x"], "does not exist"),
        (["policy", "--out", "x", "--seed", "9"], "seed=9 was not trained"),
        (["policy", "--out", "missing/x"], "no directory"),
        (["policy", "--out", "policy"], "exists"),
        (["policy", "--out", " "], "out is empty"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "policy")
    with pytest.raises(InputError, match=message):
        export.main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
