"""`forebay verify --vault` on real vaults: what is gone or damaged is found, put there again, or marked as a hole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.state.directory import StateDirectory
from engine.cache.pins import open_pins
from engine.names import PackName, PinName
from engine.pack import check_pack
from engine.vault.check import VaultCheck
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, in_memory, made, objects
from tests.scenario.halting import beside
from tests.scenario.machine import Done


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """A machine with three points; what the first two have differs from what is on the volumes."""
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("vault")) as root:
        machine = made(root / "template", forge)
        machine.backup()
        yield machine


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


def packs(machine: CrashMachine, kind: str = "data") -> list[Path]:
    """Return the vault's packs, oldest first: much of the first one is on no volume any more."""
    return sorted((machine.vault / kind / machine.owner).iterdir(), key=lambda path: path.stat().st_mtime_ns)


def named(machine: CrashMachine, pack: Path) -> PackName:
    name = PackName.parse(pack.relative_to(machine.vault).as_posix())
    assert name is not None
    return name


def verify(machine: CrashMachine, *arguments: str, expect: int | None = 0) -> Any:
    return machine.run("verify", "--vault", *arguments, expect=expect).document


def checks(machine: CrashMachine) -> list[VaultCheck]:
    with StateDirectory.open(machine.state, lock=False) as state:
        return list(state.history.vault_checks(bytes.fromhex(machine.vault_id), 10))


def stored(machine: CrashMachine) -> dict[str, bytes]:
    """Return what is in the vault but reports."""
    return {name: digest for name, digest in objects(machine.vault).items() if not name.startswith("report/")}


def states(machine: CrashMachine) -> dict[str, str]:
    return {row["id"]: row["state"] for row in machine.points()}


def without_cache(machine: CrashMachine) -> None:
    machine.cache = None


def restored(machine: CrashMachine, point: str, volume: str = "data", *arguments: str) -> Done:
    out = machine.root / "out"
    out.unlink(missing_ok=True)
    return machine.restore(point, volume, out, *arguments, expect=None)


def test_all_that_points_need_is_there_and_nothing_is_written(machine: CrashMachine) -> None:
    before = stored(machine)
    done = verify(machine)
    assert (done["completed"], done["passed"], done["points"], done["problems"]) == (True, True, 3, [])
    assert done["packs"] == len(packs(machine)) + len(packs(machine, "page"))
    assert done["bytes"] == sum(path.stat().st_size for kind in ("data", "page") for path in packs(machine, kind))
    assert (done["missing_packs"], done["read_packs"]) == (0, 0)
    assert stored(machine) == before
    assert [check.passed for check in checks(machine)] == [True]
    said = machine.run("status").document["vault_check"]
    assert (said["passed"], said["points"], said["packs"]) == (True, 3, done["packs"])
    done = verify(machine, "--read", "100%")
    assert (done["read_packs"], done["read_bytes"]) == (done["packs"], done["bytes"])
    assert stored(machine) == before


@pytest.mark.parametrize(("kind", "how"), [("data", "gone"), ("page", "cut")])
def test_what_is_gone_is_put_there_again_out_of_the_cache(machine: CrashMachine, kind: str, how: str) -> None:
    """Also what no volume has any more: points that were made before come back whole."""
    oldest = min(states(machine))
    assert restored(machine, oldest).code == 0
    content = (machine.root / "out").read_bytes()
    for pack in packs(machine, kind):
        pack.unlink() if how == "gone" else pack.write_bytes(pack.read_bytes()[:-1])
    done = verify(machine, expect=1)
    assert (done["completed"], done["passed"], done["incomplete"]) == (True, False, 0)
    assert done["missing_packs"] == done["new_packs"] > 0
    assert done["copied_packs"] + done["filled_blocks"] > 0
    assert any("is gone from the vault" in problem for problem in done["problems"])
    assert set(states(machine).values()) == {"ok"}
    done = verify(machine)
    assert (done["passed"], done["copied_packs"], done["filled_blocks"], done["problems"]) == (True, 0, 0, [])
    without_cache(machine)
    assert restored(machine, oldest).code == 0
    assert (machine.root / "out").read_bytes() == content


