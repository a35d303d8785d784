"""Whether the members of a run fit the memory of a device, and how many of them at once."""

from __future__ import annotations

import os
from typing import Any

import jax

from jaxhybrid.errors import InputError
from jaxhybrid.runtime.options import RunOptions

__all__ = ["available_bytes", "members_at_once"]

_GIB = 2**30
# What the compiler's own analysis leaves out: the allocator's fragments and other programs of the run.
_USABLE = 0.9


def available_bytes(options: RunOptions) -> int:
    """Returns the bytes of one device that a program may fill."""
    if options.memory_gib is not None:
        return int(options.memory_gib * _GIB)
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    # The devices of a CPU share its memory.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def members_at_once(analysis: Any, num_members: int, num_devices: int, options: RunOptions) -> int | None:
    """Returns how many members of a device to compute at once, a divisor of their number; None when all of them fit.

    Args:
      analysis: ``compiled.memory_analysis()`` of the program that computes all members at once; None where the
        platform has none.
      num_members: members in total.
      num_devices: devices they are spread over.
      options: may bound the memory.

    Raises:
      InputError: not even one member at a time fits, because the states of all of them must be kept.
    """
    if analysis is None:
        return None
    kept = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    limit = int(_USABLE * available_bytes(options))
    if kept + analysis.temp_size_in_bytes <= limit:
        return None
    local = num_members // num_devices
    at_once = int((limit - kept) // max(1.0, analysis.temp_size_in_bytes / local))
    if at_once < 1:
        each = (kept + analysis.temp_size_in_bytes) / local / _GIB
        raise InputError(
            f"seeds={num_members} do not fit {limit / _GIB:.3g} GiB of a device, each takes about {each:.2g} GiB: run "
            "fewer at a time, or one after another with --parallel processes --jobs 1."
        )
    return max(count for count in range(1, min(at_once, local) + 1) if local % count == 0)
