"""What one verification says of itself."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from engine.block import BLOCK_BYTES
from engine.cache.attempt import Attempt, ratios


def attempt_of(*, completed: bool = True, blocks: int = 0, missing: int = 0, healed_since: int = 0) -> Attempt:
    return Attempt(
        attempt="0" * 32, store="1" * 32, started_ms=1, ended_ms=2, completed=completed, blocks=blocks,
        missing=missing, healed_since=healed_since,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "missing", "passed"),
    [
        (0, 0, True),
        (99, 1, False),
        (100, 1, True),
        (100, 2, False),
        (10_000, 100, True),
        (10_000, 101, False),
        (10**12, 10**10, True),
        (10**12, 10**10 + 1, False),
    ],
)
def test_it_passed_if_at_most_one_percent_was_missing(blocks: int, missing: int, passed: bool) -> None:
    assert attempt_of(blocks=blocks, missing=missing).passed is passed


def test_what_was_not_completed_did_not_pass() -> None:
    assert not attempt_of(completed=False, blocks=100).passed


def test_healing_lowers_what_is_missing_now_and_leaves_whether_it_passed() -> None:
    healed = attempt_of(blocks=100, missing=50, healed_since=50)
    assert (healed.missing_now, healed.passed) == (0, False)
    assert attempt_of(blocks=100, missing=50, healed_since=20).missing_now == 30
    assert attempt_of(blocks=100, missing=50, healed_since=51).missing_now == 0


def test_it_reads_what_a_version_with_more_and_one_with_fewer_fields_wrote() -> None:
    known = attempt_of(blocks=3)
    raw = msgspec.to_builtins(known)
    later = msgspec.msgpack.encode({**raw, "later": 1})
    assert msgspec.msgpack.decode(later, type=Attempt) == known
    earlier = msgspec.msgpack.encode({key: raw[key] for key in ("attempt", "store", "started_ms")})
    assert msgspec.msgpack.decode(earlier, type=Attempt).blocks == 0


def test_reading_it_needs_no_numpy() -> None:
    code = "import sys, engine.cache.attempt; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("blocks", "missing", "unique", "sealed_bytes", "expected"),
    [
        (0, 0, 0, 0, (None, None)),
        (10, 10, 0, 0, (None, None)),
        (10, 0, 0, 0, (None, None)),
        (12, 2, 5, 0, (2.0, None)),
        (12, 2, 5, 5 * BLOCK_BYTES // 2, (2.0, 2.0)),
        (5, 0, 5, 5 * BLOCK_BYTES, (1.0, 1.0)),
        (2, 5, 5, 5, (None, None)),
    ],
)
def test_ratios(
    blocks: int, missing: int, unique: int, sealed_bytes: int, expected: tuple[float | None, float | None]
) -> None:
    assert ratios(blocks, missing, unique, sealed_bytes) == expected
