"""Ctrl-C and SIGTERM as a request to finish the iteration and save; the second Ctrl-C as an order to stop at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

import jax

from jaxhybrid.runtime.console import say
from jaxhybrid.types import PyTree

__all__ = ["Interrupts", "wait"]


class Interrupts:
    """Notes signals while its ``with`` block runs. Outside the main thread it does nothing.

    Attributes:
      received: the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """What the process should return: 128 plus the signal, 0 without one."""
        return 0 if self.received is None else 128 + self.received

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        say("stopping after this iteration, with a checkpoint; press Ctrl-C again to stop at once.")


def wait(tree: PyTree) -> PyTree:
    """Returns ``tree`` when all of its arrays are computed.

    Unlike ``jax.block_until_ready`` it lets Python handle signals meanwhile.
    """
    pause = 1e-4
    for leaf in jax.tree.leaves(tree):
        is_ready = getattr(leaf, "is_ready", lambda: True)
        while not is_ready():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
    return tree
