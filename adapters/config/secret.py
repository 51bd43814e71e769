"""A string that cannot reach a log, a report or a traceback by accident."""

from __future__ import annotations

from typing import NoReturn


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
