"""The optional key file, a second factor beside the passphrase: the option and its reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import click

from adapters.smallfiles import read_small
from engine.errors import ConfigError

T = TypeVar("T")

KEY_FILE_BYTES_MAX: Final = 1 << 20


def key_file_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add `--key-file FILE` to a command, as the argument `key_file`."""
    return click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A file that is needed besides the passphrase, if the domain was founded with one.",
    )(function)


def read_key_file(file: Path | None) -> bytes | None:
    """Return the bytes of the key file, or None without one. Raises: ConfigError."""
    if file is None:
        return None
    data = read_small("key file", file, KEY_FILE_BYTES_MAX, secret=True)
    if not data:
        raise ConfigError(f"key file {file} is empty: is it the right file?")
    return data
