"""What the figures were measured on and with: no names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from deploy.bench import agent


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, kernel and Python of this machine."""
    return {
        "cpu": processor(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def processor(cpuinfo: str) -> str:
    """Return the model of the processor as /proc/cpuinfo has it, without marks and clock; else its architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if found is None:
        return platform.machine()
    return " ".join(re.sub(r"\((?:R|TM)\)|\bCPU\b|@.*", " ", found[1]).split())


def find_borg() -> str | None:
    """Return the borg to run: BORG, the one built for the bench, or that of the system."""
    built = Path("build/bench/bin/borg").absolute()
    return os.environ.get("BORG") or (str(built) if built.exists() else shutil.which("borg"))


def versions() -> dict[str, str]:
    """Return name → version of Forebay and of the peers that are there."""
    commands = {"forebay": [*agent.program(), "--version"]}
    if shutil.which("restic"):
        commands["restic"] = ["restic", "version"]
    if borg := find_borg():
        commands["borg"] = [borg, "--version"]
    return {name: version_in(output(command)) for name, command in commands.items()}


def version_in(text: str) -> str:
    """Return the first version number in a text."""
    found = re.search(r"\d+(\.\d+)+\S*", text)
    return found[0].rstrip(",") if found else text.strip()


def output(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
