"""Locks on files: held by one at a time, given up by who dies, never followed elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adapters.state.locks import FileLock

HOLDER = """
import sys
from pathlib import Path
from adapters.state.locks import FileLock
lock = FileLock(Path(sys.argv[1]))
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


def test_one_holds_it_at_a_time_also_within_a_process(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert not second.acquire(), "who does not hold it cannot give it back"
    first.release()
    with second:
        assert second.acquire()
        assert not first.acquire()
    assert first.acquire()


def test_a_killed_holder_has_given_it_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not FileLock(tmp_path / "lock").acquire()
        holder.kill()
    assert FileLock(tmp_path / "lock").acquire()


def test_the_file_is_its_owners_and_a_link_is_not_followed(tmp_path: Path) -> None:
    assert FileLock(tmp_path / "lock").acquire()
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        FileLock(tmp_path / "link").acquire()
    assert not (tmp_path / "elsewhere").exists()
