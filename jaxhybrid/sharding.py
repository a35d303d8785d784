"""What may be divided over devices, a batch or several computations: means nothing without a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxhybrid.types import PyTree

__all__ = ["BATCH_AXIS", "apart", "divides", "spread"]

BATCH_AXIS = "batch"
"""Name of the axis of the mesh that batches, and computations, are divided over."""

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


def apart(functions: Sequence[Callable[..., Any]], *args: PyTree) -> list[Any]:
    """Computes several results of the same arguments, each on a device of its own, and gives all of them to all.

    The values are those of ``[f(*args) for f in functions]``, which is what is done without a mesh (see `spread`). With
    fewer devices than functions they take turns, the first device the first function.

    Args:
      functions: return arrays, no typed keys.
      *args: whole on every device.

    Returns:
      The results in the order of the functions.
    """
    used = min(_devices(), len(functions))
    if used == 1:
        return [each(*args) for each in functions]
    zeros = [jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(each, *args)) for each in functions]

    def share(device: int) -> Callable[..., list[Any]]:
        """What a device computes, with zeros in the place of what others do; a further one computes nothing."""
        return lambda *args: [each(*args) if i % used == device else zeros[i] for i, each in enumerate(functions)]

    @partial(jax.shard_map, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    def divided(*args: PyTree) -> list[Any]:
        device = jnp.minimum(jax.lax.axis_index(BATCH_AXIS), used)
        results = jax.lax.switch(device, [share(k) for k in range(used + 1)], *args)
        owners = [jax.tree.map(lambda _, owner=i % used: owner, result) for i, result in enumerate(results)]
        return _from_owners(results, owners)

    return divided(*args)


def _from_owners(tree: TreeT, owners: PyTree) -> TreeT:
    """Gives every leaf to all devices as the device has it that ``owners`` names, in one exchange for each type."""
    leaves, structure = jax.tree.flatten(tree)
    named = jax.tree.leaves(owners)
    found = list(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        which = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        ends = np.cumsum([leaves[i].size for i in which])
        everywhere = jax.lax.all_gather(jnp.concatenate([leaves[i].ravel() for i in which]), BATCH_AXIS)
        for i, end in zip(which, ends, strict=True):
            found[i] = everywhere[named[i], end - leaves[i].size : end].reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, found)


def _devices() -> int:
    return int(jax.sharding.get_abstract_mesh().shape.get(BATCH_AXIS, 1))
