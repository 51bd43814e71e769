from __future__ import annotations

import gc
import io
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import click
import numpy as np
import pytest
import structlog
from structlog.testing import capture_logs

from adapters import logs
from adapters.cli import frame
from adapters.logfile import ComponentFile
from engine.errors import ConfigError, SessionAborted, SessionRunning, StoreCorrupt
from engine.events import EventLog


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (click.UsageError("x"), 2),
        (SessionRunning("x"), 5),
        (SessionAborted("x"), 1),
        (StoreCorrupt("n", "x"), 1),
        (KeyboardInterrupt(), 1),
    ],
)
def test_every_expected_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert frame.exit_code_of(error) == code


@pytest.mark.parametrize(
    ("codes", "counts"), [([0, 3, 4], 4), ([1, 4, 3], 1), ([5, 1], 5), ([2, 5, 1], 2), ([3, 0], 3), ([], 0)]
)
def test_the_weightiest_exit_code_counts(codes: list[int], counts: int) -> None:
    assert frame.weightiest(codes) == counts


def test_a_document_goes_out_once_and_only_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    people = frame.Context()
    people.emit({"a": 1}, "one a")
    assert capsys.readouterr().out == "one a\n"
    machine = frame.Context()
    machine.json = True
    machine.note("not shown")
    machine.emit({"path": Path("/x"), "id": b"\x01\xff", "count": np.uint64(7), "set": (1, 2)}, "one a")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"path": str(Path("/x")), "id": "01ff", "count": 7, "set": [1, 2]}
    assert err == ""
    with pytest.raises(AssertionError, match="one document"):
        machine.emit({})


def test_the_configuration_file_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOREBAY_CONFIG", raising=False)
    context = frame.Context()
    with pytest.raises(ConfigError, match="--config FILE or in FOREBAY_CONFIG"):
        context.require_config_file()
    monkeypatch.setenv("FOREBAY_CONFIG", "/from/env")
    assert context.require_config_file() == Path("/from/env")
    context.config_file = Path("/from/option")
    assert context.require_config_file() == Path("/from/option")


def test_the_event_loop_gives_back_the_exit_code() -> None:
    async def main() -> int:
        await anyio.lowlevel.checkpoint()
        return 4

    assert frame.run_async(main) == 4


def test_an_error_in_a_task_group_comes_out_as_itself() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def main() -> int:
        async with anyio.create_task_group() as group:
            group.start_soon(fail, SessionAborted("light"))
            group.start_soon(fail, SessionRunning("heavy"))
        return 0

    with pytest.raises(SessionRunning, match="heavy"):
        frame.run_async(main)


def test_a_bug_among_the_errors_of_a_task_group_is_not_hidden() -> None:
    group = BaseExceptionGroup("g", [SessionAborted("x"), BaseExceptionGroup("h", [ValueError("bug")])])
    assert frame.sole_error(group) is group
    bug = ValueError("bug")
    assert frame.sole_error(BaseExceptionGroup("g", [bug])) is bug


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """Handle signals as a command started from a terminal does, however the tests were started."""
    usual: dict[signal.Signals, Any] = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_cancels_the_work_and_leaves_the_handlers_as_they_were(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    async def main() -> int:
        try:
            signal.raise_signal(number)
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)
        return 0

    with pytest.raises(KeyboardInterrupt):
        frame.run_async(main)
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("usual_signals")
def test_what_was_started_in_the_background_ignores_ctrl_c_and_ends_as_usual_when_told_to() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cleaned = []

    async def main() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
            await anyio.lowlevel.checkpoint()
            cleaned.append("not yet")
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep_forever()
        finally:
            cleaned.append("now")
        return 0

    with pytest.raises(KeyboardInterrupt):
        frame.run_async(main)
    assert cleaned == ["not yet", "now"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def passphrase_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    file = folder / "passphrase"
    file.write_bytes(content)
    file.chmod(mode)
    return file


@pytest.mark.parametrize("content", [b"correct horse", b"correct horse\n", b"correct horse\r\n"])
def test_a_passphrase_file_may_end_its_line(tmp_path: Path, content: bytes) -> None:
    assert frame.read_passphrase(passphrase_file(tmp_path, content)).reveal() == "correct horse"


def test_spaces_belong_to_a_passphrase(tmp_path: Path) -> None:
    assert frame.read_passphrase(passphrase_file(tmp_path, b" a b \n")).reveal() == " a b "


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"one\ntwo\n", "more than one line"),
        (b"x" * 5000, "larger than 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_passphrase_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        frame.read_passphrase(passphrase_file(tmp_path, content))


def test_a_passphrase_file_open_to_every_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="open to every user: run chmod o= on it"):
        frame.read_passphrase(passphrase_file(tmp_path, b"x", 0o644))
    assert frame.read_passphrase(passphrase_file(tmp_path, b"x", 0o640)).reveal() == "x"


def test_a_missing_passphrase_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none cannot be read"):
        frame.read_passphrase(tmp_path / "none")


def test_without_a_file_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREBAY_PASSPHRASE", "from env")
    assert frame.read_passphrase(None).reveal() == "from env"
    monkeypatch.setenv("FOREBAY_PASSPHRASE", "")
    with pytest.raises(ConfigError, match="--passphrase-file FILE or set FOREBAY_PASSPHRASE"):
        frame.read_passphrase(None)


@pytest.mark.parametrize(
    ("json", "terminal", "lines", "verbose", "level"),
    [
        (False, False, False, False, "info"),
        (False, True, False, False, "warning"),
        (True, False, False, False, "warning"),
        (True, False, True, False, "info"),
        (True, True, False, True, "debug"),
    ],
)
def test_logs_are_as_loud_as_nothing_else_is(
    monkeypatch: pytest.MonkeyPatch, json: bool, terminal: bool, lines: bool, verbose: bool, level: str
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda level, shape, **_: configured.append((level, shape)))
    context = frame.Context()
    context.json, context.verbose = json, verbose
    context.progress_mode = "lines" if lines else "auto"
    context.start_logs()
    assert configured == []
    for _ in range(2):
        with capture_logs():
            EventLog("vault").error("vault_lost")
    assert configured == [(level, "human")]


def test_a_log_file_gets_what_stderr_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = frame.Context()
    context.json, context.log_file = True, ComponentFile(tmp_path / "log", "cache")
    context.start_logs()
    EventLog("cache").info("verification_completed", component="cache")
    assert "verification_completed" in (tmp_path / "log").read_text()
    assert capsys.readouterr().err == ""
    structlog.reset_defaults()


def test_garbage_is_collected_again_once_everything_is_imported() -> None:
    async def main() -> bool:
        return gc.isenabled()

    gc.disable()
    try:
        assert frame.run_async(main)
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()
        gc.unfreeze()
