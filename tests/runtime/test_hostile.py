"""Files that a stranger wrote: nothing of them is executed, each is refused in one line that names file and field."""

import hashlib
import json
import os
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import checkpoint, policies, records

IDENTITY = {"study": "toy", "config": {"gain": 0.5}}
FACTS = {"position": 10, "env_steps": 5, "elapsed": 1.0, "identity": IDENTITY}
TEMPLATE = {"params": {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32)}, "count": jax.ShapeDtypeStruct((), jnp.int32)}
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]\n"
LAUGHS = json.dumps({f"lol{i}": f"&lol{i - 1};" * 10 for i in range(10)}).encode()


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Checkpoints of a run: one good step."""
    directory = tmp_path_factory.mktemp("good") / "checkpoints"
    tree = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "count": jnp.asarray(5, jnp.int32)}
    checkpoint.save(directory, 1, tree, FACTS)
    return directory


def sign(step, change=lambda manifest: None, **fields):
    """Rewrites the manifest so that its digests are right again: who can write files can also do that."""
    path = step / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        str(file.relative_to(step)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(step.rglob("*"))
        if file.is_file() and file != path
    }
    manifest |= fields
    change(manifest)
    del manifest["digest"]
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"digest": digest}))


def leaf(**fields):
    return lambda step: sign(step, lambda manifest: manifest["leaves"][1].update(fields))


def other_arrays(**arrays):
    """Arrays as Orbax wrote them, that are not those of the manifest."""

    def change(step):
        shutil.rmtree(step / "arrays")
        whole = {"0": np.asarray(5, np.int32), "1": np.zeros((2, 3), np.float32)} | arrays
        checkpoint._save_arrays(step.absolute() / "arrays", whole)
        sign(step)

    return change


def payload(step):
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def replace_by_link(step, path):
    path.rename(step.parent.parent / "elsewhere")
    path.symlink_to(step.parent.parent / "elsewhere")


def pipe(step):
    (step / "manifest.json").unlink()
    os.mkfifo(step / "manifest.json")


def manifest_is(content):
    return lambda step: (step / "manifest.json").write_bytes(content)


def pickled(step):
    return pickle.dumps(Canary(step.parent.parent / "canary"))


def pickle_arrays(step):
    for path in (step / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(pickled(step))
    sign(step)


def pickle_metadata(step):
    next(step.rglob("_METADATA")).write_bytes(pickled(step))
    sign(step)


def add_object_array(step):
    np.save(step / "w.npy", np.array([Canary(step.parent.parent / "canary")]), allow_pickle=True)
    sign(step)


def without(field):
    return lambda step: sign(step, lambda manifest: manifest.pop(field))


def nested(depth):
    return b'{"format":' + b"[" * depth + b"]" * depth + b"}"


# What is done to a step, and what the refusal names.
STEPS = {
    "a pickle as manifest": (lambda s: (s / "manifest.json").write_bytes(pickled(s)), "manifest.json is not JSON"),
    "pickles as arrays": (pickle_arrays, "arrays cannot be read"),
    "a pickle as Orbax's metadata": (pickle_metadata, "arrays cannot be read"),
    "an object array, signed": (add_object_array, "w.npy"),
    "no manifest": (lambda s: (s / "manifest.json").unlink(), "manifest.json is missing"),
    "an empty manifest": (manifest_is(b""), "manifest.json is not JSON"),
    "a list": (manifest_is(b"[]"), "manifest.json is not a JSON object"),
    "null": (manifest_is(b"null"), "manifest.json is not a JSON object"),
    "half a manifest": (lambda s: os.truncate(s / "manifest.json", 200), "manifest.json is not JSON"),
    "not UTF-8": (manifest_is(b'{"format": "\xff\xfe"}'), "manifest.json is not JSON"),
    "UTF-16": (manifest_is('{"format": 1}'.encode("utf-16")), "manifest.json is not JSON"),
    "a NUL byte": (manifest_is(b'{"format": 1}\0'), "manifest.json is not JSON"),
    "a YAML bomb": (manifest_is(BOMB), "manifest.json is not JSON"),
    "a YAML tag": (manifest_is(b"!!python/object/apply:os.mkdir [canary]"), "manifest.json is not JSON"),
    "entities": (manifest_is(LAUGHS), "manifest.json lacks|manifest.json has the unknown field"),
    "depth 50": (manifest_is(nested(80)), "manifest.json nests"),
    "depth 100000": (manifest_is(nested(100_000)), "manifest.json nests"),
    "a number of 10^5 digits": (manifest_is(b'{"format": ' + b"9" * 100_000 + b"}"), "manifest.json is not JSON"),
    "a field twice": (manifest_is(b'{"format": 1, "format": 2}'), "manifest.json names format twice"),
    "NaN": (manifest_is(b'{"format": NaN}'), "manifest.json holds NaN"),
    "an infinity": (manifest_is(b'{"format": -Infinity}'), "manifest.json holds -Infinity"),
    "an unknown field": (lambda s: sign(s, __reduce__=["os.system", "true"]), "unknown field manifest.__reduce__"),
    "a missing field": (without("facts"), "lacks manifest.facts"),
    "no digest": (lambda s: (s / "manifest.json").write_text('{"format": 1}'), "lacks manifest"),
    "the format as text": (lambda s: sign(s, format="1"), "manifest.format of type str"),
    "the format as boolean": (lambda s: sign(s, format=True), "manifest.format of type bool"),
    "another format": (lambda s: sign(s, format=2), "another step or format"),
    "another iteration": (lambda s: sign(s, iteration=7), "another step or format"),
    "a negative iteration": (lambda s: sign(s, iteration=-1), "another step or format"),
    "leaves as an object": (lambda s: sign(s, leaves={}), "manifest.leaves of type dict"),
    "files as a list": (lambda s: sign(s, files=[]), "manifest.files of type list"),
    "facts as text": (lambda s: sign(s, facts="x"), "manifest.facts of type str"),
    "a path upwards": (lambda s: sign(s, files={"../../../etc/passwd": "0"}), "is missing or was added"),
    "an absolute path": (lambda s: sign(s, files={"/etc/passwd": "0"}), "is missing or was added"),
    "a name of 10^5 letters": (lambda s: sign(s, files={"x" * 100_000: "0"}), "is missing or was added"),
    "a digest as number": (lambda s: sign(s, lambda m: m["files"].update(dict.fromkeys(m["files"], 0))), "was changed"),
    "a file added": (lambda s: (s / "extra.py").write_text("import os"), "extra.py"),
    "a shape of 2^40": (leaf(shape=[2**40], raw_shape=[2**40]), "params.*w"),
    "a raw shape of 2^40": (leaf(raw_shape=[2**40]), "params.*w"),
    "a negative shape": (leaf(shape=[-1, 3], raw_shape=[-1, 3]), "params.*w"),
    "a shape of text": (leaf(shape=["2", "3"]), "params.*w"),
    "a shape of 10^6 axes": (leaf(raw_shape=[1] * 1_000_000), "params.*w"),
    "an object dtype": (leaf(dtype="object", raw_dtype="object"), "params.*w"),
    "a void dtype": (leaf(raw_dtype="V1000000000"), "params.*w"),
    "another dtype": (leaf(raw_dtype="float64"), "params.*w"),
    "a key where none is": (leaf(key_impl="threefry2x32"), "params.*w"),
    "an unknown field of a leaf": (leaf(handler="os.system"), "params.*w"),
    "a leaf of another name": (leaf(path="['params']['v']"), "params.*w"),
    "one leaf less": (lambda s: sign(s, lambda m: m["leaves"].pop()), "another program"),
    "a leaf that is no object": (lambda s: sign(s, leaves=[1, 2]), "another program"),
    "larger arrays in the files": (other_arrays(**{"1": np.zeros((4, 3), np.float32)}), "arrays holds other arrays"),
    "another dtype in the files": (other_arrays(**{"1": np.zeros((2, 3), np.float64)}), "arrays holds other arrays"),
    "one array more in the files": (other_arrays(**{"2": np.zeros(3)}), "arrays holds other arrays"),
    "a NaN parameter": (other_arrays(**{"1": np.full((2, 3), np.nan, np.float32)}), "params.*w.* is not finite"),
    "an infinite parameter": (other_arrays(**{"1": np.full((2, 3), np.inf, np.float32)}), "params.*w.* is not finite"),
    "a link as payload": (lambda s: replace_by_link(s, payload(s)), "is a link"),
    "a link as manifest": (lambda s: replace_by_link(s, s / "manifest.json"), "manifest.json is a link"),
    "a link as step": (lambda s: replace_by_link(s, s), "is a link"),
    "a link as folder": (lambda s: replace_by_link(s, s / "arrays"), "arrays is a link"),
    "a pipe as manifest": (pipe, "manifest.json is a link or no file"),
    "a run of other numbers": (
        lambda s: sign(s, facts=FACTS | {"identity": {"study": "toy", "config": {"gain": 0.6}}}),
        r"of another run: config.gain was 0.6 and is now 0.5",
    ),
    "no identity": (lambda s: sign(s, facts={}), "of another run: config was null"),
    "an identity as list": (lambda s: sign(s, facts=FACTS | {"identity": [1]}), "of another run"),
}


@pytest.mark.parametrize("case", STEPS)
def test_a_hostile_step_is_refused(tmp_path, good, case):
    change, message = STEPS[case]
    shutil.copytree(good, tmp_path / "run" / "checkpoints")
    step = tmp_path / "run" / "checkpoints" / "00000001"
    change(step)
    told = []
    with pytest.raises(InputError) as raised:
        checkpoint.restore(step.parent, TEMPLATE, told.append, identity=IDENTITY)
    told.append(str(raised.value))
    assert all("\n" not in line and len(line) < 500 for line in told)
    assert re.search(message, told[0]) and "00000001" in told[0]
    assert not (tmp_path / "run" / "canary").exists()


def test_the_step_of_these_tests_is_good(good):
    restored = checkpoint.restore(good, TEMPLATE, pytest.fail, identity=IDENTITY)
    assert restored.facts == FACTS and np.asarray(restored.tree["params"]["w"])[1, 2] == 5.0


def test_there_are_many():
    assert len(STEPS) >= 50


MANIFESTS = {
    "a pickle": (None, "is not JSON"),
    "a field twice": (b'{"format": 1, "format": 1}', "names format twice"),
    "depth": (nested(100_000), "nests"),
    "a bomb": (BOMB, "is not JSON"),
    "no identity": (b'{"format": 1, "sessions": [1]}', "lacks manifest.identity"),
    "an identity as text": (b'{"format": 1, "identity": "x", "sessions": [1]}', "manifest.identity of type str"),
    "no session": (b'{"format": 1, "identity": {}, "sessions": []}', "no session"),
    "an unknown field": (b'{"format": 1, "identity": {}, "sessions": [1], "run": "x"}', "unknown field manifest.run"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_hostile_run_is_refused(tmp_path, case):
    content, message = MANIFESTS[case]
    (tmp_path / "manifest.json").write_bytes(content or pickle.dumps(Canary(tmp_path / "canary")))
    before = sorted(tmp_path.iterdir())
    for refused in (
        lambda: records.identity(tmp_path),
        lambda: records.open_run(tmp_path, IDENTITY, {}, resume=True),
        lambda: records.iterations(tmp_path),
    ):
        with pytest.raises(InputError, match=rf"manifest.json.*{message}") as raised:
            refused()
        assert "\n" not in str(raised.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "line", [b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": ' + b"[" * 100_000, b"\x80\x04}.", b"", BOMB]
)
def test_a_hostile_record_is_refused(tmp_path, line):
    (tmp_path / records.METRICS).write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl', line 2") as raised:
        records.read(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [records.METRICS, "lock", "manifest.partial"])
def test_a_link_in_the_directory_of_a_run_is_not_written_through(tmp_path, name):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"cannot be written.*symbolic link"):
        if name == records.METRICS:
            records.Writer(tmp_path / "run", position=0, tensorboard=False)
        else:
            records.open_run(tmp_path / "run", IDENTITY, {}, resume=False)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_pickled_policy_is_refused(tmp_path):
    (tmp_path / "policy.json").write_text("{}")
    (tmp_path / "params.npz").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(InputError, match=r"policy.json"):
        policies.load(tmp_path)
    assert not (tmp_path / "canary").exists()
