"""Files that nobody honest wrote: each is refused in one line that names the file and the field."""

import hashlib
import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import policies, policy_files
from tests.runtime.test_policies import save


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    directory = save(tmp_path_factory.mktemp("honest") / "policy")
    return (directory / "policy.json").read_bytes(), (directory / "params.npz").read_bytes()


def write(directory, facts, arrays):
    """Writes a policy whose checksums are right, so that nothing but the content can be what is refused."""
    if not isinstance(facts, bytes):
        facts = facts | {"sha256": hashlib.sha256(arrays).hexdigest()}
        facts = json.dumps(facts | {"digest": policy_files.digest(facts)}).encode()
    directory.mkdir(exist_ok=True)
    (directory / "policy.json").write_bytes(facts)
    (directory / "params.npz").write_bytes(arrays)


def refused(directory, *words):
    with pytest.raises(InputError) as raised:
        policies.load(directory)
    assert "\n" not in str(raised.value) and all(word in str(raised.value) for word in words), str(raised.value)


def test_every_flipped_bit_is_noticed(tmp_path, honest):
    directory, rng = tmp_path / "policy", np.random.default_rng(0)
    write(directory, *honest)
    truth = policies.load(directory)
    for i in range(200):
        files = [bytearray(content) for content in honest]
        victim = files[i % 2]
        victim[rng.integers(len(victim))] ^= 1 << rng.integers(8)
        write(directory, *map(bytes, files))
        try:
            same = policies.load(directory)
        except InputError as reason:
            assert ("policy.json", "params.npz")[i % 2] in str(reason) and "\n" not in str(reason)
        else:
            # Another spelling of the same JSON, such as 1E-5 for 1e-5.
            assert i % 2 == 0 and str(same) == str(truth)


@pytest.mark.parametrize("name", ["policy.json", "params.npz"])
def test_every_truncation_is_noticed(tmp_path, honest, name):
    directory = tmp_path / "policy"
    for share in (0.0, 0.3, 0.7, 0.99):
        write(directory, *honest)
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: int(share * len(content))])
        refused(directory, name)


def replaced(facts, path, value):
    """``facts`` with one field replaced, or deleted for None."""
    *parents, name = path
    facts = json.loads(json.dumps(facts))
    place = facts
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[name]
    else:
        place[name] = value
    return facts


KERNEL = "params/Dense_0/kernel"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 3),
        (("format",), "2"),
        (("study",), None),
        (("study",), ["maac"]),
        (("extra",), 1),
        (("config",), "x"),
        (("seeds",), []),
        (("seeds",), [True]),
        (("seeds",), [-1]),
        (("seeds",), [2**31]),
        (("seeds",), [0, 1]),
        (("spec", "obs_dim"), 2**40),
        (("spec", "obs_dim"), 3.0),
        (("spec", "obs_dim"), 4),
        (("spec", "action_low"), [0, 0]),
        (("spec", "action_high"), ["<script>"]),
        (("spec", "dt"), 0),
        (("spec", "notes"), None),
        (("spec", "name"), 3),
        (("spec", "reward_fn"), "os.system"),
        (("spec", "action_dim"), 0),
        (("network", "kind"), "pickle"),
        (("network", "kind"), ["gaussian"]),
        (("network", "kind"), "filtered_gaussian"),
        (("network", "limit"), 5.0),
        (("network", "hidden"), [2**40]),
        (("network", "hidden"), [4] * 1000),
        (("network", "hidden"), [4, 6]),
        (("network", "activation"), ["relu"]),
        (("network", "activation"), "exec"),
        (("network", "squash"), 1),
        (("network", "_target_"), "os.system"),
        (("normaliser",), {"mean": [0.0]}),
        (("normaliser",), {"mean": [0.0] * 3, "std": [1.0, "inf", 1.0]}),
        (("params",), {}),
        (("params", KERNEL, "shape"), [2**20, 2**20]),
        (("params", KERNEL, "shape"), [2**39]),
        (("params", KERNEL, "shape"), [-3, -4]),
        (("params", KERNEL, "shape"), [4, 3]),
        (("params", KERNEL, "shape"), "3"),
        (("params", KERNEL, "dtype"), "object"),
        (("params", KERNEL, "dtype"), "int32"),
        (("params", KERNEL), None),
        (("params", "../../etc/passwd"), {"shape": [1], "dtype": "float32"}),
        (("params", "params"), {"shape": [1], "dtype": "float32"}),
        (("params", ""), {"shape": [1], "dtype": "float32"}),
    ],
)
def test_every_impossible_fact_is_named(tmp_path, honest, path, value):
    facts, arrays = honest
    write(tmp_path / "policy", replaced(json.loads(facts), path, value), arrays)
    refused(tmp_path / "policy", "policy.json" if path[:1] != ("params",) else "")


