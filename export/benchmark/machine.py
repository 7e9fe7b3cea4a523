"""The machine while something is measured: its cores, and how much of them other processes take meanwhile.

The cores are those that this process may use, so a pinned benchmark asks about no others. Without torch.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

_WATCHED = 1.0  # s before the start
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # what another machine on the same host takes is `steal`


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def busy_seconds() -> float:
    """Return how long these cores have been busy since the machine was started, with whatever process."""
    import psutil

    each = psutil.cpu_times(percpu=True)
    ours = [each[number] for number in cores() if number < len(each)] or each
    return float(sum(getattr(times, kind, 0.0) for times in ours for kind in _BUSY))


class Watch:
    """Measures, from its making to `others`, how many cores other processes than this one took on average."""

    def __init__(self) -> None:
        self._busy, self._own, self._begin = busy_seconds(), time.process_time(), time.perf_counter()

    def others(self) -> float:
        elapsed = time.perf_counter() - self._begin
        own = time.process_time() - self._own
        return max(0.0, (busy_seconds() - self._busy - own) / elapsed)


def load_before() -> float:
    """Return how many cores other processes take, in a second in which this one waits."""
    watch = Watch()
    time.sleep(_WATCHED)
    return watch.others()


def room(threads: int) -> float:
    """Return how many cores others may take while a call computes on `threads`: what is left over, and a little."""
    count = len(cores())
    return count - min(threads, count) + max(0.2, 0.05 * count)


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
