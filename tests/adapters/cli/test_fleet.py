"""Reports of systems: left by every session, upload and verification, and read by `status --all` and `--system`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters.cli import fleet
from adapters.state.owed import owed
from engine.recovery.reports import STATES
from engine.reporting import KEPT
from tests.adapters.cli import hostile
from tests.adapters.cli.enrolled import Machine, taken_up
from tests.adapters.cli.recovery_site import Ran, Site, run
from tests.scenario.cheap import cheap_keys

SYSTEM_KEYS = {
    "system", "system_id", "state", "reported", "report_age_seconds", "where", "version", "newest_point",
    "newest_point_time", "newest_point_age_seconds", "last_success", "cache", "spool", "vault_check", "sessions",
    "warnings", "problems",
}  # fmt: skip
SESSION_KEYS = {
    "started", "seconds", "point", "route", "exit_code", "error", "problems", "problem_count", "read_bytes",
    "vault_bytes", "cache_bytes",
}  # fmt: skip


class Fleet:
    """Two machines with one vault and one cache."""

    def __init__(self, web: Machine, db: Machine, capsys: pytest.CaptureFixture[str]) -> None:
        self.web, self.db, self.capsys = web, db, capsys

    def run(self, machine: Machine, *arguments: str, secret: bool = False) -> Ran:
        given = ["--passphrase-file", str(machine.passphrase)] if secret else []
        return run(self.capsys, "--config", machine.config, *arguments, *given)

    def status(self, *arguments: str) -> tuple[Ran, dict[str, Any]]:
        """Return how `status --json` with the passphrase ended, and its systems by name."""
        ran = self.run(self.web, "status", *arguments, "--json", secret=True)
        return ran, {system["system"]: system for system in ran.document["systems"]}

    def reports(self, machine: Machine, store: Path | None = None) -> list[Path]:
        folder = (store or machine.vault) / "report" / machine.identity().system.hex()
        return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two enrolled machines that nobody changes."""
    shared = tmp_path_factory.mktemp("joined")
    with cheap_keys():
        for name in ("web-01", "db-02"):
            assert Machine(shared, name).init() == 0
    return shared


@pytest.fixture
def machines(joined: Path, tmp_path: Path, nothing_from_outside: None, capsys: pytest.CaptureFixture[str]) -> Fleet:
    web = taken_up(joined, tmp_path)
    db = Machine(tmp_path, "db-02")
    shutil.copytree(joined / "db-02" / "state", db.state)
    return Fleet(web, db, capsys)


def test_every_session_leaves_a_report_in_vault_and_cache(machines: Fleet) -> None:
    point = machines.run(machines.web, "backup", "--json").document["point"]
    (report,) = machines.reports(machines.web)
    (copy,) = machines.reports(machines.web, machines.web.cache)
    assert (copy.name, copy.read_bytes()) == (report.name, report.read_bytes())
    ran, found = machines.status("--all")
    assert (ran.code, ran.document["problems"], ran.document["exit_code"]) == (0, [], 0)
    web = found["web-01"]
    assert web["newest_point"] == point
    assert (web["state"], web["where"], web["problems"]) == ("gray", ["cache", "vault"], [])
    (session,) = web["sessions"]
    assert (session["point"], session["route"], session["exit_code"]) == (point, "VAULT", 0)
    assert web["last_success"] is not None