def test_what_nobody_has_is_a_hole_until_it_is_there_again(machine: CrashMachine) -> None:
    cache = machine.cache
    assert cache is not None
    points = states(machine)
    victim = packs(machine)[0]
    victim.unlink()
    without_cache(machine)
    done = verify(machine, expect=1)
    assert (done["missing_packs"], done["missing_bytes"]) == (1, named(machine, victim).size)
    assert 0 < done["incomplete"] <= 3
    assert done["holes"] > 0
    marked = {point for point, state in states(machine).items() if state == "incomplete"}
    assert len(marked) == done["incomplete"]
    assert all(any(point in problem for problem in done["problems"]) for point in marked)
    # The holes are what a restore cannot give, neither more nor less.
    for row in machine.points():
        volume = "data" if "data" in row["holes"] else "logs"
        assert restored(machine, row["id"], volume).document["holes"] == row["holes"].get(volume, [])
    notes = len(list((machine.vault / "note").rglob("*incomplete*")))
    assert verify(machine, expect=1)["new_packs"] == 0
    assert len(list((machine.vault / "note").rglob("*incomplete*"))) == notes, "what is said is not said again"
    # What is on the volumes still is sent again, though nothing has changed; the newest point is whole.
    report = machine.backup()
    assert sum(volume["vault_blocks"] for volume in report["volumes"].values()) > 0
    assert states(machine)[report["point"]] == "ok"
    assert restored(machine, report["point"]).code == 0
    verify(machine, expect=1)
    # The cache comes back: what only older points have is filled in from it, and they are whole again.
    machine.cache = cache
    done = verify(machine, expect=1)
    assert (done["incomplete"], done["mended"] > 0) == (0, True)
    assert set(states(machine).values()) == {"ok"}
    assert states(machine).keys() == {*points, report["point"]}
    assert verify(machine)["mended"] == 0
    without_cache(machine)
    assert all(restored(machine, point).code == 0 for point in [min(points), max(points)])


def test_damaged_packs_are_found_by_reading_and_their_records_lie_in_others_then(machine: CrashMachine) -> None:
    victims = [packs(machine)[0], packs(machine, "page")[0]]
    for victim in victims:
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    assert verify(machine)["damaged_packs"] == 0, "a listing does not tell"
    # Each has its turn before any is read again.
    done = verify(machine, "--read", "40", expect=None)
    for _ in range(2):
        if done["damaged_packs"] < 2:
            done = verify(machine, "--read", "40", expect=None)
    assert done["damaged_packs"] == 2
    assert done["damaged_bytes"] == sum(victim.stat().st_size for victim in victims)
    assert (done["incomplete"], done["exit_code"]) == (0, 1)
    done = verify(machine)
    assert (done["damaged_packs"], done["passed"]) == (2, True)
    without_cache(machine)
    for victim in victims:
        victim.unlink()
    assert restored(machine, min(states(machine))).code == 0
    report = machine.backup()
    assert verify(machine)["damaged_packs"] == 0
    assert restored(machine, report["point"]).code == 0


