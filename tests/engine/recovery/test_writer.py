"""Writing in threads of its own: everything in the end, a bounded number waiting, and no failure lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from engine.block import Bytes
from engine.errors import RestoreError
from engine.recovery.writer import WAITING_MAX, WRITERS, Writer
from tests.engine.recovery.build import MemoryTarget


class GatedTarget(MemoryTarget):
    """A target whose writes wait until `gate` is open; `begun` tells that one of them does."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.gate, self.begun = threading.Event(), threading.Event()

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self.begun.set()
        assert self.gate.wait(60)
        super().write(offset, pieces)


def test_what_was_handed_over_is_written_once_it_is_drained() -> None:
    target = MemoryTarget(4000)
    writer = Writer(target)
    for number in range(1000):
        writer.write([(number * 4, [bytes([number % 251]), b"abc"])])
    writer.drain()
    assert target.content == b"".join(bytes([number % 251]) + b"abc" for number in range(1000))
    writer.write([])
    writer.drain()
    writer.close()


def test_no_more_than_a_bounded_number_of_batches_waits() -> None:
    held = WRITERS + WAITING_MAX
    target = GatedTarget(held + 1)
    writer = Writer(target)
    for number in range(held):
        writer.write([(number, [b"x"])])
    late = threading.Thread(target=writer.write, args=([(held, [b"x"])],))
    late.start()
    assert target.written == 0
    assert late.is_alive()
    target.gate.set()
    late.join(60)
    writer.drain()
    writer.close()
    assert target.content == b"x" * (held + 1)


def test_a_failure_comes_out_of_a_later_write_and_of_every_drain_and_nothing_is_written_after_it() -> None:
    target = MemoryTarget(100)
    target.fail_at = 50
    writer = Writer(target)
    writer.write([(0, [b"a" * 10])])
    writer.write([(45, [b"b" * 10])])
    for _ in range(2):
        with pytest.raises(RestoreError, match="the target is full"):
            writer.drain()
    with pytest.raises(RestoreError, match="the target is full"):
        writer.write([(10, [b"c"])])
    writer.close()
    assert target.written == 10  # also where another thread wrote it while the failure came out


def test_what_waits_when_it_is_closed_is_not_written() -> None:
    target = GatedTarget(10)
    writer = Writer(target)
    for number in range(WRITERS + WAITING_MAX):
        writer.write([(number, [b"x"])])
    assert target.begun.wait(60)
    closing = threading.Thread(target=writer.close)
    closing.start()
    target.gate.set()
    closing.join(60)
    assert not closing.is_alive()
    assert target.written <= WRITERS
    writer.close()


def test_a_bug_in_a_target_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    writer = Writer(MemoryTarget(1))
    writer.write([(5, [b"beyond the end"])])
    with pytest.raises(AssertionError):
        writer.drain()
    writer.close()
    assert seen == [AssertionError]
