"""Where a batch may be divided over devices: a hint to the compiler that means nothing without a mesh."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

__all__ = ["BATCH_AXIS", "divides", "spread"]

BATCH_AXIS = "batch"
"""Name of the axis of the mesh that batches are divided over."""

TreeT = TypeVar("TreeT")


def divides(size: int) -> bool:
    """Returns whether the active mesh has several devices and ``size`` divides evenly over them."""
    devices = _devices()
    return devices > 1 and size % devices == 0


def spread(tree: TreeT, *, axis: int = 0) -> TreeT:
    """Asks the compiler to divide an axis of every leaf over the devices of the active mesh.

    The values are those of the argument; which device computes them is all that changes. Without a mesh that has an
    automatic axis `BATCH_AXIS` (``with jax.set_mesh(jax.sharding.Mesh(devices, ("batch",)))`` around the tracing), and
    for a leaf whose size does not divide evenly, nothing happens.

    Args:
      tree: arrays, typed keys included.
      axis: the axis to divide, ``B``.

    Returns:
      The same arrays.
    """
    spec = PartitionSpec(*[None] * axis, BATCH_AXIS)

    def one(leaf: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(leaf, spec) if divides(leaf.shape[axis]) else leaf

    return jax.tree.map(one, tree) if _devices() > 1 else tree


def _devices() -> int:
    return int(jax.sharding.get_abstract_mesh().shape.get(BATCH_AXIS, 1))
