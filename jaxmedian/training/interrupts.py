"""Defer Ctrl-C (SIGINT) to the next moment at which a run can be resumed.

Python raises KeyboardInterrupt between any two of its instructions, so also while a
checkpoint is handed over or a buffer changes hands. Inside `deferred_interrupts` the
first Ctrl-C is noted instead, and the second raises.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import jax

from jaxmedian.workers.collectives import PyTree

_HINT = b"\nCtrl-C: stopping at the next chunk edge; again to end at once.\n"


class StopRequest:
    """A signal handler that notes the first Ctrl-C and passes on the second.

    The handler that was there before decides what a Ctrl-C is: where it raises
    KeyboardInterrupt, as Python's own does, a stop is asked for; where it returns, the
    program has dealt with the signal. Whatever else it raises is raised.

    Attributes:
      is_made: whether a stop was asked for.
      is_urgent: whether it was asked for again, and KeyboardInterrupt raised.
    """

    def __init__(self, previous: Callable[[int, FrameType | None], object]) -> None:
        """Takes the handler to ask first."""
        self.is_made = self.is_urgent = False
        self._previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        try:
            self._previous(number, frame)
        except KeyboardInterrupt:
            if self.is_made:
                self.is_urgent = True
                raise
            self.is_made = True
            with contextlib.suppress(OSError):
                os.write(2, _HINT)  # `sys.stderr` may be in the middle of a write
        else:
            if isinstance(self._previous, StopRequest):  # of a run around this one
                self.is_made = self._previous.is_made


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[StopRequest]:
    """Defers Ctrl-C in the block, and restores the handler of before behind it.

    Only the main thread may set a handler, and only there does Python deliver signals:
    elsewhere, and where SIGINT is ignored or left to the operating system, nothing is
    changed.
    """
    previous = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not callable(previous):
        yield StopRequest(signal.default_int_handler)
        return
    request = StopRequest(previous)
    signal.signal(signal.SIGINT, request)
    try:
        yield request
    except Exception as error:
        if request.is_urgent:  # raised in a callback, JAX makes it an error of its own
            raise KeyboardInterrupt from error
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is request:
            signal.signal(signal.SIGINT, previous)


def wait_until_ready(tree: PyTree, share: float = 0.01) -> None:
    """Waits for arrays to be computed, hearing signals meanwhile.

    `jax.block_until_ready` returns to Python, where handlers run, only when it is done.

    Args:
      tree: of arrays.
      share: of the time waited for, by which it may return late. Asking takes a core
        some 10 microseconds, as often as log(time waited for) / share.
    """
    start = time.monotonic()
    for leaf in jax.tree.leaves(tree):
        while not leaf.is_ready():
            waited = time.monotonic() - start
            time.sleep(min(max(share * waited, 1e-5), 0.05))
    jax.block_until_ready(tree)
