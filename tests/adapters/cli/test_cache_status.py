"""What `status` says of the cache: colour and word, score, verifications, and when the next one may begin."""

from __future__ import annotations

import json
import os
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters import main
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.cache.attempt import Attempt, PointsHealed
from tests.adapters.cli import hostile

HOUR = 3_600_000
NO_HOURS = "[cache]\nverify = { in_business_hours = false }\n"
ATTEMPT_KEYS = {
    "started", "ended", "completed", "passed", "blocks", "missing", "healed_since", "deep_packs", "deep_bytes",
    "damaged_packs", "damaged_bytes", "points", "error",
}  # fmt: skip


@pytest.fixture
def now() -> int:
    return time.time_ns() // 1_000_000


def seed(place: hostile.Place, *attempts: Attempt, first_ms: int | None = None) -> None:
    """Put verifications of the place's cache into its history, oldest first."""
    identity = files.load(place.folder / "state" / "identity")
    assert identity.cache is not None
    with StateDirectory.open(place.folder / "state") as state:
        if first_ms is not None:
            state.history.note_session(identity.cache, first_ms)
        for number, attempt in enumerate(attempts):
            named = msgspec.structs.replace(attempt, attempt=f"{number:032x}", store=identity.cache.hex())
            state.history.put_attempt(named)


def attempt_of(
    ended_ms: int, *, missing: int = 0, healed: int = 0, completed: bool = True, error: str | None = None
) -> Attempt:
    return Attempt(
        attempt="", store="", started_ms=ended_ms - HOUR, ended_ms=ended_ms, completed=completed, blocks=20_000,
        missing=missing, healed_since=healed, error=error,
    )  # fmt: skip


def local(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000).astimezone():%Y-%m-%d %H:%M:%S}"


