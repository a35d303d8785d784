"""Which devices and processes take part in a run, and what they have to agree on."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxhybrid.errors import InputError
from jaxhybrid.runtime.options import RunOptions
from jaxhybrid.sharding import BATCH_AXIS
from jaxhybrid.types import PyTree

__all__ = ["agreed", "barrier", "everywhere", "for_members", "is_first", "placed", "start_distributed"]


def start_distributed() -> None:
    """Joins the processes of the job; must come before anything else uses JAX.

    The cluster's own environment (SLURM, Open MPI, a TPU pod, Kubernetes) says who they are; elsewhere the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do.

    Raises:
      InputError: neither does.
    """
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = map(os.environ.get, variables)
    try:
        jax.distributed.initialize(address, int(count) if count else None, int(index) if index else None)
    except (ValueError, RuntimeError) as reason:
        raise InputError(
            f"distributed: the processes did not find each other ({str(reason).splitlines()[0]}): start them with srun "
            f"or mpirun, or set {', '.join(variables)} for each."
        ) from None


def is_first() -> bool:
    """Returns whether this process is the one that speaks and writes for all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(flag: bool) -> bool:
    """Returns whether any process says so; every process must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def for_members(size: int) -> list[Any]:
    """Returns the most local devices among which ``size`` members divide evenly."""
    devices = jax.local_devices()
    return devices[: max(count for count in range(1, len(devices) + 1) if size % count == 0)]


def everywhere(options: RunOptions) -> NamedSharding | None:
    """Returns the placement of a state that every device of every process holds; None without ``data_parallel``."""
    if not options.data_parallel:
        return None
    mesh = Mesh(np.array(jax.devices()), (BATCH_AXIS,))
    return NamedSharding(mesh, PartitionSpec())


def placed(tree: PyTree, sharding: NamedSharding | None) -> PyTree:
    """Copies a tree that every process has to where ``sharding`` says; None leaves it where it is."""
    if sharding is None:
        return tree
    leaves = jax.tree.leaves(tree)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    raw = [np.asarray(jax.random.key_data(x) if key else x) for x, key in zip(leaves, is_key, strict=True)]
    structure = jax.tree.structure(tree)

    def rebuild(leaves: list[jax.Array]) -> PyTree:
        wrapped = [jax.random.wrap_key_data(x) if key else x for x, key in zip(leaves, is_key, strict=True)]
        return jax.tree.unflatten(structure, wrapped)

    return jax.jit(rebuild, out_shardings=sharding)(raw)
