import hashlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import policies
from tests.runtime import toy


def save(directory, params=None):
    params = {"params": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3)}}} if params is None else params
    spec = toy.env().spec
    return policies.save(directory, params=params, study="toy", config={"h": (1, 2)}, spec=spec, seeds=[3], iteration=7)


def test_a_policy_comes_back_and_explains_itself(tmp_path):
    loaded = policies.load(save(tmp_path / "policy"))
    np.testing.assert_array_equal(loaded.params["params"]["Dense_0"]["bias"], [0, 1, 2])
    assert loaded.config == {"h": [1, 2]} and loaded.seeds == [3] and loaded.facts == {"iteration": 7}
    assert loaded.spec["name"] == "toy" and loaded.spec["action_high"] == ["inf"]


@pytest.mark.parametrize("name", ["params.npz", "policy.json"])
def test_every_flipped_bit_that_matters_is_noticed(tmp_path, name):
    path = save(tmp_path / "policy") / name
    content = bytearray(path.read_bytes())
    content[content.index(b"kernel")] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        policies.load(tmp_path / "policy")


def test_pickles_are_never_opened(tmp_path):
    directory = save(tmp_path / "policy")
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([object()], dtype=object))
    (directory / "params.npz").write_bytes(buffer.getvalue())
    facts = json.loads((directory / "policy.json").read_text())
    facts["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (directory / "policy.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"params\.npz"):
        policies.load(directory)


@pytest.mark.parametrize("params", [{"a": object()}, jnp.ones(2), {"a/b": jnp.ones(2)}, {"a": jnp.asarray(jnp.nan)}])
def test_what_cannot_be_saved_is_refused(tmp_path, params):
    with pytest.raises(InputError, match="params"):
        save(tmp_path / "policy", params)
    assert not (tmp_path / "policy").exists()


def test_a_directory_without_a_policy_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no policy"):
        policies.load(tmp_path)
