"""How well the cache is and when it is verified next, from local history alone: for `status` and `verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from adapters.cli.cacheroom import room_line, room_lines, room_warnings
from adapters.cli.moments import iso, local
from adapters.cli.pointshealed import points_lines, points_said
from adapters.localzone import LocalZone
from engine.cache.attempt import ratios
from engine.cache.due import Chance, next_chance
from engine.cache.health import CONCERN_MS, Health, health_of, turns_ms

if TYPE_CHECKING:
    from adapters.config import Cache, Config
    from adapters.state.directory import StateDirectory
    from engine.cache.attempt import Attempt
    from engine.reportbody import RoomLine
    from engine.state import CacheHistory

_COLOURS: Final = {"gray": "bright_black", "red": "red", "yellow": "yellow", "green": "green"}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How a cache stands: its health, the verifications that come from, and when the next may begin.

    `turns_ms`: after which moments it is yellow and red if no verification passes until then.
    """

    health: Health
    chance: Chance
    turns_ms: tuple[int, int] | None = None
    last_attempt: Attempt | None = None
    last_completed: Attempt | None = None
    last_passed: Attempt | None = None


def standing_of(config: Config, cache: Cache, store: bytes | None, history: CacheHistory, now_ms: int) -> Standing:
    """Return how the cache with the 16-byte id `store` stands; None: it is not adopted yet. Raises: StateCorrupt."""
    last = completed = passed = first_ms = None
    if store is not None:
        last = next(iter(history.attempts(store, 1)), None)
        completed, passed = history.last_completed(store), history.last_passed(store)
        first_ms = history.first_session_ms(store)
    turns = None
    if cache.enabled and completed is not None:
        turns = turns_ms(
            every_s=cache.verify.every_s, first_session_ms=first_ms, last_completed=completed, last_passed=passed
        )
    return Standing(
        health=health_of(
            enabled=cache.enabled,
            every_s=cache.verify.every_s,
            now_ms=now_ms,
            first_session_ms=first_ms,
            last_completed=completed,
            last_passed=passed,
        ),
        chance=next_chance(
            cache.verify.policy,
            config.schedule.business_hours.policy,
            now_ms=now_ms,
            zone=LocalZone(),
            first_session_ms=first_ms,
            last=last,
        ),
        turns_ms=turns,
        last_attempt=last,
        last_completed=completed,
        last_passed=passed,
    )


def room_of(state: StateDirectory, store: bytes | None, standing: Standing) -> RoomLine | None:
    """Return what room the cache `store` takes, None: nobody knows. Raises: StateCorrupt."""
    if store is None:
        return None
    last = standing.last_completed
    return room_line(state.trim_notes(store).last(), last.oldest_day if last is not None else 0)


def standing_document(standing: Standing, *, enabled: bool) -> dict[str, Any]:
    """Return what `--json` says of a cache's health; `next` None: it is not verified while it is switched off."""
    health, chance, last = standing.health, standing.chance, standing.last_completed
    following = {"due": iso(chance.due_ms), "chance": iso(chance.next_ms), "reason": chance.reason}
    return {
        "health": {
            "colour": health.colour,
            "why": health.why,
            "concern": health.concern,
            "score": health.score,
            "blocks": health.blocks,
            "missing": health.missing,
        },
        "last_attempt": _attempt(standing.last_attempt),
        "last_completed": _attempt(standing.last_completed),
        "last_passed": _attempt(standing.last_passed),
        "next": following if enabled else None,
        **(ratios_said(last.blocks, last.missing, last.unique, last.sealed_bytes) if last else ratios_said(0, 0, 0, 0)),
    }


def ratios_said(blocks: int, missing: int, unique: int, sealed_bytes: int) -> dict[str, float | None]:
    """Return how many times smaller a cache is than what this system has in it; null: not known."""
    deduplication, compression = ratios(blocks, missing, unique, sealed_bytes)
    return {
        "deduplication": round(deduplication, 2) if deduplication is not None else None,
        "compression": round(compression, 2) if compression is not None else None,
    }