def test_a_system_that_never_reported_is_listed_and_a_failed_one_comes_first(machines: Fleet) -> None:
    assert machines.run(machines.db, "backup").code == 0
    shutil.rmtree(machines.db.vault / "report")
    shutil.rmtree(machines.db.cache / "report")
    (machines.web.folder / "volume.img").unlink()
    assert machines.run(machines.web, "backup").code == 1
    ran, found = machines.status("--all")
    assert ran.code == 0
    assert list(found) == ["web-01", "db-02"]
    assert (found["web-01"]["state"], found["db-02"]["state"]) == ("failed", "unknown")
    assert "volume.img" in found["web-01"]["sessions"][0]["error"]
    unknown = found["db-02"]
    assert unknown["newest_point"] is not None
    assert unknown["newest_point_age_seconds"] >= 0
    assert (unknown["cache"], unknown["reported"], unknown["sessions"]) == (None, None, [])
    table = machines.run(machines.web, "status", "--all", secret=True).out.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [["web-01", "failed"], ["db-02", "unknown"]]
    assert table[2].endswith("never")
    assert "it has left no report" in machines.run(machines.web, "status", "--system", "db-02", secret=True).out


def test_every_verification_leaves_a_report(machines: Fleet) -> None:
    machines.run(machines.web, "backup")
    assert machines.run(machines.web, "verify").code == 0
    assert len(machines.reports(machines.web)) == 2
    web = machines.status("--all")[1]["web-01"]
    assert web["state"] == "green"
    assert (web["cache"]["health"]["score"], web["cache"]["last_attempt"]["passed"]) == (100.0, True)
    shown = machines.run(machines.web, "status", "--system", web["system_id"], secret=True).out
    assert "    health: green, verified; 100 % present" in shown
    assert "  reported " in shown
    assert "Last sessions, newest first:\n" in shown


def test_every_trimming_leaves_a_report_with_what_room_the_cache_takes(machines: Fleet) -> None:
    (machines.web.folder / "volume.img").write_bytes(os.urandom(4096))
    machines.run(machines.web, "backup")
    machines.run(machines.web, "trim")
    assert len(machines.reports(machines.web)) == 2
    room = machines.status("--all")[1]["web-01"]["cache"]["room"]
    assert room["size_bytes"] > 0
    assert 0 < room["free_bytes"] < room["device_bytes"]
    assert room == machines.run(machines.web, "status", "--json").document["cache"]["room"]


def test_no_more_reports_are_kept_than_the_newest(machines: Fleet) -> None:
    for _ in range(KEPT + 2):
        machines.run(machines.web, "backup")
    assert len(machines.reports(machines.web)) == KEPT
    assert len(machines.reports(machines.web, machines.web.cache)) == KEPT
    assert len(machines.status("--all")[1]["web-01"]["sessions"]) == 10


