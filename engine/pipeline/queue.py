"""The transmission queue: the one bounded place through which every block goes to both sinks.

The rules. They are all there is; `tests/engine/pipeline/test_queue*.py` hold each of them.

 1. A slot is one sealed record on its way, with a bit for each lane that still has to take it. The queue is
    not a broadcast of copies: there is one slot, and each lane clears its own bit.
 2. A slot is *open* from its admission until no lane wants it any more. The bytes of the open slots are never
    more than `bytes_max`. What a slot costs beside its record counts too, so that a million tiny records
    are bounded like sixteen large ones.
 3. Slots are admitted in the order in which `put` was called, one by one, each as soon as it fits. While the
    first in line does not fit nobody passes it, however small: no producer starves. A batch may be admitted in
    part. A slot no lane wants never enters. A slot larger than the whole queue is a bug (records are at most
    64 KiB and a header, `bytes_max` at least 8 MiB) and refused by assertion.
 4. Each lane sees the slots it wants in the order of their admission, each exactly once.
 5. `get` shows, `took` takes: what a lane has seen stays open until it says that it took it, so a lane that is
    cancelled between the two has lost nothing. Between `get` and `took` a lane must not await: then nothing
    that was shown can be skipped or aborted meanwhile. A lane has one reader.
 6. Bytes come free when the *last* lane took the slot, and only then. A lane that stands still therefore stalls
    the producers, and with them the other lane, after exactly `bytes_max` of slots it wants; a slot it does not
    want never waits for it, but waits in the same line to be admitted.
 7. A lane that has given up goes on calling `get` and `took`: the queue knows no dead lanes, and what was not
    delivered is known by id to the lane that threw it away.
 8. `skip` releases the slots that have waited for the named lane *alone* for a time, and nothing else: a slot
    another lane still wants is that lane's to hold. The time runs from the moment it was the only one left.
 9. `close`: no further `put`; those that wait are still admitted. A lane has drained the queue when it is
    closed, nobody waits to put, and the lane has taken all it wanted: then `get` returns an empty list.
10. `abort`: at once no slot is open, no byte is held, everyone who waits is woken, and every call from then on
    raises `QueueAborted`. The first abort counts. Leaving the queue's `with` block by an error aborts it.
11. Whoever is cancelled in `put` leaves the line with what was not admitted; in `get`, leaves everything as it
    was. There is no await between the halves of a change, so accounts hold at every await.
12. The queue belongs to the event loop's thread. It has no task, no timer and no lock of its own, and its only
    waits are events that one of the calls above sets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from types import TracebackType
from typing import Final, Self

import msgspec
from anyio import Event
from anyio.lowlevel import checkpoint

from engine.block import Bytes
from engine.errors import SessionAborted
from engine.names import PackName
from engine.ports import Clock

# What a slot costs beside its record: the object, its id, its places in the lanes' lines.
SLOT_BYTES: Final = 256


class QueueAborted(SessionAborted):
    """The queue was aborted by someone else; `error` is why, and what the session should report."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the session was given up: {str(error) or type(error).__name__}")
        self.error = error


class Slot:
    """One sealed record on its way.

    `id`: the 16 public bytes of its ref; `record`: the sealed record; `lanes`: bits of the lanes that still have
    to take it (`TransmissionQueue.mask`); `nbytes`: what it counts for against the bound; `since`: monotonic
    seconds at which it was admitted or, if later, came to wait for one lane alone; `packs`: of a delta, those its
    sources lie in.
    """

    __slots__ = ("id", "lanes", "nbytes", "packs", "record", "since")

    def __init__(self, id: bytes, record: Bytes, lanes: int, packs: tuple[PackName, ...] = ()) -> None:
        self.id = id
        self.record = record
        self.lanes = lanes
        self.nbytes = len(record) + SLOT_BYTES
        self.since = 0.0
        self.packs = packs


class Fill(msgspec.Struct, frozen=True):
    """How full the queue is: bytes of open slots, bytes each lane still has to take, the bound, producers waiting."""

    held_bytes: int
    bytes_max: int
    lane_bytes: dict[str, int]
    puts_waiting: int


class _Line:
    """The slots one lane still has to take, oldest first."""

    __slots__ = ("bit", "nbytes", "shown", "slots")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.slots: deque[Slot] = deque()
        self.nbytes = 0
        self.shown: Event | None = None  # set while the lane's reader waits


class _Turn:
    """A `put` in the line of producers with what was not admitted yet."""

    __slots__ = ("admitted", "slots")

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = deque(slots)
        self.admitted = Event()