def _attempt(attempt: Attempt | None) -> dict[str, Any] | None:
    if attempt is None:
        return None
    return {
        "started": iso(attempt.started_ms),
        "ended": iso(attempt.ended_ms),
        "completed": attempt.completed,
        "passed": attempt.passed,
        "blocks": attempt.blocks,
        "missing": attempt.missing,
        "healed_since": attempt.healed_since,
        "deep_packs": attempt.deep_packs,
        "deep_bytes": attempt.deep_bytes,
        "damaged_packs": attempt.damaged_packs,
        "damaged_bytes": attempt.damaged_bytes,
        "points": points_said(attempt.points),
        "error": attempt.error,
    }


def standing_warnings(document: dict[str, Any]) -> list[str]:
    """Return what is to be warned of in what `standing_document` returned."""
    room = room_warnings(document)
    if not document["health"]["concern"]:
        return room
    return [
        f"cache: it was never verified, {CONCERN_MS // 3_600_000} hours and more after the first session with it: run "
        "'forebay verify'",
        *room,
    ]


def standing_lines(document: dict[str, Any], *, colours: bool) -> list[str]:
    """Return the same for people, to stand below the cache's path; `colours`: the colour's name is coloured, too."""
    from click import style

    health = document["health"]
    name = health["colour"]
    shown = style(name, fg=_COLOURS[name], bold=True) if colours else name
    lines = [f"    health: {shown}, {_why(document)}{_score(health)}", *room_lines(document)]
    if (last := document["last_attempt"]) is not None:
        passed = document["last_passed"]
        good = "none has passed yet" if passed is None else f"last passed {_moment(passed['ended'])}"
        lines.append(
            f"    last verification {_moment(last['started'])}, {_outcome(last)}"
            + ("" if last["passed"] else f"; {good}")
        )
    if (completed := document["last_completed"]) is not None:
        lines += [f"    {line}" for line in points_lines(completed["points"])]
    if document["next"] is not None:
        lines.append(f"    {_next(document['next'])}")
    return lines


def _why(document: dict[str, Any]) -> str:
    passed = document["last_passed"]
    match document["health"]["why"]:
        case "disabled":
            return "switched off"
        case "not_verified":
            return "not verified yet"
        case "blocks_missing":
            return "more than 1 % is missing"
        case "clock_put_back":
            return "the last verification that passed lies in the future: the clock was put back"
        case "not_passed_lately" if passed is None:
            return "no verification has passed yet"
        case "not_passed_lately":
            return f"no verification has passed since {_moment(passed['ended'])}"
    return "verified"


def _score(health: dict[str, Any]) -> str:
    if health["score"] is None:
        return ""
    missing = f"{health['missing']:,} missing" if health["missing"] else "none missing"
    return f"; {health['score']:g} % present ({health['blocks']:,} blocks, {missing})"


def _outcome(attempt: dict[str, Any]) -> str:
    if attempt["passed"]:
        return "passed"
    if attempt["completed"]:
        return f"failed: {attempt['missing']:,} of {attempt['blocks']:,} blocks missing"
    if attempt["ended"] is None:
        return "not done yet: it runs, or waits to go on"
    return f"not finished: {attempt['error'] or 'it was stopped'}"


def _next(following: dict[str, Any]) -> str:
    due, chance = following["due"], following["chance"]
    match following["reason"]:
        case "no_session":
            return "next verification: after the first backup"
        case "running":
            return f"next verification due {_moment(due)}"
        case "not_due":
            later = f", to begin {_moment(chance)}, after business hours" if chance != due else ""
            return f"next verification due {_moment(due)}{later}"
        case "business_hours":
            return f"next verification due since {_moment(due)}, waits for the end of business hours: {_moment(chance)}"
        case "clock":
            return "next verification due now: the clock was put back"
    return f"next verification due since {_moment(due)}"


def _moment(moment: str | None) -> str:
    return "at an unknown time" if moment is None else local(moment)