def test_documents_have_the_keys_operations_names(machines: Fleet) -> None:
    machines.run(machines.web, "backup")
    machines.run(machines.web, "verify")
    assert machines.run(machines.web, "verify", "--vault").code == 0
    own = machines.run(machines.web, "status", "--json").document
    system = machines.status("--all")[1]["web-01"]
    assert system.keys() == SYSTEM_KEYS
    assert system["sessions"][0].keys() == SESSION_KEYS
    assert system["cache"].keys() | {"path"} == own["cache"].keys()
    assert system["vault_check"] == own["vault_check"]
    for key in ("health", "last_attempt", "last_completed", "last_passed", "next"):
        assert system["cache"][key].keys() == own["cache"][key].keys(), key
        assert system["cache"][key] == own["cache"][key], key
    operations = (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    for key in SYSTEM_KEYS | SESSION_KEYS:
        assert f"`{key}`" in operations, key
    for state in STATES:
        assert f"| {state} |" in operations, state


def test_what_came_back_for_older_points_is_told_of_other_systems_too(machines: Fleet) -> None:
    with machines.web.config.open("a") as settings:
        settings.write('heal = "points"\n')
    machines.run(machines.web, "backup")
    assert machines.run(machines.web, "verify").code == 0
    own = machines.run(machines.web, "status", "--json").document["cache"]["last_completed"]["points"]
    assert (own["completed"], own["points"], own["missing"], own["error"]) == (True, 1, 0, None)
    cache = machines.status("--all")[1]["web-01"]["cache"]
    assert cache["last_attempt"]["points"] == cache["last_completed"]["points"] == own
    shown = machines.run(machines.web, "status", "--system", "web-01", secret=True).out
    assert "    Older restore points: the cache lacks nothing of them\n" in shown


def test_every_state_has_a_colour() -> None:
    assert set(fleet._COLOURS) == set(STATES)


def test_ones_own_status_needs_no_passphrase_and_another_systems_does(machines: Fleet) -> None:
    machines.run(machines.web, "backup")
    machines.run(machines.db, "backup")
    own = machines.run(machines.web, "status", "--system", "web-01", "--json")
    assert (own.code, own.document["system"]) == (0, "web-01")
    assert own.document["vault"].startswith("file://")
    other = machines.run(machines.web, "status", "--system", "db-02", "--json")
    assert other.code == 2
    assert "a passphrase is needed" in other.err
    ran, found = machines.status("--system", "db-02")
    assert (ran.code, list(found)) == (0, ["db-02"])
    machines.web.give("another phrase altogether")
    assert machines.run(machines.web, "status", "--all", secret=True).code == 2


@pytest.mark.parametrize("place", ["vault", "cache"])
def test_with_a_place_named_nothing_but_the_passphrase_is_needed(machines: Fleet, place: str) -> None:
    machines.run(machines.web, "backup")
    machines.run(machines.db, "backup")
    where = machines.web.vault.as_uri() if place == "vault" else str(machines.web.cache)
    secret = ["--passphrase-file", str(machines.web.passphrase)]
    ran = run(machines.capsys, "status", f"--{place}", where, *secret, "--json")
    assert ran.code == 0
    assert {system["system"]: system["where"] for system in ran.document["systems"]} == {
        "web-01": [place], "db-02": [place],
    }  # fmt: skip
    one = run(machines.capsys, "status", f"--{place}", where, "--system", "web-01", *secret)
    assert one.code == 0
    assert one.out.startswith("System web-01 (")


def test_the_cache_tells_where_the_vault_is_away(machines: Fleet) -> None:
    machines.run(machines.web, "backup")
    machines.web.vault.rename(machines.web.shared / "elsewhere")
    ran, found = machines.status("--all")
    assert ran.code == 4
    assert found["web-01"]["where"] == ["cache"]
    assert any("is not used: " in problem for problem in ran.document["problems"])
    table = machines.run(machines.web, "status", "--all", secret=True)
    assert "Problems:\n  - vault " in table.out


def test_a_report_that_is_damaged_or_forged_is_named_and_the_others_are_read(machines: Fleet) -> None:
    machines.run(machines.db, "backup")
    machines.run(machines.web, "backup")
    machines.run(machines.web, "backup")
    older, newest = machines.reports(machines.web)
    newest.chmod(0o600)
    newest.write_bytes(machines.reports(machines.db)[0].read_bytes())
    shutil.rmtree(machines.web.cache / "report")
    ran, found = machines.status("--all")
    assert ran.code == 4
    assert newest.name in found["web-01"]["problems"][0]
    assert found["web-01"]["problems"] == ran.document["problems"]
    assert (len(found["web-01"]["sessions"]), found["db-02"]["problems"]) == (1, [])
    older.chmod(0o600)
    older.write_bytes(b"garbage")
    ran, found = machines.status("--all")
    assert (ran.code, found["web-01"]["state"], found["web-01"]["newest_point"] is not None) == (4, "unreadable", True)


def test_a_report_that_cannot_be_put_costs_a_session_nothing(machines: Fleet) -> None:
    for store in (machines.web.vault, machines.web.cache):
        (store / "report").write_bytes(b"no folder")
    ran = machines.run(machines.web, "backup", "--json")
    assert (ran.code, ran.document["problems"]) == (0, [])
    assert ran.err.count("report_not_put") == 2
    assert owed(machines.web.state)
    for store in (machines.web.vault, machines.web.cache):
        (store / "report").unlink()
    assert machines.run(machines.web, "backup").code == 0
    assert not owed(machines.web.state)


def test_systems_and_options_that_do_not_go_together_are_told(machines: Fleet) -> None:
    both = machines.run(machines.web, "status", "--all", "--system", "db-02")
    assert (both.code, "give either --system NAME or --all" in both.err) == (2, True)
    nobody = machines.run(machines.web, "status", "--system", "nobody", secret=True)
    assert (nobody.code, "there is no system 'nobody'; known are: db-02, web-01" in nobody.err) == (2, True)


@pytest.fixture
def spooling(machines: Fleet) -> Fleet:
    """Give the first machine a spool."""
    with machines.web.config.open("a") as file:
        file.write(f"[spool]\npath = '{machines.web.folder / 'spool'}'\nmax_size = '256 MiB'\n")
    assert machines.web.init() == 0
    return machines


def test_while_the_vault_is_away_the_cache_is_told_and_the_next_upload_tells_the_vault(spooling: Fleet) -> None:
    web = spooling.web
    spooling.run(web, "backup")
    away = web.shared / "elsewhere"
    web.vault.rename(away)
    assert spooling.run(web, "backup").code == 3
    assert spooling.run(web, "backup").code == 3
    assert owed(web.state)
    assert len(spooling.reports(web, away)) == 1
    ran, found = spooling.status("--all")
    assert (ran.code, found["web-01"]["state"], found["web-01"]["spool"]["points"]) == (4, "waiting", 2)
    away.rename(web.vault)
    assert spooling.run(web, "upload").code == 0
    assert not owed(web.state)
    assert len(spooling.reports(web)) == 2
    found = spooling.status("--all")[1]
    assert (found["web-01"]["where"], found["web-01"]["spool"]["points"]) == (["cache", "vault"], 0)
    assert [session["exit_code"] for session in found["web-01"]["sessions"]] == [3, 3, 0]


def test_an_upload_with_nothing_to_do_tells_the_vault_only_what_it_is_owed(spooling: Fleet) -> None:
    web = spooling.web
    spooling.run(web, "backup")
    away = web.shared / "elsewhere"
    web.vault.rename(away)
    assert spooling.run(web, "verify").code == 0
    assert owed(web.state)
    away.rename(web.vault)
    assert spooling.run(web, "upload").code == 0
    assert (owed(web.state), len(spooling.reports(web))) == (False, 2)
    assert spooling.status("--all")[1]["web-01"]["state"] == "green"
    assert spooling.run(web, "upload").code == 0
    assert len(spooling.reports(web)) == 2


def test_points_of_systems_without_any_report_are_told_by_their_names(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """What sessions of a version that wrote no reports left."""
    ran = run(capsys, "status", *site.detached, "--json")
    assert ran.code == 0
    found = {system["system"]: system for system in ran.document["systems"]}
    assert found["web-01"]["newest_point"] == str(site.points[-1])
    assert {system["state"] for system in found.values()} == {"unknown"}


def test_on_a_terminal_states_are_words_and_colours(machines: Fleet) -> None:
    machines.run(machines.web, "backup")
    machines.run(machines.web, "verify")
    code = (
        "from tests.scenario.cheap import cheap_keys; from adapters import main; import sys\n"
        "with cheap_keys(): main.run(sys.argv[1:])"
    )
    ours, theirs = os.openpty()
    subprocess.run(
        [sys.executable, "-c", code, "--config", str(machines.web.config), "status", "--all", "--passphrase-file",
         str(machines.web.passphrase)],
        stdin=subprocess.DEVNULL, stdout=theirs, cwd=hostile.ROOT, check=True, timeout=60,
        env={key: value for key, value in hostile.environment().items() if key != "NO_COLOR"},
    )  # fmt: skip
    os.close(theirs)
    table = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\x1b[32m\x1b[1mgreen" in table
    assert "\x1b[33m\x1b[1munknown" in table
