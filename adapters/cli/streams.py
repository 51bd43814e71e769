"""Standard streams that cannot end a command: a log nobody reads any more must not cost a backup.

What is written to stderr after its disk is full or its reader is gone is dropped. The same on stdout is remembered:
the result did not arrive, which `Streams.judge` tells at the end, when all work is done.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final, TextIO

import click

from adapters.cli import frame

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
# The reader has what it wanted (`| head -1`). Windows says EINVAL for a pipe without a reader.
_READER_GONE: Final = frozenset({errno.EPIPE, *([errno.EINVAL] if os.name == "nt" else [])})


class _Tolerant(io.FileIO):
    """A descriptor that takes everything; `lost` is the error of the first write that failed."""

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or drop it."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.lost = self.lost or error
        return len(view)


class Streams:
    """stdout and stderr of this process, made tolerant."""

    def __init__(self) -> None:
        _open_missing()
        self._stdout = _Tolerant(STDOUT, "wb", closefd=False)
        sys.stdout = _text(sys.stdout, self._stdout)
        sys.stderr = _text(sys.stderr, _Tolerant(STDERR, "wb", closefd=False))

    def judge(self, code: int) -> int:
        """Return the exit code of a command that ended with `code`: it failed if its result could not be told."""
        sys.stdout.flush()
        lost = self._stdout.lost
        if lost is None or lost.errno in _READER_GONE:
            return code
        reason = lost.strerror or str(lost)
        click.echo(f"forebay: the result could not be written to stdout ({reason}); what was done is done", err=True)
        return frame.weightiest([code, frame.FAILED])


def _open_missing() -> None:
    """Give closed standard descriptors to the null device, or the next file opened would be written to as stdout."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stdin is None:
        sys.stdin = open(STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115 - open until the process ends


def _text(stream: TextIO | None, raw: _Tolerant) -> TextIO:
    """Return a text stream over `raw` like `stream`, whose encoding never fails."""
    if stream is not None and os.name == "nt" and stream.isatty():
        # A Windows console has an encoding of its own that a descriptor does not have, and does not fill up.
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="backslashreplace")
        return stream
    encoding = stream.encoding if stream is not None else "utf-8"
    # A name that the terminal's encoding lacks must not end a backup.
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=raw.isatty() or raw.fileno() == STDERR,
    )
