"""Versions of packages that are known not to work together, each of them seen to fail."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["PROBLEMS", "Problem", "met", "release"]

_ANY = "0"


class Problem(NamedTuple):
    """One of them.

    Attributes:
      packages: name to ``(first bad version, first good one or None)``; all of them must be installed.
      severity: whether this library itself fails, or only something that its user might add.
      what: what happens.
      fix: what to do.
    """

    packages: Mapping[str, tuple[str, str | None]]
    severity: Literal["broken", "note"]
    what: str
    fix: str


PROBLEMS = (
    Problem(
        {"brax": (_ANY, "0.14.3"), "jax": ("0.10", None)},
        "note",
        "brax.training stops at jax.device_put_replicated, which JAX removed in 0.10",
        "train with this library, which uses Brax's environments only; or pin jax below 0.10 elsewhere",
    ),
    Problem(
        {"brax": (_ANY, "0.14.3"), "jax": ("0.10", None)},
        "note",
        "Brax's fluid forces, which only swimmer needs, call clip(a_min=...), which JAX no longer has",
        "make the task through jaxhybrid.envs, which repairs it",
    ),
    Problem(
        {"mujoco-mjx": (_ANY, "3.18")},
        "note",
        "reverse mode through MJX raises wherever its contact solver is a while loop",
        "differentiate through the back-ends that envs.brax.GRADIENTS marks as correct, such as spring",
    ),
    Problem(
        {"gymnax": ("1.0", "1.1"), "gymnasium": ("1.4", None)},
        "broken",
        "gymnax 1.0 requires gymnasium below 1.4",
        "give gymnax an environment of its own",
    ),
    Problem(
        {"playground": (_ANY, "0.3")},
        "note",
        "the default implementation of MuJoCo Playground, warp, has no gradient",
        'make its tasks with config_overrides={"impl": "jax"}',
    ),
    Problem(
        {"distrax": (_ANY, "0.1.10")},
        "note",
        "distrax requires tfp-nightly, a build without releases",
        "use jaxhybrid.ops.gaussian and jaxhybrid.ops.categorical",
    ),
)


def release(version: str) -> tuple[int, ...]:
    """Returns the numbers a version begins with, without zeros at the end: ``0.10.0rc1`` is ``(0, 10)``."""
    numbers = [int(number) for number in re.findall(r"\d+", re.match(r"[\d.]*", version).group())]  # type: ignore[union-attr]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def met(versions: Mapping[str, str]) -> list[Problem]:
    """Returns the problems that these versions have.

    Args:
      versions: name to version of what is installed.
    """

    def bad(name: str, first: str, good: str | None) -> bool:
        version = versions.get(name)
        if version is None:
            return False
        return release(first) <= release(version) and (good is None or release(version) < release(good))

    return [problem for problem in PROBLEMS if all(bad(name, *range_) for name, range_ in problem.packages.items())]
