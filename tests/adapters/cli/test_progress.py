from __future__ import annotations

import io
import sys

import anyio
import pytest
import structlog

from adapters.cli import frame
from adapters.cli.progress import BarDisplay, LineDisplay, Pace, Progress, Snapshot, bytes_text, display, time_text

MIB = 1 << 20


class Recorder:
    every_s = 10.0

    def __init__(self) -> None:
        self.events: list[str] = []
        self.shown: list[tuple[Snapshot, Pace]] = []

    def start(self) -> None:
        self.events.append("start")

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        self.events.append("show")
        self.shown.append((snapshot, pace))

    def stop(self) -> None:
        self.events.append("stop")


class Hand:
    """A clock turned by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_snapshots_are_shown_at_the_displays_own_pace_and_the_last_one_always() -> None:
    recorder, clock = Recorder(), Hand()
    with Progress("backup", recorder, clock) as progress:
        for second in range(25):
            clock.now = float(second)
            progress.update(Snapshot(second * MIB, 100 * MIB))
    assert [shown.done_bytes // MIB for shown, _ in recorder.shown] == [0, 10, 20, 24]
    assert recorder.events[0] == "start"
    assert recorder.events[-1] == "stop"


def test_rate_and_time_left_follow_the_last_seconds() -> None:
    recorder, clock = Recorder(), Hand()
    with Progress("backup", recorder, clock) as progress:
        for second, done in ((0, 0), (10, 10 * MIB), (20, 30 * MIB), (30, 50 * MIB)):
            clock.now = float(second)
            progress.update(Snapshot(done, 70 * MIB))
    _, pace = recorder.shown[3]
    assert pace == Pace(2.0 * MIB, 10.0)


def test_without_a_total_no_end_is_foretold() -> None:
    recorder, clock = Recorder(), Hand()
    with Progress("restore", recorder, clock) as progress:
        progress.update(Snapshot(0))
        clock.now = 10.0
        progress.update(Snapshot(MIB))
    assert recorder.shown[1][1].left_s is None


def test_a_display_is_closed_when_the_work_fails() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="broken"), Progress("backup", recorder, Hand()):
        raise ValueError("broken")
    assert recorder.events == ["start", "stop"]


def test_watching_ends_with_its_task_group() -> None:
    recorder = Recorder()

    async def main() -> None:
        progress = Progress("backup", recorder)
        async with anyio.create_task_group() as group:
            taken = anyio.Event()

            def snapshot() -> Snapshot:
                taken.set()
                return Snapshot(5)

            group.start_soon(progress.watch, snapshot)
            await taken.wait()
            group.cancel_scope.cancel()

    anyio.run(main)
    assert recorder.shown[0][0] == Snapshot(5)


def test_what_is_shown_last_is_how_things_ended() -> None:
    recorder = Recorder()
    done = 0

    async def main() -> None:
        nonlocal done
        with Progress("backup", recorder) as progress:
            async with anyio.create_task_group() as group:
                group.start_soon(progress.watch, lambda: Snapshot(done))
                await anyio.wait_all_tasks_blocked()
                done = 9
                group.cancel_scope.cancel()

    anyio.run(main)
    assert [shown.done_bytes for shown, _ in recorder.shown] == [0, 9]


def test_silence_costs_nothing() -> None:
    assert display("none", "x") is None
    with Progress("backup", None) as progress:
        progress.update(Snapshot(1))
        anyio.run(progress.watch, lambda: Snapshot(1))


def test_lines_say_how_far_how_fast_and_how_full() -> None:
    with structlog.testing.capture_logs() as events:
        LineDisplay("backup").show(Snapshot(MIB, 4 * MIB, {"vault": 0.5, "cache": 0.25}, "reading"), Pace(MIB, 3.0))
    assert events == [
        {
            "event": "backup_progressed",
            "log_level": "info",
            "done": "1.00 MiB",
            "total": "4.00 MiB",
            "rate": "1.00 MiB/s",
            "left": "3 s",
            "queue_vault": "50%",
            "queue_cache": "25%",
            "now": "reading",
        }
    ]


def test_the_bar_draws_itself_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "80")
    bar = BarDisplay("backup")
    bar.start()
    bar.show(Snapshot(MIB, 4 * MIB, {"vault": 0.5}, "reading"), Pace(MIB, 65.0))
    bar.stop()
    for words in ("backup", "1.00 MiB of 4.00 MiB", "1.00 MiB/s", "queue vault 50%", "1 min 05 s left", "reading"):
        assert words in " ".join(stderr.getvalue().split()), words
    assert capsys.readouterr().out == ""


def test_a_bar_over_nothing_is_full() -> None:
    bar = BarDisplay("backup")
    bar.start()
    bar.show(Snapshot(0, 0), Pace(0.0, None))
    bar.stop()


@pytest.mark.parametrize(
    ("json", "terminal", "mode", "kind"),
    [
        (False, True, "auto", "BarDisplay"),
        (False, False, "auto", "LineDisplay"),
        (True, True, "auto", "NoneType"),
        (True, True, "bar", "BarDisplay"),
        (True, False, "lines", "LineDisplay"),
        (False, True, "none", "NoneType"),
    ],
)
def test_where_stderr_goes_decides_unless_told(
    monkeypatch: pytest.MonkeyPatch, json: bool, terminal: bool, mode: str, kind: str
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    context = frame.Context()
    context.json, context.progress_mode = json, mode
    assert type(context.progress("x")._display).__name__ == kind


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.50 KiB"), (MIB * 100, "100 MiB"), (2**50, "1024 TiB")],
)
def test_bytes_are_told_with_three_digits(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.057, "0.06 s"),
        (0.344, "0.34 s"),
        (4, "4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_times_are_told_in_two_units(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
