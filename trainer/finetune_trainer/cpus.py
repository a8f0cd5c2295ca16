"""How many CPUs this process may really use."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs by affinity and by the container's quota, at least 1.

    Threads beyond a quota make spinning libraries such as ggml many times slower than fewer threads.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu (cpu.max), and cpu.cfs_quota_us of version 1.
    """
    available = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return max(1, min(available, round(quota))) if quota else available


def _quota(cgroup: Path) -> float | None:
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