@pytest.mark.parametrize("shape", [[2**20, 2**20], [2**39], [60, 10]])
def test_shapes_that_do_not_fit_into_the_file_are_refused_before_it_is_opened(tmp_path, honest, shape):
    facts, _ = honest
    write(tmp_path / "policy", replaced(json.loads(facts), ("params", KERNEL, "shape"), shape), b"no archive")
    refused(tmp_path / "policy", "policy.json", f"params.{KERNEL}.shape", "more bytes")


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"format": NaN}', b"\xff", b"[1]", b"9" * 5000, b"null"])
def test_what_is_no_json_object_is_refused(tmp_path, honest, content):
    write(tmp_path / "policy", content, honest[1])
    refused(tmp_path / "policy", "policy.json")


def test_files_beyond_any_policy_are_not_read(tmp_path, honest):
    write(tmp_path / "policy", honest[0] + b" " * 2**20, honest[1])
    refused(tmp_path / "policy", "policy.json", "larger than")


class Executed:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def archive(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def npy(array=None, *, header=None, data=b""):
    buffer = io.BytesIO()
    if array is not None:
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=True)
        return buffer.getvalue()
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


def members_of(raw):
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {member.filename: file.read(member) for member in file.infolist()}


FLOATS = {"descr": "<f4", "fortran_order": False, "shape": (3, 4)}


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (npy(np.array([Executed()], dtype=object)), KERNEL),
        (pickle.dumps(Executed()), KERNEL),
        (npy(header=FLOATS | {"shape": (2**40, 2**20)}, data=bytes(48)), KERNEL),
        (npy(header=FLOATS, data=bytes(47)), KERNEL),
        (npy(header=FLOATS, data=bytes(4800)), KERNEL),
        (npy(header=FLOATS | {"descr": ">f4"}, data=bytes(48)), KERNEL),
        (npy(np.full((3, 4), np.nan, np.float32)), KERNEL),
        (npy(np.full((3, 4), np.inf, np.float32)), KERNEL),
        (b"", KERNEL),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, KERNEL),
    ],
)
def test_every_impossible_array_is_named(tmp_path, honest, content, field):
    facts, arrays = honest
    members = members_of(arrays) | {f"{KERNEL}.npy": content}
    write(tmp_path / "policy", json.loads(facts), archive(members.items()))
    refused(tmp_path / "policy", "params.npz", field)


def test_an_array_is_no_folder_of_another(tmp_path, honest):
    facts, arrays = honest
    facts = replaced(json.loads(facts), ("params", "params"), {"shape": [1], "dtype": "float32"})
    members = members_of(arrays) | {"params.npy": npy(np.ones(1, np.float32))}
    write(tmp_path / "policy", replaced(facts, ("network",), None) | {"network": None}, archive(members.items()))
    refused(tmp_path / "policy", "policy.json", "'params.params'")


def test_bombs_duplicates_and_strangers_in_the_archive_are_refused(tmp_path, honest):
    facts, members = json.loads(honest[0]), list(members_of(honest[1]).items())
    for odd in (
        archive(members, zipfile.ZIP_DEFLATED),
        archive([*members, ("../evil.npy", b"")]),
        archive(members[1:]),
        b"PK" + bytes(10_000),
    ):
        write(tmp_path / "policy", facts, odd)
        refused(tmp_path / "policy", "params.npz")


def test_the_first_format_is_still_read(tmp_path, honest):
    facts, arrays = honest
    first = {name: value for name, value in json.loads(facts).items() if name in policy_files._FIELDS}
    write(tmp_path / "policy", json.dumps(first | {"format": 1}).encode(), arrays)
    policy = policies.load(tmp_path / "policy")
    assert policy.network["hidden"] == [4, 5] and policy.versions == {}
    broken = replaced(first | {"format": 1}, ("config", "policy_hidden"), [2**40])
    write(tmp_path / "policy", json.dumps(broken).encode(), arrays)
    refused(tmp_path / "policy", "network.hidden")
