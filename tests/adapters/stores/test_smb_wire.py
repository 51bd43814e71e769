"""Answers of a server that lies or is broken: each is taken as it is meant, or named as nonsense; none is a crash."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smbprotocol.header import Commands

from adapters.stores import smbwire
from adapters.stores.smbconnection import Login
from adapters.stores.smberrors import Garbled, ShortWrite
from adapters.stores.smbmessages import Entry, Handle, handle_of, room_of, rows_of
from adapters.stores.smbwire import Link


def listing(*entries: tuple[str, int, int]) -> bytes:
    """Return a directory answer as a server sends it."""
    rows = b""
    for number, (name, size, attributes) in enumerate(entries):
        text = name.encode("utf-16-le")
        row = struct.pack("<II32xQ8xII", 0, 0, size, attributes, len(text)) + text
        row += bytes(-len(row) % 8)
        last = number == len(entries) - 1
        rows += (b"\0\0\0\0" if last else struct.pack("<I", len(row))) + row[4:]
    return struct.pack("<HHI", 9, 72, len(rows)) + rows


def test_a_listing_is_read_as_it_is_sent() -> None:
    answer = listing((".", 0, 16), ("..", 0, 16), ("ab-5", 5, 128), ("größe", 1 << 40, 32))
    assert list(rows_of(answer)) == [Entry("ab-5", 5, 128), Entry("größe", 1 << 40, 32)]
    assert list(rows_of(struct.pack("<HHI", 9, 72, 0))) == []


def test_the_size_of_a_device_is_read_as_it_is_sent() -> None:
    units = struct.pack("<QQQII", 1000, 300, 400, 8, 512)
    assert room_of(struct.pack("<HHI", 9, 72, len(units)) + units) == (1000 * 4096, 300 * 4096)


@given(st.binary(max_size=60))
def test_any_bytes_are_the_size_of_a_device_or_nonsense(answer: bytes) -> None:
    only_nonsense(lambda: room_of(answer))


def only_nonsense(work: Callable[[], object]) -> None:
    try:
        work()
    except Garbled:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_a_listing_or_nonsense(answer: bytes) -> None:
    only_nonsense(lambda: list(rows_of(answer)))


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_listing_with_one_byte_changed_is_a_listing_or_nonsense(at: int, value: int) -> None:
    answer = bytearray(listing(("ab-5", 5, 128), ("cd-7", 7, 128), ("ef", 1, 16)))
    answer[at % len(answer)] = value
    only_nonsense(lambda: list(rows_of(bytes(answer))))


@given(st.binary(max_size=100))
def test_any_bytes_open_a_file_or_are_nonsense(answer: bytes) -> None:
    only_nonsense(lambda: handle_of(answer))


class Ready(Link):
    """A link that counts as logged in, to a server that takes requests of up to 1 MiB."""

    def __init__(self) -> None:
        super().__init__(Login("nas", 445, "share", "agent", True))
        self._connection.supports_multi_credit = True
        self._connection.max_read_size = self._connection.max_write_size = self._connection.max_transact_size = 1 << 20
        self._connection.sequence_window["high"] = 1000


class Answering(Ready):
    """A link whose server answers every request alike."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self._same = answer

    def _send(self, message: object) -> None:
        pass

    def _answer(self, request: object) -> bytes:
        return self._same


@pytest.mark.parametrize(
    ("start", "count", "sent"),
    [(80, 6, 6), (80, 5, 4), (16, 5, 5), (255, 5, 5), (80, 0, 0), (80, 1 << 31, 5)],
    ids=["more than asked for", "less than said", "in the header", "behind the end", "nothing", "a lot"],
)
def test_a_read_that_answers_something_else_than_bytes_asked_for_is_nonsense(start: int, count: int, sent: int) -> None:
    answer = struct.pack("<HBBIII", 17, start, 0, count, 0, 0) + b"x" * sent
    with pytest.raises(Garbled):
        Answering(answer).read(Handle(b"", 5, 0, 0, 0), 0, 5)


def test_a_read_gives_what_was_sent() -> None:
    answer = struct.pack("<HBBIII", 17, 80, 0, 4, 0, 0) + b"some"
    assert Answering(answer).read(Handle(b"", 4, 0, 0, 0), 0, 4) == b"some"


FILE = Handle(b"\0" * 16, 5 << 20, 0, 0, 0)
CONTENT = bytes(range(256)) * (5 << 12)


class Serving(Ready):
    """A link whose server has one file, of which it gives and takes at most `most_bytes` a request."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.most_bytes, self.under_way, self.most_under_way = most_bytes, 0, 0

    def _send(self, message: Any) -> Any:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        return message["offset"].get_value(), message["length"].get_value(), message.COMMAND

    def _answer(self, request: Any) -> bytes:
        self.under_way -= 1
        offset, length, command = request
        count = min(length, self.most_bytes)
        if command == Commands.SMB2_WRITE:
            return struct.pack("<HHII", 17, 0, count, 0)
        return struct.pack("<HBBIII", 17, 80, 0, count, 0, 0) + CONTENT[offset : offset + count]


@pytest.mark.parametrize("most_bytes", [1 << 20, 1000_000, 99_991])
@pytest.mark.parametrize(("offset", "length"), [(0, 5 << 20), (12345, 3_000_000), (5, 1), (7, 0)])
def test_a_server_that_gives_less_than_asked_for_is_asked_again(most_bytes: int, offset: int, length: int) -> None:
    link, moves = Serving(most_bytes), list[None]()
    pieces = link.read_all(FILE, offset, length, lambda: moves.append(None))
    assert b"".join(pieces) == CONTENT[offset : offset + length]
    assert len(moves) == len(pieces)
    assert link.under_way == 0
    assert link.most_under_way <= smbwire.AHEAD_MAX


def test_a_server_that_takes_less_than_it_is_given_is_told_and_every_answer_is_taken() -> None:
    link = Serving(99_991)
    with pytest.raises(ShortWrite, match="took 99991 of 131072 bytes"):
        link.write_all(FILE, memoryview(CONTENT), lambda: None)
    assert link.under_way == 0
    whole = Serving(1 << 20)
    whole.write_all(FILE, memoryview(CONTENT), lambda: None)
    assert (whole.under_way, whole.most_under_way) == (0, smbwire.AHEAD_MAX)
