"""How far a long command is: a bar with rate, queue fill per lane and time left, or log lines, or nothing.

Whoever does the work calls `update` with a snapshot as often as it likes, from any thread, or hands `watch` a
function that gives one; how often something is shown is decided here.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from engine.events import EventLog

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

RATE_WINDOW_S: Final = 10.0
SAMPLES_MAX: Final = 256


class Snapshot(msgspec.Struct, frozen=True):
    """How things stand at one moment.

    `done_bytes` of `total_bytes` (None: unknown), `lanes`: per lane how full its side of the queue is, 0.0 to 1.0,
    `note`: a few words on what is going on ("reading data", "waiting for the vault").
    """

    done_bytes: int
    total_bytes: int | None = None
    lanes: Mapping[str, float] = {}
    note: str = ""


class Pace(msgspec.Struct, frozen=True):
    """What follows from the snapshots so far: bytes a second of late, and the seconds left, if that can be said."""

    rate: float
    left_s: float | None


class Display(Protocol):
    """One way to show progress."""

    every_s: float

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        """Show how things stand."""
        ...

    def start(self) -> None:
        """Begin to show."""
        ...

    def stop(self) -> None:
        """End; what is shown last stays."""
        ...


class Progress:
    """Takes snapshots, works out rate and time left, and shows them at the display's own pace."""

    def __init__(self, what: str, display: Display | None, now: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self._display = display
        self._now = now
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)
        self._last: Snapshot | None = None
        self._shown_at = -1e9

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            with self._lock:
                if self._last is not None:
                    self._display.show(self._last, self._pace(self._now(), self._last))
            self._display.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Take a snapshot; show it if the last one shown is old enough."""
        if self._display is None:
            return
        with self._lock:
            now = self._now()
            self._last = snapshot
            if now - self._shown_at < self._display.every_s:
                return
            self._shown_at = now
            self._samples.append((now, snapshot.done_bytes))
            self._display.show(snapshot, self._pace(now, snapshot))

    async def watch(self, snapshot: Callable[[], Snapshot]) -> None:
        """Show what `snapshot` gives, again and again, until cancelled: a task beside the work."""
        import anyio

        if self._display is None:
            return
        try:
            while True:
                self.update(snapshot())
                await anyio.sleep(min(self._display.every_s, 1.0))
        finally:
            self._last = snapshot()  # what is shown last is how things ended

    def _pace(self, now: float, snapshot: Snapshot) -> Pace:
        samples = self._samples
        while len(samples) > 2 and now - samples[0][0] > RATE_WINDOW_S:
            samples.popleft()
        if not samples or now <= samples[0][0]:
            return Pace(0.0, None)
        rate = max(0.0, (snapshot.done_bytes - samples[0][1]) / (now - samples[0][0]))
        if snapshot.total_bytes is None or rate == 0:
            return Pace(rate, None)
        return Pace(rate, max(0, snapshot.total_bytes - snapshot.done_bytes) / rate)


class LineDisplay:
    """One log line every ten seconds, and one at the end."""

    every_s = 10.0

    def __init__(self, what: str) -> None:
        self._what = what

    def start(self) -> None:
        """Begin to show."""

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        """Log how things stand as one event."""
        values: dict[str, object] = {"done": bytes_text(snapshot.done_bytes)}
        if snapshot.total_bytes is not None:
            values["total"] = bytes_text(snapshot.total_bytes)
        values["rate"] = bytes_text(pace.rate) + "/s"
        if pace.left_s is not None:
            values["left"] = time_text(round(pace.left_s))
        values |= {f"queue_{lane}": f"{fill:.0%}" for lane, fill in snapshot.lanes.items()}
        if snapshot.note:
            values["now"] = snapshot.note
        EventLog("progress").info(f"{self._what}_progressed", **values)

    def stop(self) -> None:
        """End."""


class BarDisplay:
    """A bar on the terminal (stderr), redrawn in place; log lines appear above it."""

    every_s = 0.1

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self) -> None:
        """Draw the empty bar."""
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(self._what))),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            redirect_stdout=False,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._what, total=None, figures="")

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        """Redraw the bar."""
        assert self._bar is not None
        assert self._task is not None
        figures = bytes_text(snapshot.done_bytes)
        if snapshot.total_bytes is not None:
            figures += f" of {bytes_text(snapshot.total_bytes)}"
        figures += f"  {bytes_text(pace.rate)}/s"
        if pace.left_s is not None:
            figures += f"  {time_text(round(pace.left_s))} left"
        lanes = " ".join(f"{lane} {fill:.0%}" for lane, fill in snapshot.lanes.items())
        # A second line, so that the first keeps its place on a terminal of 80 columns.
        second = "  ".join(part for part in (lanes and f"queue {lanes}", snapshot.note) if part)
        figures += f"\n{second}" if second else ""
        # A volume may turn out to be empty: a bar of zero bytes is a full one.
        total = None if snapshot.total_bytes is None else max(1, snapshot.total_bytes)
        done = snapshot.done_bytes if snapshot.total_bytes != 0 else 1
        self._bar.update(self._task, completed=done, total=total, figures=figures)

    def stop(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()


def display(mode: str, what: str) -> Display | None:
    """Return the display for a mode: "bar", "lines", or None for "none"."""
    if mode == "bar":
        return BarDisplay(what)
    return LineDisplay(what) if mode == "lines" else None


def bytes_text(count: float) -> str:
    """Return a number of bytes for people: three digits and a binary unit ("1.46 GiB")."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 999.5 or unit == "TiB":
            break
        count /= 1024
    if unit == "B" or count >= 99.95:
        return f"{count:.0f} {unit}"
    return f"{count:.1f} {unit}" if count >= 9.995 else f"{count:.2f} {unit}"


def time_text(seconds: float) -> str:
    """Return a duration for people ("0.34 s", "42 s", "3 min 05 s", "2 h 10 min")."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds >= 0.095 else f"{seconds:.1g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def blocks_text(count: int) -> str:
    """Return a number of blocks for people."""
    return "1 block" if count == 1 else f"{count} blocks"


def packs_text(count: int) -> str:
    """Return a number of packs for people."""
    return "1 pack" if count == 1 else f"{count} packs"


def points_text(count: int) -> str:
    """Return a number of restore points for people."""
    return "1 restore point" if count == 1 else f"{count} restore points"