class TransmissionQueue:
    """Slots shared by lanes, bounded in bytes; the rules stand at the top of this file.

    `bytes_max`: the bound; `lanes`: the lanes' names, at least one; `clock`: for the age of slots.
    """

    def __init__(self, bytes_max: int, lanes: tuple[str, ...], clock: Clock) -> None:
        assert bytes_max > 0
        assert lanes
        assert len(set(lanes)) == len(lanes)
        self._bytes_max = bytes_max
        self._clock = clock
        self._lines = {name: _Line(1 << index) for index, name in enumerate(lanes)}
        self._all_lanes = (1 << len(lanes)) - 1
        self._turns: deque[_Turn] = deque()
        self._held_bytes = 0
        self._closed = False
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort(error)

    @property
    def lanes(self) -> tuple[str, ...]:
        """The lanes' names."""
        return tuple(self._lines)

    @property
    def fill(self) -> Fill:
        """A snapshot for progress; all zero once aborted."""
        lane_bytes = {name: line.nbytes for name, line in self._lines.items()}
        return Fill(self._held_bytes, self._bytes_max, lane_bytes, len(self._turns))

    def mask(self, *lanes: str) -> int:
        """Return the bits of the named lanes, for `Slot.lanes`."""
        return sum(self._lines[name].bit for name in set(lanes))

    async def put(self, slots: Sequence[Slot]) -> None:
        """Admit `slots` in order, waiting for room; return when all are admitted.

        Cancelled, it leaves those already admitted in the queue. Raises: QueueAborted.
        """
        await checkpoint()
        self._check()
        assert not self._closed, "put after close"
        wanted = [slot for slot in slots if slot.lanes]
        for slot in wanted:
            assert slot.nbytes <= self._bytes_max, "a slot larger than the queue"
            assert slot.lanes & ~self._all_lanes == 0, "a lane this queue does not have"
        if not wanted:
            return
        turn = _Turn(wanted)
        self._turns.append(turn)
        try:
            self._advance()
            if turn.slots:
                await turn.admitted.wait()
        finally:
            if turn.slots and self._error is None:
                self._turns.remove(turn)
                self._advance()
        self._check()

    async def get(self, lane: str, limit: int) -> list[Slot]:
        """Show up to `limit` of the oldest slots `lane` has to take, waiting for at least one.

        The caller takes them with `took` before it awaits anything; what it does not take is shown again.
        Returns an empty list once the queue is closed and drained. Raises: QueueAborted.
        """
        assert limit > 0
        await checkpoint()
        self._check()
        line = self._lines[lane]
        while not line.slots:
            if self._closed and not self._turns:
                return []
            assert line.shown is None, "a lane has one reader"
            line.shown = Event()
            try:
                await line.shown.wait()
            finally:
                line.shown = None
            self._check()
        return list(islice(line.slots, limit))

    def took(self, lane: str, slots: Sequence[Slot]) -> None:
        """Record that `lane` has taken `slots`: the first ones `get` has shown it, in that order.

        Raises: QueueAborted.
        """
        self._check()
        line = self._lines[lane]
        now = self._clock.monotonic()
        for slot in slots:
            assert line.slots, "took what was not waiting"
            assert line.slots[0] is slot, "took out of order"
            line.slots.popleft()
            self._release(line, slot, now)
        self._advance()

    def skip(self, lane: str, older_than_s: float) -> list[bytes]:
        """Release the slots that have waited for `lane` alone for at least `older_than_s`; return their ids.

        Raises: QueueAborted.
        """
        self._check()
        line = self._lines[lane]
        now = self._clock.monotonic()
        kept: deque[Slot] = deque()
        skipped: list[bytes] = []
        for slot in line.slots:
            if slot.lanes == line.bit and now - slot.since >= older_than_s:
                skipped.append(slot.id)
                self._release(line, slot, now)
            else:
                kept.append(slot)
        line.slots = kept
        self._advance()
        return skipped

    def alone_since(self, lane: str) -> float | None:
        """Return since when (monotonic seconds) a slot has waited for `lane` alone, the longest; None: no slot has."""
        line = self._lines[lane]
        return min((slot.since for slot in line.slots if slot.lanes == line.bit), default=None)

    def close(self) -> None:
        """Declare that no further `put` comes; safe to call twice."""
        self._closed = True
        self._advance()

    def abort(self, error: BaseException) -> None:
        """Drop every slot, wake everyone, and have every later call raise `QueueAborted` from `error`."""
        if self._error is not None:
            return
        self._error = error
        self._held_bytes = 0
        turns, self._turns = self._turns, deque()
        for turn in turns:
            turn.admitted.set()
        for line in self._lines.values():
            line.slots.clear()
            line.nbytes = 0
            self._show(line)

    def _check(self) -> None:
        if self._error is not None:
            raise QueueAborted(self._error) from self._error

    def _advance(self) -> None:
        """Admit what now fits, first come first served, and wake whom that concerns."""
        now = self._clock.monotonic() if self._turns else 0.0
        while self._turns:
            turn = self._turns[0]
            self._admit(turn.slots, now)
            if turn.slots:
                return
            self._turns.popleft()
            turn.admitted.set()
        if self._closed:
            for line in self._lines.values():
                self._show(line)

    def _admit(self, slots: deque[Slot], now: float) -> None:
        """Let in what fits of one turn's slots, the first ones, and show it to the lanes that want it."""
        admitted: list[Slot] = []
        while slots and self._held_bytes + slots[0].nbytes <= self._bytes_max:
            slot = slots.popleft()
            slot.since = now
            self._held_bytes += slot.nbytes
            admitted.append(slot)
        for line in self._lines.values():
            wanted = [slot for slot in admitted if slot.lanes & line.bit]
            if wanted:
                line.slots.extend(wanted)
                line.nbytes += sum([slot.nbytes for slot in wanted])
                self._show(line)

    def _release(self, line: _Line, slot: Slot, now: float) -> None:
        """Clear the lane's bit of a slot that has left its line."""
        slot.lanes &= ~line.bit
        line.nbytes -= slot.nbytes
        if slot.lanes == 0:
            self._held_bytes -= slot.nbytes
        elif slot.lanes & (slot.lanes - 1) == 0:
            slot.since = now

    def _show(self, line: _Line) -> None:
        if line.shown is not None:
            line.shown.set()
