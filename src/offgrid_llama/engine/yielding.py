"""yield_to_others(): lets a thread that computes in the background get less of the processor than the steps of an engine."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

__all__ = ["yield_to_others"]

NICENESS = 5
"""Of such threads, above the process's: they get a quarter of a core that a step wants, too, and all of an idle one."""


def yield_to_others() -> None:
    """Lower the priority of this thread, and of those that it starts. Only Linux has priorities of threads."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
