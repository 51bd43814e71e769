"""Log events: past-tense facts with values as keys. Most sessions tell none: structlog is imported for the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")


class _Telling:
    """From which level on events are told, and what configures structlog, until it was called."""

    least = 0
    prepare: Callable[[], None] | None = None


_telling: Final = _Telling()


def tell_from(level: str, prepare: Callable[[], None]) -> None:
    """Tell events of `level` (one of `LEVELS`) and above; `prepare` configures structlog, before the first of them."""
    _telling.least, _telling.prepare = LEVELS.index(level), prepare


class EventLog:
    """Tells the events of one part of the program, by its `name`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def info(self, event: str, **values: object) -> None:
        """Tell what was to be expected."""
        self._tell("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        """Tell what somebody may want to look after."""
        self._tell("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """Tell what somebody has to look after."""
        self._tell("error", event, values)

    def _tell(self, level: str, event: str, values: dict[str, object]) -> None:
        if LEVELS.index(level) < _telling.least:
            return
        if _telling.prepare is not None:
            prepare, _telling.prepare = _telling.prepare, None
            prepare()
        import structlog

        getattr(structlog.get_logger(self._name), level)(event, **values)