def test_a_damaged_pack_is_known_to_a_machine_that_lost_its_state(machine: CrashMachine) -> None:
    victim = packs(machine)[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    without_cache(machine)
    done = verify(machine, "--read", "100", expect=1)
    marked = {point for point, state in states(machine).items() if state == "incomplete"}
    assert marked
    # Of the damaged pack what the volumes have still is opened, and sealed anew.
    assert done["filled_blocks"] > 0
    identity = machine.state / "identity"
    kept = identity.read_bytes()
    shutil.rmtree(machine.state)
    machine.state.mkdir(mode=0o700)
    identity.write_bytes(kept)
    identity.chmod(0o600)
    verify(machine, expect=1)
    assert {point for point, state in states(machine).items() if state == "incomplete"} == marked


def test_killed_at_any_change_it_makes_the_next_one_gets_to_the_same(machine: CrashMachine) -> None:
    packs(machine)[0].unlink()
    packs(machine, "page")[0].unlink()
    fresh = machine.copy_to(machine.root.with_name("whole"))
    fresh.attempt("verify", "--vault", "--read", "30", expect=1)
    changes = fresh.changes
    assert changes > 10
    for kill_at in (changes // 4, changes // 2, changes - 2):
        fresh = machine.copy_to(machine.root.with_name("killed"))
        killed = fresh.attempt("verify", "--vault", "--read", "30", kill_at=kill_at, torn=kill_at % 2 == 0)
        assert killed.code in (KILLED, 1)
        assert verify(fresh, expect=None)["incomplete"] == 0
    assert verify(fresh)["passed"]
    without_cache(fresh)
    assert restored(fresh, min(states(fresh))).code == 0


def test_a_vault_that_is_away_or_refuses_is_an_attempt_and_no_result(machine: CrashMachine) -> None:
    machine.away()
    done = verify(machine, expect=1)
    assert not done["completed"]
    assert "vault" in done["error"]
    machine.back()
    assert [check.completed for check in checks(machine)] == [False]
    for wrong in (["--vault", "--deep"], ["--read", "5"], ["--vault", "--read", "101"], ["--vault", "--read", "much"]):
        assert machine.run("verify", *wrong, expect=2).code == 2


def test_a_root_that_does_not_open_is_told(machine: CrashMachine) -> None:
    root = min((machine.vault / "root" / machine.owner).iterdir())
    root.write_bytes(root.read_bytes()[:-1])
    done = verify(machine, expect=1)
    assert (done["points"], done["damaged_roots"]) == (2, 1)
    assert any(root.name in problem for problem in done["problems"])


def test_it_gives_way_to_a_session_and_goes_on(machine: CrashMachine) -> None:
    packs(machine)[0].unlink()
    with beside(machine, "verifying") as verifying, beside(machine, "session", forge=machine.forge) as session:
        verifying.start(["verify", "--vault"], Fault("link", f"{machine.vault}/data/"))
        verifying.reached()
        session.start(["backup"], Fault("open", f"{session.holder.state}/lock.wanted", after=True))
        session.reached()
        session.release()
        verifying.release()
        done, found = session.end(), verifying.end()
    assert done.code == 0, done.stderr
    assert found.document["completed"]
    assert found.document["incomplete"] == 0
    assert verify(machine)["passed"]


def test_pages_that_nobody_has_are_written_anew_by_the_next_session(machine: CrashMachine) -> None:
    without_cache(machine)
    for pack in packs(machine, "page"):
        pack.unlink()
    done = verify(machine, expect=1)
    assert (done["incomplete"], set(states(machine).values())) == (3, {"incomplete"})
    report = machine.backup()
    assert sum(volume["vault_blocks"] for volume in report["volumes"].values()) == 0
    assert restored(machine, report["point"]).code == 0
    assert states(machine)[report["point"]] == "ok"
    assert verify(machine, expect=1)["incomplete"] == 3
    assert machine.backup()["problems"] == []


def test_what_only_the_cache_has_is_pinned_there_until_the_vault_has_it_again(machine: CrashMachine) -> None:
    cache = machine.cache
    assert cache is not None
    # Blocks that went to the vault as deltas lie in other packs in the cache.
    victim = next(pack for pack in packs(machine) if not (cache / pack.relative_to(machine.vault)).exists())
    entries = check_pack(named(machine, victim), victim.read_bytes(), None, None)
    victim.unlink()
    killed = machine.attempt("verify", "--vault", fault=Fault("link", f"{machine.vault}/data/"))
    assert killed.code == KILLED
    found = [path for path in (cache / "pin" / machine.owner).iterdir() if path.is_file()]
    pins = [PinName.parse(path.relative_to(cache).as_posix()) for path in found]
    ids = {
        row.tobytes()
        for name, path in zip(pins, found, strict=True)
        if name is not None
        for row in open_pins(name, path.read_bytes(), None, None).ids
    }
    assert {row.tobytes() for row in entries.ids} <= ids
    assert verify(machine, expect=None)["filled_blocks"] > 0
    assert [path for path in (cache / "pin").rglob("*") if path.is_file()] == []
    assert verify(machine)["passed"]