def status(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> tuple[Any, Any, str]:
    """Return what --json says of the cache and all it says, and the text."""
    arguments = ["--config", str(place.config), "status"]
    assert main.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main.run(arguments) == 0
    return document["cache"], document, capsys.readouterr().out


def test_a_cache_that_no_session_used_is_gray(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    cache, document, text = status(place, capsys)
    assert cache["health"] == {
        "colour": "gray", "why": "not_verified", "concern": False, "score": None, "blocks": None, "missing": None,
    }  # fmt: skip
    assert (cache["last_attempt"], cache["last_completed"], cache["last_passed"]) == (None, None, None)
    assert cache["next"] == {"due": None, "chance": None, "reason": "no_session"}
    assert document["warnings"] == []
    assert "    health: gray, not verified yet\n    next verification: after the first backup\n" in text


def test_the_first_backup_makes_the_first_verification_due(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    assert main.run(["--config", str(place.config), "backup", "--json"]) == 0
    capsys.readouterr()
    cache = status(place, capsys)[0]
    assert cache["next"]["reason"] == "due"
    since = datetime.fromisoformat(cache["next"]["due"]).timestamp() * 1000
    assert now <= since <= time.time_ns() // 1_000_000
    assert main.run(["--config", str(place.config), "backup", "--json"]) == 0
    capsys.readouterr()
    assert status(place, capsys)[0]["next"]["due"] == cache["next"]["due"]


def test_a_backup_without_the_cache_switched_on_makes_none_due(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.configure("[cache]\n", "[cache]\nenabled = false\n")
    assert main.run(["--config", str(place.config), "backup", "--json"]) == 0
    capsys.readouterr()
    place.configure()
    assert status(place, capsys)[0]["next"]["reason"] == "no_session"


def test_a_cache_that_was_never_verified_a_day_after_the_first_session_is_a_warning(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    seed(place, attempt_of(now, completed=False, error="the cache went away"), first_ms=now - 25 * HOUR)
    cache, document, text = status(place, capsys)
    assert (cache["health"]["colour"], cache["health"]["concern"]) == ("gray", True)
    (warning,) = document["warnings"]
    assert warning.startswith("cache: it was never verified, 24 hours and more after the first session with it: run ")
    assert f"  warning: {warning}\n" in text
    assert "not finished: the cache went away; none has passed yet\n" in text
    assert cache["last_attempt"]["error"] == "the cache went away"


def test_a_verified_cache_is_green_and_says_how_much_is_there(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    seed(place, attempt_of(now - HOUR, missing=5), first_ms=now - 99 * HOUR)
    cache, document, text = status(place, capsys)
    assert cache["health"] == {
        "colour": "green", "why": "passed", "concern": False, "score": 99.97, "blocks": 20_000, "missing": 5,
    }  # fmt: skip
    for key in ("last_attempt", "last_completed", "last_passed"):
        assert cache[key].keys() == ATTEMPT_KEYS
        assert (cache[key]["completed"], cache[key]["passed"], cache[key]["missing"]) == (True, True, 5)
    assert cache["next"]["reason"] == "not_due"
    due = now - 2 * HOUR + 24 * HOUR
    assert document["warnings"] == []
    assert "    health: green, verified; 99.97 % present (20,000 blocks, 5 missing)\n" in text
    assert f"    last verification {local(now - 2 * HOUR)}, passed\n" in text
    assert f"    next verification due {local(due)}\n" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("healed", "line"),
    [
        (PointsHealed(completed=True, points=3), "Older restore points: the cache lacks nothing of them"),
        (
            PointsHealed(completed=True, points=3, missing=81, healed=80, no_room=1, put_bytes=4 << 20),
            "Older restore points: the cache lacked 81 blocks of them; 80 blocks put back from the vault, 4.00 MiB; no "
            "room for 1 block",
        ),
        (
            PointsHealed(error="the vault is away"),
            "Older restore points: not looked to the end what the cache lacks of them: the vault is away",
        ),
    ],
)
def test_what_came_back_for_older_points_is_told(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int, healed: PointsHealed, line: str
) -> None:
    seed(place, msgspec.structs.replace(attempt_of(now), points=healed), first_ms=now - HOUR)
    cache, _, text = status(place, capsys)
    assert cache["last_completed"]["points"] == msgspec.to_builtins(healed)
    assert f"    {line}\n" in text


def test_a_failed_verification_is_red_until_its_blocks_are_healed(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    seed(place, attempt_of(now - 30 * HOUR), attempt_of(now, missing=700, healed=100), first_ms=now - 99 * HOUR)
    cache, _, text = status(place, capsys)
    assert (cache["health"]["colour"], cache["health"]["missing"], cache["health"]["score"]) == ("red", 600, 97.0)
    assert "    health: red, more than 1 % is missing; 97 % present (20,000 blocks, 600 missing)\n" in text
    assert f"failed: 700 of 20,000 blocks missing; last passed {local(now - 30 * HOUR)}\n" in text
    healed = msgspec.structs.replace(attempt_of(now, missing=700, healed=700), attempt=f"{1:032x}")
    seed(place, attempt_of(now - 30 * HOUR), healed)
    cache, _, text = status(place, capsys)
    assert (cache["health"]["colour"], cache["health"]["score"]) == ("green", 100.0)
    assert "    health: green, verified; 100 % present (20,000 blocks, none missing)\n" in text


@pytest.mark.parametrize(("hours", "colour"), [(73, "yellow"), (97, "red")])
def test_a_cache_that_has_not_passed_for_days_is_yellow_then_red(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int, hours: int, colour: str
) -> None:
    seed(place, attempt_of(now - hours * HOUR), first_ms=now - 999 * HOUR)
    cache, _, text = status(place, capsys)
    assert cache["health"]["colour"] == colour
    assert f"    health: {colour}, no verification has passed since {local(now - hours * HOUR)}; 100 % present" in text
    assert "next verification due since " in text


def test_one_that_runs_is_told(place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int) -> None:
    running = msgspec.structs.replace(attempt_of(now, completed=False), ended_ms=None)
    seed(place, attempt_of(now - 40 * HOUR), running, first_ms=now - 99 * HOUR)
    cache, _, text = status(place, capsys)
    assert (cache["last_attempt"]["ended"], cache["next"]["reason"]) == (None, "running")
    assert f"not done yet: it runs, or waits to go on; last passed {local(now - 40 * HOUR)}\n" in text


def test_a_cache_that_is_switched_off_is_gray_and_not_verified(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    seed(place, attempt_of(now - HOUR), first_ms=now - 99 * HOUR)
    place.configure("[cache]\n", "[cache]\nenabled = false\n")
    cache, _, text = status(place, capsys)
    assert (cache["enabled"], cache["health"]["colour"], cache["health"]["why"]) == (False, "gray", "disabled")
    assert (cache["health"]["score"], cache["next"]) == (100.0, None)
    assert "    health: gray, switched off; 100 % present (20,000 blocks, none missing)\n" in text
    assert "next verification" not in text


def test_no_cache_has_no_health(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.configure("[cache]\npath = 'cache'\ntrim.min_free = '1%'\n")
    cache, _, text = status(place, capsys)
    assert cache is None
    assert "  cache: none\n" in text


def test_verifications_of_another_cache_say_nothing_of_this_one(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    with StateDirectory.open(place.folder / "state") as state:
        state.history.put_attempt(msgspec.structs.replace(attempt_of(now), attempt="0", store="7" * 32))
    assert status(place, capsys)[0]["health"]["why"] == "not_verified"


def test_business_hours_are_told(place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int) -> None:
    always = "\n[schedule]\nbusiness_hours = { days = 'mon-sun', start = '00:00', end = '24:00' }\n"
    place.configure("[cache]\n", NO_HOURS)
    with place.config.open("a") as file:
        file.write(always)
    seed(place, attempt_of(now), first_ms=now - 99 * HOUR)
    due, forced = now - HOUR + 24 * HOUR, now - HOUR + 51 * HOUR
    assert f"due {local(due)}, to begin {local(forced)}, after business hours\n" in status(place, capsys)[2]
    seed(place, attempt_of(now - 25 * HOUR))
    cache, _, text = status(place, capsys)
    assert cache["next"]["reason"] == "business_hours"
    due, forced = now - 2 * HOUR, now + 25 * HOUR
    assert f"due since {local(due)}, waits for the end of business hours: {local(forced)}\n" in text


def test_a_clock_that_was_put_back_is_told(place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int) -> None:
    seed(place, attempt_of(now + 99 * HOUR), first_ms=now)
    cache, _, text = status(place, capsys)
    assert (cache["health"]["why"], cache["next"]["reason"]) == ("clock_put_back", "clock")
    assert "    health: yellow, the last verification that passed lies in the future: the clock was put back" in text
    assert "    next verification due now: the clock was put back\n" in text


def test_a_time_that_no_calendar_has_is_no_traceback(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], now: int
) -> None:
    seed(place, attempt_of(1 << 62), first_ms=now)
    cache, _, text = status(place, capsys)
    assert cache["last_passed"]["ended"] is None
    assert "last verification at an unknown time, passed\n" in text


@pytest.mark.parametrize("plain", [True, False])
def test_on_a_terminal_the_word_is_coloured_unless_nobody_wants_that(
    place: hostile.Place, now: int, plain: bool
) -> None:
    seed(place, attempt_of(now), first_ms=now)
    ours, theirs = os.openpty()
    environment = {key: value for key, value in hostile.environment().items() if key != "NO_COLOR"}
    subprocess.run(
        place.arguments("status"), stdin=subprocess.DEVNULL, stdout=theirs, cwd=hostile.ROOT,
        env=environment | ({"NO_COLOR": "1"} if plain else {}), check=True, timeout=60,
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ("health: green, verified" if plain else "health: \x1b[32m\x1b[1mgreen\x1b[0m, verified") in shown
    assert ("\x1b" in shown) is not plain


def test_the_keys_of_the_document_are_those_operations_names(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    cache = status(place, capsys)[0]
    for key in {*cache, *cache["health"], *cache["next"], *ATTEMPT_KEYS}:
        assert f"`{key}`" in text, key
