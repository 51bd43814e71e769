from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from adapters import main
from adapters.state.directory import StateDirectory
from engine.state import SessionRow
from tests.adapters.cli import hostile

CUT, OTHER, ENDED = bytes([1]) * 16, bytes([2]) * 16, bytes([3]) * 16


def begin(place: hostile.Place, *sessions: bytes, failed: bytes | None = None) -> None:
    with StateDirectory.open(place.folder / "state") as state:
        for session in sessions:
            state.begin_session(session)
        if failed is not None:
            state.history.add(
                SessionRow(
                    session=failed.hex(),
                    started_ms=1,
                    ended_ms=2,
                    exit_code=1,
                    point=None,
                    route="ABORTED",
                    report='{"started":"2026-01-01T00:00:00.001Z","seconds":0.25,"error":"the disk is full"}',
                )
            )


def status(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    code = main.run(["--config", str(place.config), "status", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code
    return code, document


def text(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> str:
    main.run(["--config", str(place.config), "status"])
    return capsys.readouterr().out


def test_a_system_that_never_backed_up_is_well(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = status(place, capsys)
    assert (code, document["cut_off"], document["running"], document["sessions"]) == (0, [], None, [])
    assert "No session has ended yet" in text(place, capsys)


def test_a_session_that_was_killed_is_told_and_is_no_success(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(place, CUT)
    assert status(place, capsys)[:1] == (1,)
    assert "A session was stopped or killed after the newest restore point" in text(place, capsys)
    begin(place, OTHER)
    assert status(place, capsys)[1]["cut_off"] == [CUT.hex(), OTHER.hex()]
    assert "2 sessions were stopped or killed" in text(place, capsys)


def test_a_session_that_failed_was_not_cut_off(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    begin(place, ENDED, failed=ENDED)
    code, document = status(place, capsys)
    assert (code, document["cut_off"]) == (1, [])
    assert "the disk is full" in text(place, capsys)


def test_a_session_that_runs_is_neither_failed_nor_cut_off(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with StateDirectory.open(place.folder / "state") as state:
        state.begin_session(CUT)
        code, document = status(place, capsys)
    assert (code, document["cut_off"], document["running"] is not None) == (0, [], True)


def test_a_process_that_is_gone_does_not_run(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    begin(place, CUT)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (place.folder / "state" / "lock.pid").write_text(str(gone.pid))
    if sys.platform != "win32":
        assert status(place, capsys)[1]["running"] is None
    for damaged in ("", "x", "9" * 30):
        (place.folder / "state" / "lock.pid").write_text(damaged)
        assert status(place, capsys)[1]["running"] is None


def test_status_looks_at_neither_vault_nor_cache_nor_volumes_which_may_hang(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def noting(name: str, original: Any) -> Any:
        def look(path: Any, *arguments: Any, **more: Any) -> Any:
            looked.append(f"{name} {path}")
            return original(path, *arguments, **more)

        return look

    for name in ("stat", "lstat", "open", "scandir", "listdir", "readlink"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    assert status(place, capsys)[0] == 0
    assert [
        path for path in looked for hung in ("vault", "cache", "data.img") if str(place.folder / hung) in path
    ] == []
