"""How well the cache is, from its last verifications (DESIGN.md §3.4).

| colour | when |
|---|---|
| gray | it is disabled, or no verification was completed yet (24 h after the first session a concern of its own) |
| red | the last completed one found more than 1 % missing, or the last passed one is older than `every` + 72 h |
| yellow | the last passed one is older than `every` + 48 h |
| green | otherwise |

The first line that fits holds. What re-checks of healed blocks found counts for score and 1 %, not for the age of the
last passed one. One that was not completed is no result. Where none has passed yet, the age is that of the first
session: so long nobody has known the cache to be good. A result that lies in the future by more than `every` has no age
that could be told, since the clock was put back: yellow, until the next one has passed.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from engine.cache.attempt import Attempt, few

Colour: TypeAlias = Literal["gray", "red", "yellow", "green"]
Why: TypeAlias = Literal["disabled", "not_verified", "blocks_missing", "not_passed_lately", "clock_put_back", "passed"]

CONCERN_MS: Final = 24 * 3_600_000
RED_MS: Final = 72 * 3_600_000
YELLOW_MS: Final = 48 * 3_600_000


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The colour of a cache and why it has it.

    `concern`: it should have been verified by now, and never was. `score`: the share of blocks present in percent,
    rounded down to two digits, so that 100 means every block; `blocks`, `missing`: what it comes from. All three None
    before a verification was completed.
    """

    colour: Colour
    why: Why
    concern: bool = False
    score: float | None = None
    blocks: int | None = None
    missing: int | None = None


def health_of(
    *,
    enabled: bool,
    every_s: float,
    now_ms: int,
    first_session_ms: int | None,
    last_completed: Attempt | None,
    last_passed: Attempt | None,
) -> Health:
    """Return how well a cache is that is configured.

    `every_s`: how often it is to be verified; `first_session_ms`: when the first session with it ended.
    """
    if last_completed is None:
        concern = enabled and first_session_ms is not None and now_ms - first_session_ms >= CONCERN_MS
        return Health(colour="gray", why="not_verified" if enabled else "disabled", concern=concern)
    if enabled:
        colour, why = _verified(every_s, now_ms, first_session_ms, last_completed, last_passed)
    else:
        colour, why = "gray", "disabled"
    blocks, missing = last_completed.blocks, last_completed.missing_now
    return Health(colour=colour, why=why, score=score_of(blocks, missing), blocks=blocks, missing=missing)


def score_of(blocks: int, missing: int) -> float:
    """Return the share of `blocks` that is present in percent, rounded down to two digits."""
    return max(0, blocks - missing) * 10_000 // blocks / 100 if blocks else 100.0


def turns_ms(
    *, every_s: float, first_session_ms: int | None, last_completed: Attempt, last_passed: Attempt | None
) -> tuple[int, int]:
    """Return after which moments a cache is yellow and red if no verification passes until then."""
    from_ms = _good_ms(first_session_ms, last_completed, last_passed) + round(every_s * 1000)
    return from_ms + YELLOW_MS, from_ms + RED_MS


def _verified(
    every_s: float, now_ms: int, first_session_ms: int | None, last_completed: Attempt, last_passed: Attempt | None
) -> tuple[Colour, Why]:
    if not few(last_completed.missing_now, last_completed.blocks):
        return "red", "blocks_missing"
    every_ms, age_ms = round(every_s * 1000), now_ms - _good_ms(first_session_ms, last_completed, last_passed)
    if age_ms > every_ms + RED_MS:
        return "red", "not_passed_lately"
    if age_ms > every_ms + YELLOW_MS:
        return "yellow", "not_passed_lately"
    if age_ms < -every_ms:
        return "yellow", "clock_put_back"
    return "green", "passed"


def _good_ms(first_session_ms: int | None, last_completed: Attempt, last_passed: Attempt | None) -> int:
    """Return when a cache was known to be good last."""
    if last_passed is not None:
        return _ended_ms(last_passed)
    return _ended_ms(last_completed) if first_session_ms is None else first_session_ms


def _ended_ms(attempt: Attempt) -> int:
    return attempt.started_ms if attempt.ended_ms is None else attempt.ended_ms
