"""How much memory a device, or this process on its machine, can still have."""

import os
import re
from pathlib import Path

import torch

_ROOT = Path("/")


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that a process can still have on a device.

    A GPU: what its driver says is free once torch has given back the memory that it only keeps in
    reserve. Else the machine's: MemAvailable of /proc/meminfo, and no more than the control group
    (a container, a job of a cluster) leaves; file pages that the kernel can drop count as free.
    Where there is no /proc the free pages as the system states them.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory(_ROOT)


def host_memory(root: Path) -> int:
    """Bytes of the machine's memory that a process can still have. root: where /proc and /sys
    are."""
    try:
        available = _numbers(root / "proc/meminfo")["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([available, *_left_by_groups(root)]))


def _left_by_groups(root: Path) -> list[int]:
    """What each control group around this process leaves, of those that have a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2: one tree, at one of two places
            mounts, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), ("max", "current", "")
        elif "memory" in controllers.split(","):
            mounts, names = (
                ("sys/fs/cgroup/memory",),
                ("limit_in_bytes", "usage_in_bytes", "total_"),
            )
        else:
            continue
        # Inside a container the group's path may be the host's, and the mount the group itself.
        parts = [part for part in group.split("/") if part]
        for mount in mounts:
            for depth in range(len(parts) + 1):
                left = _left_by(root.joinpath(mount, *parts[:depth]), *names)
                found += [] if left is None else [left]
    return found


def _left_by(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """limit - usage + the file pages that were not used lately; None where there is no limit."""
    try:
        used = int((folder / f"memory.{usage}").read_text())
        most = int((folder / f"memory.{limit}").read_text())  # `max` where version 2 has none
        droppable = _numbers(folder / "memory.stat").get(f"{prefix}inactive_file", 0)
    except (OSError, ValueError):
        return None
    return most - used + min(droppable, used)


def _numbers(path: Path) -> dict[str, int]:
    """`name 5` and `name: 5 kB` lines as numbers."""
    found = re.findall(r"^(\w+):? +(\d+)", path.read_text(), flags=re.MULTILINE)
    return {name: int(number) for name, number in found}
