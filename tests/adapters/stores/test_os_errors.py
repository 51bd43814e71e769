"""The table of operating system errors, with near misses."""

from __future__ import annotations

import errno
import os

import pytest

from adapters.stores.oserrors import renaming
from engine.errors import StoreError, StoreRejected, StoreUnavailable


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StoreRejected),
        (errno.EDQUOT, StoreRejected),
        (errno.EFBIG, StoreRejected),
        (errno.EROFS, StoreRejected),
        (errno.EACCES, StoreRejected),
        (errno.EPERM, StoreRejected),
        (errno.ENAMETOOLONG, StoreRejected),
        (errno.EISDIR, StoreRejected),
        (errno.ENOTDIR, StoreRejected),
        (errno.EEXIST, StoreRejected),
        (errno.EIO, StoreUnavailable),
        (errno.ENODEV, StoreUnavailable),
        (errno.ENXIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ENOTCONN, StoreUnavailable),
        (errno.EHOSTDOWN, StoreUnavailable),
        (errno.EHOSTUNREACH, StoreUnavailable),
        (errno.ENETUNREACH, StoreUnavailable),
        (errno.ECONNRESET, StoreUnavailable),
        (errno.ETIMEDOUT, StoreUnavailable),
        (errno.EPIPE, StoreUnavailable),
        (errno.ENOENT, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
        (errno.EBUSY, StoreUnavailable),
        (errno.EAGAIN, StoreUnavailable),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.__name__,
)
def test_an_answer_of_the_system_becomes_ours_and_a_sentence(number: int, expected: type[StoreError]) -> None:
    with pytest.raises(StoreError) as caught, renaming("folder /mnt/usb"):
        raise OSError(number, os.strerror(number))
    assert type(caught.value) is expected
    assert str(caught.value).startswith("folder /mnt/usb: ")
    assert os.strerror(number) in str(caught.value)


@pytest.mark.parametrize(
    "number",
    [errno.EINVAL, errno.EBADF, errno.EFAULT, errno.ENOSYS, errno.ESPIPE, errno.ENOTEMPTY, errno.EDOM, 0, 9999],
)
def test_what_only_a_bug_can_cause_propagates(number: int) -> None:
    raised = OSError(number, "a bug")
    with pytest.raises(OSError, match="a bug") as caught, renaming("folder /mnt/usb"):
        raise raised
    assert caught.value is raised


@pytest.mark.parametrize(
    "error", [OSError("no number at all"), ValueError("not of the system"), StoreRejected("ours")], ids=repr
)
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, renaming("folder /mnt/usb"):
        raise error
    assert caught.value is error


class WindowsError_(OSError):
    winerror: int


@pytest.mark.parametrize(
    ("winerror", "expected"),
    [
        (19, StoreRejected),
        (21, StoreUnavailable),
        (32, StoreUnavailable),
        (53, StoreUnavailable),
        (64, StoreUnavailable),
        (112, StoreRejected),
        (1167, StoreUnavailable),
    ],
)
def test_the_number_of_windows_comes_first(winerror: int, expected: type[StoreError]) -> None:
    error = WindowsError_(errno.EINVAL, "as Windows maps it")
    error.winerror = winerror
    with pytest.raises(expected), renaming("folder Z:\\cache"):
        raise error


def test_a_windows_number_no_table_knows_falls_back_to_the_common_one() -> None:
    error = WindowsError_(errno.EACCES, "Access is denied")
    error.winerror = 5
    with pytest.raises(StoreRejected), renaming("folder Z:\\cache"):
        raise error
