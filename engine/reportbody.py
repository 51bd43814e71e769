"""What a system's report says (docs/FORMAT.md, "Report"); importing it costs neither numpy nor keys.

Whoever reads it may be another machine with another clock: so every time in it is by the clock that also wrote `time`,
and a reader tells ages by the difference to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Final, TypeAlias

import msgspec

SESSIONS_MAX: Final = 10
PROBLEMS_MAX: Final = 3  # of one session
WARNINGS_MAX: Final = 10
TEXT_MAX: Final = 240  # characters of a sentence
SHORT_MAX: Final = 120  # of one there is no more room for: a report with all that it may hold stays below its bound
WORD_MAX: Final = 64  # of a colour, a route, a version, the id of a point

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Word: TypeAlias = Annotated[str, msgspec.Meta(max_length=WORD_MAX)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]
Short: TypeAlias = Annotated[str, msgspec.Meta(max_length=SHORT_MAX)]


class SessionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A session that ended, `duration` ms long. `point` None: it made none.

    `problems`: how many there were; `told`: the first of them.
    """

    started: Count
    duration: Count
    route: Word
    exit_code: Count
    point: Word | None = None
    read_bytes: Count = 0
    vault_bytes: Count = 0
    cache_bytes: Count = 0
    error: Text | None = None
    problems: Count = 0
    told: Annotated[list[Text], msgspec.Meta(max_length=PROBLEMS_MAX)] = []


class PointsLine(msgspec.Struct, frozen=True, kw_only=True):
    """What older restore points got back after a verification, as in `engine.cache.attempt.PointsHealed`."""

    completed: bool = False
    points: Count = 0
    missing: Count = 0
    healed: Count = 0
    no_room: Count = 0
    put_bytes: Count = 0
    read_bytes: Count = 0
    error: Short | None = None


class AttemptLine(msgspec.Struct, frozen=True, kw_only=True):
    """A verification of the cache, as in `engine.cache.attempt.Attempt`; `ended` None: it runs, or goes on later.

    `points`: what it brought back for older restore points; None: it was not asked to, or the report is an older one.
    """

    started: Count
    ended: Count | None = None
    completed: bool = False
    passed: bool = False
    blocks: Count = 0
    missing: Count = 0
    healed: Count = 0
    deep_packs: Count = 0
    deep_bytes: Count = 0
    damaged_packs: Count = 0
    damaged_bytes: Count = 0
    points: PointsLine | None = None
    error: Text | None = None


class RoomLine(msgspec.Struct, frozen=True, kw_only=True):
    """What room a cache takes, as the last trimming found it; days since 2020-01-01, sizes in bytes.

    `size`: of the cache's packs; `device`, `free`: of the device it lies on; `lacking`: what would have to go for the
    thresholds and cannot, `protected` what must not go; `refused`: why nothing was to go; `oldest`: the least day on
    which the system saw a block last that is there still; `full`: when the device is full if the cache goes on growing.
    """

    day: Count
    size: Count
    device: Count | None = None
    free: Count | None = None
    lacking: Count = 0
    protected: Count = 0
    refused: Text | None = None
    oldest: Count | None = None
    full: Count | None = None


class CacheLine(msgspec.Struct, frozen=True, kw_only=True):
    """How the cache stands (DESIGN.md §3.4).

    `colour`, `why`: its health at `time`; `yellow`, `red`: after which moments it is that if nothing passes until then.
    `blocks`, `missing`: what its score comes from; `unique`, `sealed`: of the last completed verification, as in
    `engine.cache.attempt.Attempt`. `due`: when the next verification is due; `chance`: when it may begin; `reason`:
    why not earlier. What nobody knew is None.
    """

    enabled: bool
    colour: Word
    why: Word
    concern: bool = False
    yellow: Count | None = None
    red: Count | None = None
    blocks: Count | None = None
    missing: Count | None = None
    unique: Count | None = None
    sealed: Count | None = None
    room: RoomLine | None = None
    last_attempt: AttemptLine | None = None
    last_completed: AttemptLine | None = None
    last_passed: AttemptLine | None = None
    due: Count | None = None
    chance: Count | None = None
    reason: Word = ""


class BacklogLine(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the spool; `oldest`: when the oldest point there was made. `there` False: it could not be read."""

    there: bool
    points: Count = 0
    oldest: Count | None = None
    used_bytes: Count = 0
    free_bytes: Count = 0


class VaultLine(msgspec.Struct, frozen=True, kw_only=True):
    """The last verification of the vault, as in `engine.vault.check.VaultCheck`."""

    started: Count
    ended: Count | None = None
    completed: bool = False
    passed: bool = False
    points: Count = 0
    incomplete: Count = 0
    packs: Count = 0
    bytes: Count = 0
    missing_packs: Count = 0
    damaged_packs: Count = 0
    read_packs: Count = 0
    read_bytes: Count = 0
    error: Text | None = None


class ReportBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says; times in ms since 1970 UTC by its writer's clock.

    `point`, `point_time`: the newest restore point; `success`: when the last session that made one ended; `sessions`:
    newest first; `checked`: the last verification of the vault.
    """

    time: Count
    version: Word
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    point: Word | None = None
    point_time: Count | None = None
    success: Count | None = None
    sessions: Annotated[list[SessionLine], msgspec.Meta(max_length=SESSIONS_MAX)] = []
    cache: CacheLine | None = None
    backlog: BacklogLine | None = None
    checked: VaultLine | None = None
    warnings: Annotated[list[Text], msgspec.Meta(max_length=WARNINGS_MAX)] = []


def clipped(sentence: str, most: int = TEXT_MAX) -> str:
    """Return a sentence as a report may hold it: printable, and at most `most` characters long."""
    plain = "".join(each if each.isprintable() else " " for each in sentence)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def unprintable(body: ReportBody) -> bool:
    """Tell whether any text in it would do something to a terminal besides being shown."""
    return any(not text.isprintable() for text in _texts(msgspec.to_builtins(body)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        inner: Iterable[object] = value.values() if isinstance(value, dict) else value
        for each in inner:
            yield from _texts(each)
