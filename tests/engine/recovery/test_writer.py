"""Writing in threads of its own: everything in the end, in order, a bounded amount waiting, and no failure lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block import Bytes
from engine.errors import RestoreError
from engine.recovery import writer as writer_module
from engine.recovery.writer import BATCH_BYTES, WAITING_MAX, WRITERS, Writer, in_order
from tests.engine.recovery.build import MemoryTarget


class GatedTarget(MemoryTarget):
    """A target whose writes wait until `gate` is open; `entered` tells that one of them does."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.gate, self.entered = threading.Event(), threading.Event()

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        super().write(offset, pieces)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be gathered, and every piece be a batch of its own."""
    monkeypatch.setattr(writer_module, "GATHERED_BYTES", 1)
    monkeypatch.setattr(writer_module, "BATCH_BYTES", 1)


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


def test_what_comes_out_of_order_is_written_in_order_and_in_one_piece() -> None:
    written: list[tuple[int, int]] = []

    class Target(MemoryTarget):
        def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
            written.append((offset, len(pieces)))
            super().write(offset, pieces)

    target = Target(100)
    writer = Writer(target)
    for number in (3, 9, 0, 2, 1, 8):
        writer.write([(number * 10, [bytes([number]) * 10])])
    assert written == []
    writer.drain()
    writer.close()
    assert written == [(0, 4), (80, 2)]
    dirt = 0xA5
    assert target.content == b"".join(bytes([dirt if 3 < number < 8 else number]) * 10 for number in range(10))


def test_no_more_than_a_bounded_amount_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "GATHERED_BYTES", 50)
    target = GatedTarget(100)
    writer = Writer(target)
    for number in range(4):
        writer.write([(number * 10, [b"x" * 10])])
    assert not target.entered.is_set()
    writer.write([(40, [b"x" * 10])])
    assert target.entered.wait(60)
    target.gate.set()
    writer.drain()
    writer.close()
    assert target.content == b"x" * 50 + b"\xa5" * 50


@given(st.permutations(range(40)), st.sets(st.integers(0, 39)))
def test_runs_are_ordered_joined_and_cut_into_batches(order: list[int], gaps: set[int]) -> None:
    size = BATCH_BYTES // 8
    piece = bytes(size)
    kept = [number for number in order if number not in gaps]
    batches = list(in_order([(number * size, [piece]) for number in kept]))
    flat = [(offset, len(pieces)) for batch in batches for offset, pieces in batch]
    covered = [offset // size + at for offset, count in flat for at in range(count)]
    assert covered == sorted(kept)
    for batch in batches:
        assert 0 < sum(len(piece) for _, pieces in batch for piece in pieces) <= BATCH_BYTES
        ends = [offset + len(pieces) * size for offset, pieces in batch]
        # Within a batch nothing that touches is left apart.
        assert all(end < batch[at + 1][0] for at, end in enumerate(ends[:-1]))


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
def test_what_waits_when_it_is_closed_is_not_written() -> None:
    target = GatedTarget(10)
    writer = Writer(target)
    for number in range(WRITERS + WAITING_MAX):
        writer.write([(number, [b"x"])])
    assert target.entered.wait(60)
    closing = threading.Thread(target=writer.close)
    closing.start()
    target.gate.set()
    closing.join(60)
    assert not closing.is_alive()
    assert target.written <= WRITERS
    writer.close()


def test_what_is_gathered_when_it_is_closed_is_not_written() -> None:
    target = MemoryTarget(10)
    writer = Writer(target)
    writer.write([(0, [b"x"])])
    writer.close()
    assert target.written == 0


def test_a_bug_in_a_target_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    writer = Writer(MemoryTarget(1))
    writer.write([(5, [b"beyond the end"])])
    with pytest.raises(AssertionError):
        writer.drain()
    writer.close()
    assert seen == [AssertionError]
