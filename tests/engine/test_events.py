"""Events: which are told, and when the library that tells them is set up."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from engine.events import EventLog, tell_from


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["vault_made", "vault_away", "vault_refused"]),
        ("info", ["vault_made", "vault_away", "vault_refused"]),
        ("warning", ["vault_away", "vault_refused"]),
        ("error", ["vault_refused"]),
    ],
)
def test_events_below_the_level_are_not_told_and_what_tells_them_is_set_up_once_for_the_others(
    level: str, told: list[str]
) -> None:
    prepared: list[int] = []
    log = EventLog("vault")
    with capture_logs() as events:
        tell_from(level, lambda: prepared.append(len(events)))
        log.info("vault_made", url="s3://bucket")
        log.warning("vault_away")
        log.error("vault_refused")
    assert [event["event"] for event in events] == told
    assert prepared == [0]
    assert events[-1] == {"event": "vault_refused", "log_level": "error"}


def test_what_nobody_is_told_sets_nothing_up() -> None:
    def prepare() -> None:
        raise AssertionError("set up for an event that is not told")

    tell_from("error", prepare)
    EventLog("vault").warning("vault_away", tries=3)
