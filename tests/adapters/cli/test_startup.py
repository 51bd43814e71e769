"""What commands import, and read, before they answer: start-up time, held without a clock."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import xxhash

from adapters import main
from adapters.state.directory import StateDirectory
from engine.state import SessionRow
from tests.adapters.cli import hostile

# Runs the program as its script does, then writes what it has imported to the file that the first argument names.
LISTING = """
import sys
to = sys.argv.pop(1)
from adapters import main
code = main.run(sys.argv[1:])
with open(to, "w") as file:
    file.write("\\n".join(name for name, module in sys.modules.items() if module is not None))
sys.exit(code)
"""
LOOKED_AT = ("lz4", "numpy", "zstandard")  # what only those need that change state or read blocks
WORKING = ("adapters.compose", "aiofiles", "anyio._backends", "asyncio", "cryptography", "engine.vault", "structlog")
ROWS = 100_000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> hostile.Place:
    return hostile.enrol(tmp_path_factory.mktemp("enrolled"))


def imported(place: hostile.Place, *arguments: str) -> set[str]:
    """Run the program in a process of its own and return the modules it ended with."""
    to = place.folder / "modules"
    done = subprocess.run(
        [sys.executable, "-c", LISTING, str(to), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=hostile.ROOT, env=hostile.environment(), check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(to.read_text().split())


def among(modules: set[str], *unwanted: str) -> list[str]:
    return sorted(name for name in modules if any(name == root or name.startswith(f"{root}.") for root in unwanted))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["status", "--help"], ["completion", "bash"]])
def test_help_needs_neither_configuration_nor_state_nor_an_event_loop(
    place: hostile.Place, arguments: list[str]
) -> None:
    modules = imported(place, *arguments)
    assert "adapters.main" in modules
    assert among(modules, *LOOKED_AT, *WORKING, "adapters.config", "adapters.state", "msgspec", "rich", "sqlite3") == []


def test_status_looks_at_local_state_without_what_a_session_needs(place: hostile.Place) -> None:
    modules = imported(place, "--config", str(place.config), "status")
    assert "adapters.state.history" in modules
    assert among(modules, *LOOKED_AT, "aiofiles", "anyio._backends", "asyncio", "rich", "structlog") == []
    assert among(modules, "adapters.compose", "adapters.stores", "adapters.volumes", "engine.pipeline") == []


def test_a_spool_costs_backup_and_status_nothing_of_what_init_and_restore_need(
    place: hostile.Place, tmp_path: Path
) -> None:
    spooling = hostile.copy(place, tmp_path)
    spooling.configure("[cache]", "[spool]\npath = 'spool'\n[cache]")
    assert main.run(["--config", str(spooling.config), "init"]) == 0
    modules = imported(spooling, "--config", str(spooling.config), "status")
    assert among(modules, *LOOKED_AT, "anyio._backends", "asyncio", "engine.pipeline", "engine.spool") == []
    modules = imported(spooling, "--config", str(spooling.config), "backup")
    assert among(modules, "engine.recovery", "engine.vault.founding", "engine.vault.slots", "adapters.cli.init") == []


def test_points_needs_nothing_of_sessions_and_of_sealing_blocks(place: hostile.Place) -> None:
    modules = imported(place, "--config", str(place.config), "points")
    assert "engine.recovery.catalogue" in modules
    assert among(modules, "rich", "adapters.compose", "engine.pipeline.session", "engine.pipeline.producer") == []


def test_backup_needs_nothing_of_init_and_restore_and_draws_no_bars_where_nobody_looks(place: hostile.Place) -> None:
    modules = imported(place, "--config", str(place.config), "backup")
    assert "engine.pipeline.session" in modules
    assert among(modules, "rich", "numpy.ma", "numpy.random", "mnemonic", "zxcvbn", "engine.recovery") == []
    assert among(modules, "engine.vault.founding", "engine.vault.slots") == []
    assert among(modules, *(f"adapters.cli.{name}" for name in ("check_config", "init", "restore", "status"))) == []


def test_backup_needs_the_library_of_log_events_only_where_one_is_told(place: hostile.Place) -> None:
    assert among(imported(place, "--config", str(place.config), "backup", "--json"), "structlog") == []
    assert among(imported(place, "--config", str(place.config), "backup", "--json", "--verbose"), "structlog") != []


def test_status_reads_no_more_of_a_long_history_than_it_shows(
    place: hostile.Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = hostile.copy(place, tmp_path)
    fill_history(copied.folder / "state")
    steps = 0

    def counted(*arguments: Any, **more: Any) -> sqlite3.Connection:
        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        database: sqlite3.Connection = connect(*arguments, **more)
        database.set_progress_handler(step, 1)
        return database

    connect = sqlite3.connect
    monkeypatch.setattr("adapters.state.history.sqlite3.connect", counted)
    assert main.run(["--config", str(copied.config), "status", "--last", "20", "--json"]) == 0
    sessions = json.loads(capsys.readouterr().out)["sessions"]
    assert [session["session"] for session in sessions] == [f"{ROWS - 1 - number:032x}" for number in range(20)]
    assert 0 < steps < 1000


def fill_history(folder: Path) -> None:
    """Give a state directory a history longer than the program itself lets it grow."""
    with StateDirectory.open(folder) as state:
        state.history.last(1)  # makes the file
    database = sqlite3.connect(folder / "history.sqlite")
    with database:
        database.execute("DELETE FROM session")
        database.executemany(
            "INSERT INTO session (row, sum) VALUES (?, ?)",
            ((body, xxhash.xxh3_64_digest(body)) for body in map(row_body, range(ROWS))),
        )
    database.close()


def row_body(number: int) -> bytes:
    return msgspec.msgpack.encode(
        SessionRow(
            session=f"{number:032x}", started_ms=1, ended_ms=2, exit_code=0, point=None, route="VAULT",
            report='{"started":"2026-01-01T00:00:00.001Z","seconds":0.25}',
        )
    )  # fmt: skip
