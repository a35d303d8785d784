"""Which devices and processes take part in a run, and what they have to agree on."""

from __future__ import annotations

import os
from functools import partial
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

__all__ = ["agreed", "barrier", "divide_cpu", "fetched", "is_first", "placed", "placement", "start_distributed"]


def divide_cpu(count: int) -> None:
    """Makes the CPU count as several devices; must come before anything else uses JAX.

    Raises:
      InputError: something has.
    """
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        raise InputError(f"cpu_devices={count} came too late: JAX has been used before.") from None


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


def placement(options: RunOptions, num_members: int) -> NamedSharding | None:
    """Returns where the state of a run lives: its members divided over devices, or all of it on every device.

    Args:
      options: of the run; ``data_parallel`` keeps the state everywhere and divides the batches.
      num_members: members side by side, ``S``.

    Returns:
      None where one device holds everything.

    Raises:
      InputError: the members do not divide over the processes of the job.
    """
    if options.data_parallel:
        return NamedSharding(Mesh(np.array(jax.devices()), (BATCH_AXIS,)), PartitionSpec())
    count, per_process = jax.process_count(), jax.local_device_count()
    if num_members % count:
        raise InputError(
            f"seeds: {num_members} members do not divide over the {count} processes of the job: change either, or "
            "divide one run over all of them with --data-parallel."
        )
    used = max(k for k in range(1, per_process + 1) if num_members % (k * count) == 0)
    found = _first(used)
    return NamedSharding(Mesh(np.array(found), ("member",)), PartitionSpec("member")) if len(found) > 1 else None


def _first(count: int) -> list[Any]:
    """The first ``count`` devices of every process."""
    by_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    return [device for index in sorted(by_process) for device in by_process[index][:count]]


def placed(tree: PyTree, sharding: NamedSharding | None) -> PyTree:
    """Copies a tree that every process holds to where ``sharding`` says; None leaves it where it is."""
    if sharding is None:
        return tree

    def one(leaf: Any) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        array = jax.make_array_from_callback(raw.shape, sharding, lambda index: raw[index])
        if not is_key:
            return array
        return jax.jit(partial(jax.random.wrap_key_data, impl=jax.random.key_impl(leaf)), out_shardings=sharding)(array)

    return jax.tree.map(one, tree)


def fetched(tree: PyTree) -> PyTree:
    """Returns the arrays of a tree as NumPy arrays, whole, in every process; every process must ask."""

    def one(leaf: Any) -> np.ndarray:
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)
