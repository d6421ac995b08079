"""SIGTERM and Ctrl-C during training: finish the micro-batch, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

TERMINATED = 128 + signal.SIGTERM  # the exit code by which shells tell of SIGTERM


class Stop:
    """The signal received so far."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def asked(self, agree: bool) -> bool:
        """Tell whether to stop now.

        With several processes all have to stop after the same one: they tell each other, but only
        where `agree` is true, in all of them at once.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        if not agree:
            return False
        from jax.experimental.multihost_utils import process_allgather

        signals = process_allgather(np.int32(self.signal or 0))
        self.signal = int(signals.max()) or None
        return self.signal is not None

    def leave(self) -> None:
        """End the program as the signal wants it, once everything is saved."""
        if self.signal == signal.SIGTERM:
            raise SystemExit(TERMINATED)
        if self.signal is not None:
            raise KeyboardInterrupt


@contextmanager
def caught() -> Iterator[Stop]:
    """Remember SIGTERM and SIGINT and go on; a second Ctrl-C interrupts at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python leaves signals to the main thread
        return

    def remember(number: int, frame: object) -> None:
        if stop.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    before = {n: signal.signal(n, remember) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
