"""Where log events go: lines for people, or JSON, on stderr; never on stdout, and never a secret."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any, Final, Literal

_RICH: Final = sys.modules.get("rich")
if _RICH is None:
    # structlog would import it, with seventy modules, for tracebacks in colour: a tenth of a backup's start. An entry
    # of None is how Python is told that there is no such module.
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _RICH is None:
    del sys.modules["rich"]

Also = Callable[[Mapping[str, Any]], None]
Format = Literal["human", "json"]
LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
SECRET_KEYS: Final = ("passphrase", "password", "secret", "private", "token", "credential")


def configure(level: str, shape: Format, left_out: Collection[str] = (), also: Also | None = None) -> None:
    """Send events of `level` (a key of `LEVELS`) and above to stderr, but none of `left_out`.

    "human": one line an event, time, level, event, then its values. "json": one JSON object a line. `also` gets every
    event from "info" on (or from `level`, if that is lower), whatever stderr leaves out.
    """
    shown = LEVELS[level]
    renderer: Any
    if shape == "json":
        renderer = structlog.processors.JSONRenderer(default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )

    def hand_on(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if also is not None:
            also(event)
        if LEVELS.get(event["level"], logging.CRITICAL) < shown or event["event"] in left_out:
            raise structlog.DropEvent
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            mask_secrets,
            structlog.processors.format_exc_info,
            hand_on,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(shown if also is None else min(shown, logging.INFO)),
        logger_factory=lambda *_: _Stderr(),
        cache_logger_on_first_use=False,
    )


def mask_secrets(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace values whose key says that they are secret; the second net under the `Secret` type."""
    for key in event:
        if any(word in key.lower() for word in SECRET_KEYS):
            event[key] = "***"
    return event


class _Stderr:
    """A logger that looks stderr up at each line: a progress bar may have put itself in front of it."""

    def _write(self, message: str) -> None:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    debug = info = warning = error = critical = exception = msg = log = _write
