"""Time several ways to do one thing, in turn, with their memory.

Machines drift, so candidates take turns and their medians are compared; a slow one
stops taking turns once its budget is spent. Peak memory is the operating system's own
account of the process (Linux; nan elsewhere), above what was resident before the call.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

_MIB = 1024.0


class Timing(NamedTuple):
    """What one candidate took.

    Attributes:
      seconds: median of its turns.
      turns: how many.
      peak_mib: peak memory of one call above what was resident before, in MiB.
    """

    seconds: float
    turns: int
    peak_mib: float


def take_turns(
    candidates: Mapping[str, Callable[[], object]], turns: int, budget: float
) -> dict[str, Timing]:
    """Times each candidate ``turns`` times, fewer if ``budget`` seconds are spent.

    Args:
      candidates: name -> function that returns when its work is done.
      turns: the most turns a candidate takes, after one that is not counted.
      budget: seconds after which a candidate takes no further turn.
    """
    peaks = {name: peak_mib(run) for name, run in candidates.items()}  # and warm up
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(turns):
        for name, run in candidates.items():
            if spent[name] and sum(spent[name]) > budget:
                continue
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {
        name: Timing(float(np.median(seconds)), len(seconds), peaks[name])
        for name, seconds in spent.items()
    }


def peak_mib(run: Callable[[], object]) -> float:
    """Runs once; returns the peak of resident memory above that before, in MiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        run()
        return max(_status("VmHWM") - before, 0.0) / _MIB
    except OSError:
        run()
        return float("nan")


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1])  # kB
    return float("nan")
