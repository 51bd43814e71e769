"""The table of what servers answer, sockets and the library raise, with near misses."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from smbprotocol.exceptions import (
    SMBAuthenticationError,
    SMBConnectionClosed,
    SMBException,
    SMBOSError,
    SMBResponseException,
    SMBUnsupportedFeature,
)
from smbprotocol.header import SMB2HeaderResponse

from adapters.stores.smberrors import ABSENT, BUSY, LOST, STATUS_TABLE, Garbled, ShortWrite, is_lost, meaning_of
from engine.errors import StoreError, StoreRejected, StoreUnavailable


def answered(status: int) -> SMBResponseException:
    header = SMB2HeaderResponse()
    header["status"] = status
    return SMBResponseException(header)


def not_connected(cause: OSError) -> ValueError:
    error = ValueError(f"Failed to connect to 'nas:445': {cause}")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (0xC000006D, StoreRejected, "does not know this user with this password"),
        (0xC0000071, StoreRejected, "its password has expired"),
        (0xC0000234, StoreRejected, "its account is locked"),
        (0xC0000133, StoreRejected, "set the clocks"),
        (0xC0000022, StoreRejected, "not permitted"),
        (0xC00000CC, StoreRejected, "no such share"),
        (0xC000007F, StoreRejected, "no space left"),
        (0xC0000044, StoreRejected, "no space left"),
        (0xC00000A2, StoreRejected, "read-only"),
        (0xC0000257, StoreRejected, "another server (DFS)"),
        (0xC0000102, StoreRejected, "damaged"),
        (0xC0000034, StoreUnavailable, "vanished"),
        (0xC0000043, StoreUnavailable, "in use by something else"),
        (0xC0000185, StoreUnavailable, "cannot read or write its disk"),
        (0xC000009A, StoreUnavailable, "short of resources"),
        (0xC0000203, StoreUnavailable, "ended the connection"),
        (0xC000005E, StoreUnavailable, "no domain controller"),
    ],
    ids=lambda value: f"{value:#x}" if isinstance(value, int) else None,
)
def test_what_a_server_answers_becomes_ours_and_a_sentence(status: int, expected: type[StoreError], words: str) -> None:
    meaning = meaning_of(answered(status))
    assert meaning is not None
    kind, sentence = meaning
    assert kind is expected
    assert words in sentence


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (not_connected(socket.gaierror(-2, "Name or service not known")), StoreUnavailable, "cannot be resolved"),
        (not_connected(ConnectionRefusedError(111, "refused")), StoreUnavailable, "refuses the connection"),
        (not_connected(TimeoutError("timed out")), StoreUnavailable, "cannot be reached (timed out)"),
        (not_connected(OSError(errno.EHOSTUNREACH, "No route to host")), StoreUnavailable, "(No route to host)"),
        (SMBConnectionClosed("SMB socket was closed"), StoreUnavailable, "ended the connection"),
        (BrokenPipeError(32, "Broken pipe"), StoreUnavailable, "ended the connection"),
        (ConnectionResetError(104, "reset"), StoreUnavailable, "ended the connection"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), StoreUnavailable, "does not lead to the server"),
        (SMBException("Connection timeout of 15 seconds exceeded"), StoreUnavailable, "does not answer"),
        (SMBException("Request requires 16 credits but only 1 credits are available"), StoreUnavailable, "short of"),
        (
            SMBException("SMB encryption is required but the connection does not support it"),
            StoreRejected,
            "smb_encrypt = false",
        ),
        (
            SMBException("SMB encryption or signing was required but session was authenticated as a guest which"),
            StoreRejected,
            "correct user and password",
        ),
        (
            SMBException("Server message signature could not be verified: 00 != 01"),
            StoreUnavailable,
            "altered on the way",
        ),
        (SMBAuthenticationError("Failed to authenticate with server: no ticket"), StoreRejected, "no ticket"),
        (SMBUnsupportedFeature(0x0202, 0x0210, "writing through", True), StoreRejected, "too old"),
        (Garbled(), StoreUnavailable, "makes no sense"),
        (ShortWrite("the server took 1 of 2 bytes"), StoreRejected, "no space left"),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, Exception) else None,
)
def test_what_the_library_and_sockets_raise_becomes_ours(
    error: Exception, expected: type[StoreError], words: str
) -> None:
    meaning = meaning_of(error)
    assert meaning is not None
    assert meaning[0] is expected
    assert words in meaning[1]


@pytest.mark.parametrize(
    "error",
    [
        answered(0xC000000D),  # INVALID_PARAMETER: a request of ours was wrong
        answered(0xC0000003),  # INVALID_INFO_CLASS
        answered(0xC0000021),  # one less than ACCESS_DENIED
        answered(0x40000022),  # the same number with another severity
        SMBException("something new"),
        SMBException("a Request requires care"),
        SMBOSError(0xC0000022, "of the other half of the library"),
        ValueError("Cannot disable encryption on an already negotiated session."),
        ValueError("could not: Failed to connect"),
        OSError(0, "no number"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
        OSError(errno.EINVAL, os.strerror(errno.EINVAL)),
        OSError("no number at all"),
        KeyError("buffer"),
        StoreRejected("ours"),
    ],
    ids=lambda error: repr(error)[:60],
)
def test_what_only_a_bug_can_cause_has_no_meaning(error: Exception) -> None:
    assert meaning_of(error) is None


def test_every_sentence_says_what_to_do_or_what_is_wrong_in_one_line() -> None:
    for kind, sentence in STATUS_TABLE.values():
        assert kind in (StoreRejected, StoreUnavailable)
        assert "\n" not in sentence
        assert sentence[0].islower()
        assert not sentence.endswith(".")


def test_a_link_survives_an_answer_and_nothing_else() -> None:
    assert not is_lost(answered(0xC0000022))
    assert not is_lost(answered(0xC000007F))
    assert all(is_lost(answered(status)) for status in LOST)
    assert is_lost(BrokenPipeError())
    assert is_lost(SMBConnectionClosed())


def test_what_is_absent_is_not_busy_and_both_are_in_the_table() -> None:
    assert not ABSENT & BUSY
    assert set(STATUS_TABLE) >= ABSENT | BUSY | LOST
