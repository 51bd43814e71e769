"""The backlog as `status` tells it: by names and sizes alone, whatever else lies there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from adapters import main
from adapters.cli.backlog import Backlog, backlog_of
from adapters.config import Spool
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.names import PointId
from engine.spoolroom import RESERVE_BYTES
from engine.state import SessionRow
from engine.vault.formatobject import new_store
from tests.adapters.cli import hostile

Capture = pytest.CaptureFixture[str]
SYSTEM = b"s" * 16
FORMAT = new_store("spool")
ORDER = 1_700_000_000_000


def put(spool: Path, name: str, data: bytes = b"") -> None:
    path = spool / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def point(step: int) -> PointId:
    return PointId(ORDER + step, b"i" * 8)


def filled(spool: Path, system: bytes = SYSTEM) -> Path:
    """Fill a spool with three points, one of them deleted, one of another system, and things that are neither."""
    put(spool, "format", bytes(56))
    for step in range(3):
        put(spool, point(step).root(system), bytes(100))
    put(spool, point(0).note(system, "removed", bytes(32)), bytes(10))
    put(spool, point(1).note(system, "superseded", bytes(32)))
    put(spool, point(0).root(b"o" * 16))
    put(spool, f"root/{system.hex()}/desktop.ini")
    put(spool, f"data/{system.hex()}/{'ab' * 32}-4000", bytes(4000))
    put(spool, f"page/{system.hex()}/no pack", bytes(1000))
    return spool


def told(spool: Path, **settings: Any) -> Backlog:
    found = backlog_of(Spool(path=spool, **settings), SYSTEM)
    assert found is not None
    return found


def test_points_are_counted_and_bytes_summed(tmp_path: Path) -> None:
    backlog = told(filled(tmp_path))
    assert (backlog.points, backlog.oldest_ms) == (2, ORDER + 1)
    assert backlog.used == 56 + 3 * 100 + 10 + 5000


def test_a_place_without_a_store_is_none_and_an_empty_spool_has_nothing(tmp_path: Path) -> None:
    assert backlog_of(Spool(path=tmp_path / "none"), SYSTEM) is None
    assert backlog_of(Spool(path=tmp_path), SYSTEM) is None
    put(tmp_path, "format")
    backlog = told(tmp_path)
    assert (backlog.points, backlog.oldest_ms, backlog.used) == (0, None, 0)
    assert backlog.document(Spool(path=tmp_path))["oldest"] is None


@pytest.mark.parametrize(
    ("limit", "disk_free", "free", "full"),
    [
        (None, 30, 30, 0.7),
        (None, 20, 20, 0.8),
        (10_000, 30, 30, 0.7),  # the disk ends before the limit does
        (10_000, 10, 10, 0.9),
        (6000, 5000, 634, 5366 / 6000),
        (100, 1, 0, 53.66),
    ],
)
def test_what_is_free_is_bounded_by_limit_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, disk_free: int, free: int, full: float
) -> None:
    total = 100 if disk_free <= 100 else 100_000
    monkeypatch.setattr(
        "adapters.cli.backlog.shutil.disk_usage", lambda _: SimpleNamespace(free=disk_free + RESERVE_BYTES, total=total)
    )
    spool = Spool(path=filled(tmp_path), max_size_bytes=limit)
    backlog = told(spool.path, max_size_bytes=limit)
    assert (backlog.free, round(backlog.full, 3)) == (free, round(full, 3))
    assert (backlog.warning(spool) is not None) == (full >= 0.8)


def test_an_order_no_calendar_has_is_shown_as_none(tmp_path: Path) -> None:
    put(tmp_path, "format")
    put(tmp_path, PointId((1 << 64) - 1, b"i" * 8).root(SYSTEM))
    assert told(tmp_path).document(Spool(path=tmp_path))["oldest"] is None


@pytest.fixture
def spooling(place: hostile.Place) -> hostile.Place:
    """Return an enrolled place whose spool holds two points."""
    path = place.folder / "state/identity"
    place.configure("[cache]", "[spool]\npath = 'spool'\n[cache]")
    spool = filled(place.folder / "spool", files.load(path).system)
    put(spool, "format", FORMAT.encode())
    files.save(path, msgspec.structs.replace(files.load(path), spool=FORMAT.store))
    return place


def status(place: hostile.Place, capsys: Capture) -> tuple[Any, str]:
    capsys.readouterr()
    main.run(["--config", str(place.config), "status", "--json"])
    document = json.loads(capsys.readouterr().out)
    main.run(["--config", str(place.config), "status"])
    return document, capsys.readouterr().out


def test_status_tells_the_backlog(spooling: hostile.Place, capsys: Capture) -> None:
    document, text = status(spooling, capsys)
    assert document["spool"]["points"] == 2
    assert document["spool"]["oldest"] == "2023-11-14T22:13:20.001Z"
    assert document["exit_code"] == 0
    assert "spool, 2 restore points to be uploaded, the oldest of 2023-11-1" in text
    assert "5.24 KiB used" in text


def test_status_tells_a_spool_that_is_not_the_adopted_one(
    spooling: hostile.Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "adapters.cli.backlog.shutil.disk_usage", lambda _: SimpleNamespace(free=RESERVE_BYTES + 90, total=100)
    )
    assert status(spooling, capsys)[0]["warnings"] == []
    spool, identity = spooling.folder / "spool", spooling.folder / "state/identity"
    put(spool, "format", new_store("spool").encode())
    (warning,) = status(spooling, capsys)[0]["warnings"]
    assert (
        f"{spool} holds another spool than the one it has adopted: put that one back, or run 'forebay init" in warning
    )
    put(spool, "format", b"no format object")
    assert len(status(spooling, capsys)[0]["warnings"]) == 1
    files.save(identity, msgspec.structs.replace(files.load(identity), spool=None))
    put(spool, "format", FORMAT.encode())
    assert status(spooling, capsys)[0]["warnings"] == [
        f"spool: {spool} holds a spool that is not adopted yet: run 'forebay init'"
    ]


def test_status_without_a_spool_says_so(place: hostile.Place, capsys: Capture) -> None:
    document, text = status(place, capsys)
    assert (document["spool"], document["warnings"], document["fallback"]) == (None, [], None)
    assert "  spool: none" in text


def test_status_warns_of_a_spool_that_is_full_or_gone(
    spooling: hostile.Place, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "adapters.cli.backlog.shutil.disk_usage", lambda _: SimpleNamespace(free=RESERVE_BYTES + 15, total=100)
        )
        document, text = status(spooling, capsys)
    (warning,) = document["warnings"]
    assert "is 85% full, 15 B are left: upload the points that wait in it, or free some of its disk" in warning
    assert f"  warning: {warning}" in text
    (spooling.folder / "spool/format").unlink()
    document, text = status(spooling, capsys)
    assert document["spool"] == {"path": str(spooling.folder / "spool"), "there": False}
    assert "holds no Forebay store: mount its disk, or run 'forebay init'" in document["warnings"][0]
    assert f"spool: {spooling.folder / 'spool'}, away" in text


def test_status_tells_why_the_last_session_went_to_the_spool(spooling: hostile.Place, capsys: Capture) -> None:
    reason = "the vault refuses: the password has expired: change [vault] password_file"
    report = {"started": "2026-01-01T00:00:00.001Z", "seconds": 1.0, "fallback": reason}
    row = SessionRow(
        session="01" * 16, started_ms=1, ended_ms=2, exit_code=3, point="x", route="FALLBACK", report=json.dumps(report)
    )
    with StateDirectory.open(spooling.folder / "state") as state:
        state.history.add(row)
    document, text = status(spooling, capsys)
    assert (document["fallback"], document["exit_code"]) == (reason, 0)
    assert f"The last session went to the spool: {reason}" in text
    assert "done, in the spool" in text
    assert "read 0 B, spool 0 B, cache 0 B" in text
    with StateDirectory.open(spooling.folder / "state") as state:
        # It was uploaded at its end: nothing is left to be told.
        state.history.add(msgspec.structs.replace(row, session="03" * 16, ended_ms=4, exit_code=0))
    assert status(spooling, capsys)[0]["fallback"] is None
    with StateDirectory.open(spooling.folder / "state") as state:
        state.history.add(msgspec.structs.replace(row, session="02" * 16, ended_ms=5, route="VAULT", exit_code=0))
    assert status(spooling, capsys)[0]["fallback"] is None


def test_status_tells_that_the_vault_is_still_to_be_made(place: hostile.Place, capsys: Capture) -> None:
    path = place.folder / "state/identity"
    assert not status(place, capsys)[0]["vault_pending"]
    files.save(path, msgspec.structs.replace(files.load(path), vault_pending=True))
    document, text = status(place, capsys)
    assert document["vault_pending"]
    assert "still to be made: run 'forebay init' once it can be reached" in text
