"""The processor time of one call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def cpu_s(call: Callable[[], object]) -> float:
    """Return the processor seconds of this thread in one call.

    The garbage collector is off meanwhile: a full collection visits every object of the test
    process, which takes longer than most calls and has nothing to do with them.
    """
    gc.disable()
    try:
        began = time.thread_time()
        call()
        return time.thread_time() - began
    finally:
        gc.enable()
