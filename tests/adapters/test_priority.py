"""The lowest priority, asked of the system that has to give it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASKED = """
import os, sys
from adapters import priority
refused = priority.lower()
again = priority.lower()
me = str(os.getpid())
with open("/proc/self/stat", encoding="ascii") as file:
    nice = file.read().rsplit(")", 1)[1].split()[16]
import ctypes
numbers = {"x86_64": 252, "aarch64": 31, "riscv64": 31}
io = ctypes.CDLL(None).syscall(numbers[os.uname().machine], 1, 0) >> 13
print(nice, io, refused, again)
"""


def test_the_process_has_the_lowest_priority_afterwards_and_may_ask_twice() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split(maxsplit=2) == ["19", "3", "[] []\n"]
