"""``python -m jaxhybrid doctor``: each finding, and the exit code."""

import importlib.metadata

import numpy as np
import pytest

from jaxhybrid.runtime import doctor, known_problems


def test_a_healthy_installation_passes(capsys, monkeypatch):
    # Graphics have their own test and take seconds to try.
    monkeypatch.setattr(doctor.graphics, "choose", lambda: doctor.graphics.Backend("egl", ("egl",)))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 broken, ")
    for word in (
        "python 3.",
        "jax 0.",
        "devices: ",
        "matrix products: relative error",
        "compile cache: ",
        "MUJOCO_GL=egl",
    ):
        assert any(line.startswith("ok ") and word in line for line in lines), word


def test_what_is_broken_decides_the_exit_code(monkeypatch, capsys):
    findings = [doctor.Finding("ok", "a"), doctor.Finding("note", "b", "do c"), doctor.Finding("broken", "d", "do e")]
    monkeypatch.setattr(doctor, "_findings", lambda: findings)
    assert doctor.main([]) == 1
    assert "broken  d\n        -> do e\n1 broken, 1 to note\n" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "_findings", lambda: findings[:2])
    assert doctor.main([]) == 0


def test_dependencies_are_compared_by_number(monkeypatch):
    lines = ["jax>=0.10.0", "gymnasium[mujoco]>=1.2.0", "scipy>=1.15", "torch>=2; extra == 'peers'", "odd"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    found = list(doctor.dependencies({"jax": "0.9.2", "gymnasium": "1.10.0", "flatbuffers": "25"}))
    assert [finding.state for finding in found] == ["broken", "ok", "broken"]
    assert found[0].text == "jax 0.9.2 is older than 0.10.0" and found[0].fix == 'pip install --upgrade "jax>=0.10.0"'
    assert found[2].text == "scipy is not installed, needed is 1.15"


def test_an_installation_without_metadata_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert [finding.state for finding in doctor.dependencies({})] == ["broken"]


def test_coarse_matrix_products_are_seen():
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    assert doctor.precision(a, b, a @ b, "None").state == "ok"
    # The 10 bits of fraction that TF32 keeps of its inputs.
    coarse = [(x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b)]
    finding = doctor.precision(a, b, coarse[0] @ coarse[1], "None")
    assert finding.state == "note" and "JAX_DEFAULT_MATMUL_PRECISION=highest" in finding.fix


def test_the_cache_is_measured_and_an_unusable_one_named(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "program").write_bytes(bytes(3 * 2**20))
    assert "1 files, 3 MiB, writable" in doctor.cache(tmp_path / "cache").text
    assert "0 files, 0 MiB" in doctor.cache(tmp_path / "new" / "cache").text
    (tmp_path / "file").write_text("")
    finding = doctor.cache(tmp_path / "file" / "cache")
    assert finding.state == "note" and "XDG_CACHE_HOME" in finding.fix
    assert doctor.cache(None).state == "note"


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"brax": "0.14.2", "jax": "0.10.2"}, ["brax.training", "clip"]),
        ({"brax": "0.14.2", "jax": "0.9.2"}, []),
        ({"brax": "0.14.3", "jax": "0.10.2"}, []),
        ({"jax": "0.10.2"}, []),
        ({"gymnax": "1.0.1", "gymnasium": "1.4.0"}, ["gymnax"]),
        ({"gymnax": "1.0.1", "gymnasium": "1.3.9"}, []),
    ],
)
def test_known_pairs_are_met_only_where_they_fail(versions, words):
    found = known_problems.met(versions)
    assert len(found) == len(words) and all(word in problem.what for word, problem in zip(words, found))


def test_versions_are_ordered_by_number():
    texts = ["0.9.2", "0.10", "0.10.1.dev3", "0.10.2", "1.0rc1", "10"]
    numbers = [known_problems.release(text) for text in texts]
    assert numbers == sorted(numbers) and known_problems.release("0.10.0") == known_problems.release("0.10")
