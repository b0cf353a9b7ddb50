"""Number of CPUs that this process may use: threads beyond it are throttled in a pod."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Count the cores that this process may use, or fewer where the pod's CPU limit is lower.

    Args:
        cgroup: File with quota and period of the CPU limit (cgroup v2).
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = cgroup.read_text().split()
        # A limit is a quota of time, not of cores: one of 1.5 CPUs keeps two threads partly busy.
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores  # no cgroup v2, or "max": no limit
