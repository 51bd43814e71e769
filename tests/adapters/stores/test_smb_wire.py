"""Answers of a server that lies or is broken: each is taken as it is meant, or named as nonsense; none is a crash."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.stores import smbwire
from adapters.stores.smberrors import Garbled
from adapters.stores.smbwire import Entry, Handle, Link, Login


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
    assert list(smbwire._rows(answer)) == [Entry("ab-5", 5, 128), Entry("größe", 1 << 40, 32)]
    assert list(smbwire._rows(struct.pack("<HHI", 9, 72, 0))) == []


def only_nonsense(work: Callable[[], object]) -> None:
    try:
        work()
    except Garbled:
        return


@given(st.binary(max_size=300))
def test_any_bytes_are_a_listing_or_nonsense(answer: bytes) -> None:
    only_nonsense(lambda: list(smbwire._rows(answer)))


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_listing_with_one_byte_changed_is_a_listing_or_nonsense(at: int, value: int) -> None:
    answer = bytearray(listing(("ab-5", 5, 128), ("cd-7", 7, 128), ("ef", 1, 16)))
    answer[at % len(answer)] = value
    only_nonsense(lambda: list(smbwire._rows(bytes(answer))))


@given(st.binary(max_size=100))
def test_any_bytes_open_a_file_or_are_nonsense(answer: bytes) -> None:
    only_nonsense(lambda: smbwire._handle(answer))


class Answering(Link):
    """A link whose server answers every request alike."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(Login("nas", 445, "share", "agent", True))
        self._answer = answer

    def _ask(self, message: object) -> bytes:
        return self._answer


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
    assert Answering(answer).read(Handle(b"", 5, 0, 0, 0), 0, 5) == b"some"
