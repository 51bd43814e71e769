"""A string that cannot reach a log, a report or a traceback by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NoReturn

from adapters.smallfiles import read_small
from engine.errors import ConfigError

SECRET_BYTES_MAX: Final = 4096


class Secret:
    """Hold a secret; everything that prints it shows `***`, only `reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret itself; call it where it is used, and nowhere before."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not to be pickled or copied")


def read_secret(what: str, file: Path) -> Secret:
    """Return the one line of a secret file, which only its owner (and its group) may read; `what`: for messages.

    Raises: ConfigError.
    """
    data = read_small(f"{what} file", file, SECRET_BYTES_MAX, secret=True)
    try:
        text = data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ConfigError(f"{what} file {file} is not UTF-8 text: is it the right file?") from None
    if not text:
        raise ConfigError(f"{what} file {file} is empty")
    if "\n" in text:
        raise ConfigError(f"{what} file {file} has more than one line: is it the right file?")
    return Secret(text)
