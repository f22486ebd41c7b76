"""How much memory is free: of the machine, of its control groups, of a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graphtrace.memory import free_memory, host_memory

GB = 2**30


def machine(root, available=64 * GB, cgroup="0::/\n", groups=()):
    """A tree with /proc and /sys; groups: (folder, limit, used, inactive_file), version 2's names
    unless the folder is version 1's."""
    (root / "proc/self").mkdir(parents=True)
    meminfo = f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\nActive(anon): 5 kB\n"
    (root / "proc/meminfo").write_text(meminfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    for folder, limit, used, inactive in groups:
        old = "/memory" in folder
        place = root / "sys/fs/cgroup" / folder.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"memory.{'limit_in_bytes' if old else 'max'}").write_text(f"{limit}\n")
        (place / f"memory.{'usage_in_bytes' if old else 'current'}").write_text(f"{used}\n")
        key = "total_inactive_file" if old else "inactive_file"
        (place / "memory.stat").write_text(f"anon 5\ninactive_anon 7\n{key} {inactive}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "groups", "expected"),
    [
        ("0::/\n", [], 64 * GB),
        ("0::/\n", [("/", "max", 3 * GB, 0)], 64 * GB),
        ("0::/\n", [("/", 8 * GB, 3 * GB, GB)], 6 * GB),
        ("0::/\n", [("/", 100 * GB, 3 * GB, 0)], 64 * GB),
        ("0::/job\n", [("/job", 8 * GB, 3 * GB, 0), ("/", 6 * GB, 3 * GB, 0)], 3 * GB),
        ("0::/job/step\n", [("/job", 8 * GB, 3 * GB, 0), ("/job/step", "max", 5, 0)], 5 * GB),
        # The path of the host; the container sees its own group at the mount.
        ("0::/docker/abc\n", [("/", 4 * GB, GB, 0)], 3 * GB),
        ("0::/other\n", [("/job", GB, 0, 0)], 64 * GB),
        ("1:memory:/job\n0::/\n", [("/memory/job", 8 * GB, 3 * GB, GB)], 6 * GB),
        ("1:cpu:/job\n0::/\n", [("/cpu/job", 8 * GB, 3 * GB, 0)], 64 * GB),
        ("2:cpu,memory:/\n", [("/memory", 2**63 - 4096, GB, 0)], 64 * GB),
        ("0::/job\n", [("/unified/job", 8 * GB, 3 * GB, 0)], 5 * GB),
        ("0::/\n", [("/", 8 * GB, 9 * GB, 0)], 0),
        ("0::/\n", [("/", 8 * GB, GB, 3 * GB)], 8 * GB),
    ],
)
def test_the_machine_and_its_control_groups(tmp_path, cgroup, groups, expected):
    assert host_memory(machine(tmp_path, cgroup=cgroup, groups=groups)) == expected


def test_without_proc_the_system_is_asked(tmp_path):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < host_memory(tmp_path) <= pages


ALLOCATE = """
from graphtrace.memory import free_memory
held = []
for _ in range(6):
    before = free_memory("cpu")
    held.append(bytearray(b"x") * 200_000_000)
    print(before - free_memory("cpu"))
"""


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_what_is_taken_is_no_longer_free():
    command = [sys.executable, "-c", ALLOCATE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [int(line) for line in done.stdout.split()]
    # Others use the machine meanwhile, so not every time.
    assert any(150e6 < taken < 300e6 for taken in found), found


def test_a_gpu_is_asked_after_torchs_reserve_is_given_back(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: asked.append(str(d)) or (5, 9))
    assert free_memory("cuda:1") == 5
    assert asked == ["empty", "cuda:1"]
