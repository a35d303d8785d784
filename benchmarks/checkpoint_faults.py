"""Checkpoints that are damaged at random, and how many of them are loaded all the same.

Flipped bits, overwritten and torn files, files deleted, added, swapped between steps and steps under another name. The
damage is to be noticed, the step set aside, and the step before it used, to the bit. Prints a table; writes
manifest.json and results.json.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table

from jaxhybrid.errors import InputError
from jaxhybrid.runtime import cli, studies

__all__ = ["FAULTS", "PRESETS", "Config", "main"]

_OLD, _NEW = "00000001", "00000002"
_IN_BOTH = "files swapped between steps"


@dataclasses.dataclass(frozen=True)
class Config:
    """The numbers of the benchmark."""

    faults: int = 2000
    """Faults, as many of each kind as of the others."""


PRESETS = {"full": Config(), "smoke": Config(faults=22)}


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code, 1 if any damage was loaded or a good step was not.

    Args:
      argv: see ``--help``.

    Raises:
      InputError: an argument that makes no sense, or a directory that cannot be used; nothing was written then.
    """
    study = studies.parse(
        argv,
        module="benchmarks checkpoint_faults",
        description=__doc__,
        presets=PRESETS,
        where="sac",
        least={"faults": 1},
    )
    study.open()
    rng = np.random.default_rng(study.seed)
    template, truths = _checkpoints(study.out / "good")
    names = list(FAULTS)
    rows = [_trial(names[i % len(names)], study.out, template, truths, rng) for i in range(study.config.faults)]
    summary = _summary(rows)
    _print(summary)
    study.write({"config": dataclasses.asdict(study.config), "summary": summary})
    return 0 if all(row["noticed"] and row["exact"] for row in rows) else 1


def _checkpoints(directory: Path) -> tuple[Any, dict[int, list[bytes]]]:
    """Writes two steps of SAC and returns the template and the bytes of every leaf of each."""
    # Imported here, so that a refused argument needs no JAX.
    import jax

    from jaxhybrid import envs
    from jaxhybrid.runtime import checkpoint
    from jaxhybrid.systems import maac

    system = maac.make(maac.presets["smoke/sac"], envs.make("lqr/double_integrator"))
    init, truths = jax.jit(system.init), {}
    for iteration in (1, 2):
        state = init(jax.random.key(iteration))
        checkpoint.save(directory, iteration, {"state": state}, {"position": iteration})
        truths[iteration] = _bytes({"state": state})
    return {"state": jax.eval_shape(system.init, jax.random.key(0))}, truths


def _bytes(tree: Any) -> list[bytes]:
    import jax

    def raw(leaf: Any) -> bytes:
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(tree)]


def _trial(
    fault: str, out: Path, template: Any, truths: dict[int, list[bytes]], rng: np.random.Generator
) -> dict[str, Any]:
    """Damages a copy of the checkpoints and restores from it."""
    from jaxhybrid.runtime import checkpoint

    place = out / "damaged" / "checkpoints"
    shutil.copytree(out / "good", place)
    FAULTS[fault](place, rng)
    told: list[str] = []
    try:
        restored = checkpoint.restore(place, template, told.append)
    except InputError as reason:
        # Only where their files were swapped are both steps damaged, and nothing is left to load.
        told.append(str(reason))
        return {"fault": fault, "noticed": True, "exact": len(told) == 3 and fault == _IN_BOTH}
    finally:
        shutil.rmtree(place.parent)
    exact = restored is not None and _bytes(restored.tree) == truths[restored.iteration]
    return {"fault": fault, "noticed": len(told) >= 1, "exact": exact}


def _file(place: Path, step: str, rng: np.random.Generator, least: int = 1) -> Path:
    """A random file of a step that has at least so many bytes."""
    found = sorted(path for path in (place / step).rglob("*") if path.is_file() and path.stat().st_size >= least)
    return found[rng.integers(len(found))]


def _flip(place: Path, rng: np.random.Generator) -> None:
    path = _file(place, _NEW, rng)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def _overwrite(place: Path, rng: np.random.Generator) -> None:
    """A block of noise, as a lost sector gives."""
    path = _file(place, _NEW, rng)
    content = bytearray(path.read_bytes())
    start = int(rng.integers(len(content)))
    end = min(len(content), start + int(rng.integers(1, 513)))
    content[start:end] = bytes(byte ^ int(rng.integers(1, 256)) for byte in content[start:end])
    path.write_bytes(content)


def _zero(place: Path, rng: np.random.Generator) -> None:
    """Zeros to the end, as a crash before the data reached the disk gives."""
    path = _file(place, _NEW, rng)
    content = path.read_bytes()
    start = int(rng.integers(len(content)))
    changed = content[:start] + bytes(len(content) - start)
    path.write_bytes(changed if changed != content else content + b"\0")


def _truncate(place: Path, rng: np.random.Generator) -> None:
    path = _file(place, _NEW, rng)
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def _extend(place: Path, rng: np.random.Generator) -> None:
    path = _file(place, _NEW, rng, least=0)
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 100))))


def _delete(place: Path, rng: np.random.Generator) -> None:
    _file(place, _NEW, rng, least=0).unlink()


def _add(place: Path, rng: np.random.Generator) -> None:
    path = _file(place, _NEW, rng, least=0)
    path.with_name(f"{path.name}-{rng.integers(1000)}").write_bytes(path.read_bytes())


def _swap(place: Path, rng: np.random.Generator) -> None:
    """Two different files change places between the steps."""
    while True:
        old, new = _file(place, _OLD, rng), _file(place, _NEW, rng)
        if old.read_bytes() != new.read_bytes():
            break
    content = old.read_bytes()
    old.write_bytes(new.read_bytes())
    new.write_bytes(content)


def _swap_within(place: Path, rng: np.random.Generator) -> None:
    """Two different files of a step change places."""
    while True:
        one, other = _file(place, _NEW, rng), _file(place, _NEW, rng)
        if one.read_bytes() != other.read_bytes():
            break
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def _graft(place: Path, rng: np.random.Generator) -> None:
    """The arrays of one step under the manifest of the other."""
    shutil.rmtree(place / _NEW / "arrays")
    shutil.copytree(place / _OLD / "arrays", place / _NEW / "arrays")


def _rename(place: Path, rng: np.random.Generator) -> None:
    """An old step under a newer name."""
    shutil.copytree(place / _OLD, place / f"{rng.integers(3, 10**8):08d}")


FAULTS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "bit flipped": _flip,
    "block overwritten": _overwrite,
    "end zeroed": _zero,
    "file truncated": _truncate,
    "file extended": _extend,
    "file deleted": _delete,
    "file added": _add,
    _IN_BOTH: _swap,
    "files swapped within a step": _swap_within,
    "arrays of another step": _graft,
    "step renamed": _rename,
}


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    summary = []
    for fault in FAULTS:
        own = [row for row in rows if row["fault"] == fault]
        counts = {name: sum(row[name] for row in own) for name in ("noticed", "exact")}
        summary.append({"fault": fault, "trials": len(own), **counts})
    return summary


def _print(summary: Sequence[dict[str, Any]]) -> None:
    table = rich.table.Table(title="checkpoints damaged at random")
    for heading in ("fault", "trials", "noticed", "rest restored to the bit"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    for row in summary:
        table.add_row(*(str(value) for value in row.values()))
    rich.console.Console().print(table)


if __name__ == "__main__":
    cli.run_main(main, sys.argv[1:])
