"""The log of verifications: its own events only, whole lines, bounded, the owner's alone, and never in the way."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from adapters import logfile, logs
from adapters.config import Secret
from adapters.config.contradictions import STATE_NAMES
from adapters.logfile import VERIFICATIONS, ComponentFile
from tests.adapters.cli.hostile import ROOT


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def file(tmp_path: Path) -> ComponentFile:
    return ComponentFile(tmp_path / VERIFICATIONS, "cache")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_file_gets_what_is_of_its_component_whatever_stderr_shows(
    file: ComponentFile, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("warning", "human", left_out={"verification_failed"}, also=file.write)
    log = structlog.get_logger()
    log.info("verification_skipped", component="cache", reason="not_due", next="2026-06-02T10:00:00.000Z")
    log.info("verify_progressed", done="0 B")
    log.debug("verification_looked", component="cache")
    log.warning("vault_lost", component="vault")
    log.error("verification_failed", component="cache", password="horse", held=Secret("horse"))
    err = capsys.readouterr().err
    assert [line.split()[-2] for line in err.splitlines()] == ["vault_lost"]
    first, second = lines_of(file.path)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "verification_skipped", "level": "info", "component": "cache", "reason": "not_due",
        "next": "2026-06-02T10:00:00.000Z",
    }  # fmt: skip
    assert (second["event"], second["password"], second["held"]) == ("verification_failed", "***", "***")
    assert file.problem is None


def test_nothing_is_made_before_there_is_something_to_write(file: ComponentFile) -> None:
    logs.configure("info", "json", also=file.write)
    structlog.get_logger().info("vault_lost", component="vault")
    assert not file.path.exists()


def test_the_file_is_the_owners_alone_and_what_was_there_stays(file: ComponentFile) -> None:
    before = os.umask(0)
    try:
        file.write({"event": "a", "component": "cache"})
        ComponentFile(file.path, "cache").write({"event": "b\n", "component": "cache"})
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [line["event"] for line in lines_of(file.path)] == ["a", "b\n"]


def test_it_is_bounded_and_the_newest_lines_are_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (logfile.FILE_BYTES_MAX, logfile.FILES_KEPT) == (1 << 20, 4)
    monkeypatch.setattr(logfile, "FILE_BYTES_MAX", 1000)
    file = ComponentFile(tmp_path / VERIFICATIONS, "cache")
    for number in range(300):
        file.write({"event": "e", "component": "cache", "number": number})
    names = [VERIFICATIONS, *(f"{VERIFICATIONS}.{number}" for number in range(1, 5))]
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)
    assert set(names) <= STATE_NAMES
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())
    kept = [line["number"] for name in reversed(names) for line in lines_of(tmp_path / name)]
    assert kept == list(range(300 - len(kept), 300))
    assert len(kept) > 70
    assert file.problem is None


def test_several_processes_write_whole_lines(file: ComponentFile) -> None:
    code = (
        "import sys; from pathlib import Path; from adapters.logfile import ComponentFile\n"
        "file = ComponentFile(Path(sys.argv[1]), 'cache')\n"
        "for number in range(200): file.write({'event': sys.argv[2], 'component': 'cache', 'number': number})\n"
        "sys.exit(file.problem)"
    )
    arguments = [sys.executable, "-c", code, str(file.path)]
    both = [subprocess.Popen([*arguments, name], cwd=ROOT) for name in "ab"]
    assert [each.wait(timeout=60) for each in both] == [0, 0]
    lines = lines_of(file.path)
    for name in "ab":
        assert [line["number"] for line in lines if line["event"] == name] == list(range(200))


def test_a_log_that_cannot_be_written_is_told_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, why in (
        (tmp_path, "Is a directory"),
        (tmp_path / "no" / "x", "No such file"),
        (Path("/dev/full"), "No space"),
    ):
        file = ComponentFile(path, "cache")
        logs.configure("info", "json", also=file.write)
        structlog.get_logger().info("verification_completed", component="cache")
        assert file.problem is not None
        assert file.problem.startswith(f"the log {path} could not be written: {why}")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["event"] == "verification_completed"
