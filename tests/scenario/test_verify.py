"""`forebay verify` on real caches: finds exactly what is missing, whatever cuts it off; the next session heals it."""

from __future__ import annotations

import json
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.state.directory import StateDirectory
from engine.bits import rows_of
from engine.block import LENGTH_MASK, ids_of
from engine.cache.attempt import Attempt
from engine.cache.checks import open_checks
from engine.cache.stamps import StampDetails, day_of, open_head
from engine.names import CheckedName, PackName, StampName
from engine.pack import check_pack
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, Aftermath, CrashMachine, Forge, fill, in_memory, made, store_id
from tests.scenario.halting import beside, halted

EVERY_PAGE = 1 << 40


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("verify")) as root:
        machine = made(root / "template", forge)
        machine.backup()
        yield machine


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


def cache_of(machine: CrashMachine) -> Path:
    assert machine.cache is not None
    return machine.cache


def packs(machine: CrashMachine, kind: str = "data") -> list[Path]:
    return sorted(path for path in (cache_of(machine) / kind).rglob("*") if path.is_file())


def held(machine: CrashMachine) -> set[bytes]:
    """Return the ids of all records in whole packs of the cache."""
    found: set[bytes] = set()
    for path in packs(machine):
        name = PackName.parse(path.relative_to(cache_of(machine)).as_posix())
        if name is not None and path.stat().st_size == name.size:
            found.update(row.tobytes() for row in check_pack(name, path.read_bytes(), None, None).ids)
    return found


def maps(machine: CrashMachine) -> dict[str, tuple[set[int], set[int], int]]:
    """Return, for each volume: blocks not in the cache, blocks with a missing bit, and how many are not zero."""
    found = {}
    there = held(machine)
    with StateDirectory.open(machine.state, lock=False) as state:
        for name in machine.volumes:
            volume = state.volume(name)
            pages = volume.used_pages(0, EVERY_PAGE)
            entries = volume.read(pages)
            used = entries["ref"].any(axis=-1)
            numbers = (pages[:, None] * 64 + np.arange(64))[used].tolist()
            ids = [row.tobytes() for row in ids_of(entries["ref"][used])]
            absent = {number for number, ident in zip(numbers, ids, strict=True) if ident not in there}
            lacking = volume.missing_pages(0, EVERY_PAGE)
            bits = (lacking[:, None] * 64 + np.arange(64))[rows_of(volume.missing(lacking))].tolist()
            found[name] = (absent, set(bits), len(numbers))
            head = volume.head
            assert head is not None
            assert (head.missing_known, head.cache) == (True, bytes.fromhex(store_id(cache_of(machine))))
    return found


def sizes(machine: CrashMachine) -> tuple[int, int]:
    """Return how many different blocks of the volumes the cache has, and the bytes of their records."""
    lengths: dict[bytes, int] = {}
    for path in packs(machine):
        name = PackName.parse(path.relative_to(cache_of(machine)).as_posix())
        assert name is not None
        pack = check_pack(name, path.read_bytes(), None, None)
        found = zip(pack.ids, pack.lengths.tolist(), strict=True)
        lengths.update({ident.tobytes(): length & LENGTH_MASK for ident, length in found})
    used: set[bytes] = set()
    with StateDirectory.open(machine.state, lock=False) as state:
        for volume in map(state.volume, machine.volumes):
            entries = volume.read(volume.used_pages(0, EVERY_PAGE))
            used |= {row.tobytes() for row in ids_of(entries["ref"][entries["ref"].any(axis=-1)])}
    return len(used), sum(lengths[ident] for ident in used)


def attempts(machine: CrashMachine) -> list[Attempt]:
    with StateDirectory.open(machine.state, lock=False) as state:
        return list(state.history.attempts(bytes.fromhex(store_id(cache_of(machine))), 10))


def check_result(machine: CrashMachine, document: Any) -> int:
    """Check a result and all bitmaps against what is really in the cache; return how many blocks are missing."""
    found = maps(machine)
    assert all(absent == bits for absent, bits, _ in found.values())
    missing = sum(len(absent) for absent, _, _ in found.values())
    blocks = sum(count for _, _, count in found.values())
    assert (document["completed"], document["missing"], document["blocks"]) == (True, missing, blocks)
    assert document["passed"] == (missing * 100 <= blocks)
    return missing


def heal(machine: CrashMachine) -> None:
    """Run a session without any change on the volumes, then a verification that finds nothing missing."""
    report = machine.backup()
    assert (report["problems"], report["cache"]) == ([], "ok")
    assert sum(volume["vault_blocks"] for volume in report["volumes"].values()) == 0
    # The score is true at once; that it passed is another thing.
    last = next(attempt for attempt in attempts(machine) if attempt.completed)
    assert (last.missing_now, last.passed) == (0, False)
    document = machine.run("verify").document
    assert check_result(machine, document) == 0
    Aftermath(machine).content("latest", "--only-cache")
    assert sum(volume["cache_blocks"] for volume in machine.backup()["volumes"].values()) == 0


def test_a_whole_cache_passes_and_nothing_is_written_but_the_record_of_it(machine: CrashMachine) -> None:
    document = machine.run("verify").document
    assert check_result(machine, document) == 0
    assert document["exit_code"] == 0
    (attempt,) = attempts(machine)
    assert attempt.passed
    assert attempt.ended_ms is not None
    assert (attempt.unique, attempt.sealed_bytes) == sizes(machine)
    assert attempt.oldest_day == day_of(attempt.started_ms)
    assert sum(volume["cache_blocks"] for volume in machine.backup()["volumes"].values()) == 0


@pytest.mark.parametrize("how", ["gone", "cut", "a whole writer's folder"])
def test_what_is_lost_is_found_exactly_and_healed_by_the_next_session(machine: CrashMachine, how: str) -> None:
    victim = packs(machine)[0]
    if how == "gone":
        victim.unlink()
    elif how == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        shutil.rmtree(victim.parent)
    done = machine.run("verify", expect=1)
    assert check_result(machine, done.document) > 0
    (attempt,) = attempts(machine)
    assert (attempt.completed, attempt.passed) == (True, False)
    heal(machine)


def test_a_lost_index_fragment_is_lost_blocks(machine: CrashMachine) -> None:
    shutil.rmtree(cache_of(machine) / "index")
    document = machine.run("verify", expect=1).document
    assert document["missing"] == document["blocks"]
    heal(machine)


def test_lost_pages_are_brought_again_by_the_next_session(machine: CrashMachine) -> None:
    shutil.rmtree(cache_of(machine) / "page")
    assert check_result(machine, machine.run("verify").document) == 0
    assert machine.backup()["problems"] == []
    Aftermath(machine).content("latest", "--only-cache")
    # What is known is not found again.
    machine.run("verify")
    with StateDirectory.open(machine.state, lock=False) as state:
        for name in machine.volumes:
            head = state.volume(name).head
            assert head is not None
            assert head.pages_cached


def stamped(machine: CrashMachine) -> tuple[set[bytes], list[str]]:
    """Return the ids of all records that stamps say were seen, and the stamps' names."""
    cache = cache_of(machine)
    records: dict[int, list[bytes]] = {}
    for path in packs(machine):
        name = PackName.parse(path.relative_to(cache).as_posix())
        assert name is not None
        entries = check_pack(name, path.read_bytes(), None, None)
        records[name.key] = [entries.ids[at].tobytes() for at in entries.offsets.argsort()]
    seen: set[bytes] = set()
    names = sorted(path.relative_to(cache).as_posix() for path in (cache / "stamp").rglob("*") if path.is_file())
    for each in names:
        stamp = StampName.parse(each)
        assert stamp is not None
        data = (cache / each).read_bytes()
        head = open_head(stamp, data, None, None)
        details = StampDetails(head, data[head.details_at :])
        for row, pack in enumerate(head.packs.tolist()):
            days = details.seen(row).days.tolist()
            idents = records[pack]
            seen.update(
                ident for ident, day in zip(idents, days * len(idents) if len(days) == 1 else days, strict=True) if day
            )
    return seen, names


def current(machine: CrashMachine) -> set[bytes]:
    """Return the ids of all blocks of all volumes."""
    found: set[bytes] = set()
    with StateDirectory.open(machine.state, lock=False) as state:
        for name in machine.volumes:
            volume = state.volume(name)
            entries = volume.read(volume.used_pages(0, EVERY_PAGE))
            found.update(row.tobytes() for row in ids_of(entries["ref"][entries["ref"].any(axis=-1)]))
    return found


def test_what_was_seen_is_stamped_and_what_earlier_stamps_said_is_said_again(machine: CrashMachine) -> None:
    # Sessions stamp what they write and what they leave out.
    seen, names = stamped(machine)
    assert seen == held(machine)
    assert current(machine) < seen, "older points have blocks that no volume has any more"
    shutil.rmtree(cache_of(machine) / "stamp")
    machine.run("verify")
    seen, names = stamped(machine)
    assert seen == current(machine)
    assert len(names) == 1
    fill(machine, random.Random(5))
    machine.backup()
    assert len(stamped(machine)[1]) == 2
    machine.run("verify")
    again, after = stamped(machine)
    assert again == seen | current(machine)
    assert current(machine) < again
    # Older ones are gone once a newer one says all they said.
    assert len(after) == 1
    assert not set(after) & set(names)
    packs(machine)[0].unlink()
    machine.run("verify", expect=None)
    assert stamped(machine)[0] == again & held(machine)


def test_killed_at_any_change_it_makes_the_next_one_finds_the_same(machine: CrashMachine) -> None:
    packs(machine)[0].unlink()
    machine.attempt("verify", expect=1)
    changes = machine.changes
    assert changes > 10
    heal(machine)
    packs(machine)[0].unlink()
    for kill_at in range(1, changes + 1, max(1, changes // 10)):
        fresh = machine.copy_to(machine.root.with_name("killed"))
        assert fresh.attempt("verify", kill_at=kill_at, torn=kill_at % 2 == 0).code in (KILLED, 1)
        assert check_result(fresh, fresh.run("verify", expect=1).document) > 0
        last = attempts(fresh)[0]
        assert (last.completed, last.passed) == (True, False)
        assert stamped(fresh)[0] == held(fresh)


def in_the_first_volume(machine: CrashMachine) -> Fault:
    """Return the instant at which the bitmap of the first volume is written; the cache has lost everything."""
    for folder in (cache_of(machine) / "data").iterdir():
        shutil.rmtree(folder)
    return Fault("pwrite", f"{machine.state.resolve()}/volumes/")


def test_it_goes_on_where_a_session_wanted_the_state_directory(machine: CrashMachine) -> None:
    instant = in_the_first_volume(machine)
    blocks = sum(count for _, _, count in maps(machine).values())
    with beside(machine, "verifying") as verify, beside(machine, "session", forge=machine.forge) as session:
        verify.start(["verify"], instant)
        verify.reached()
        session.start(["backup"], Fault("open", f"{session.holder.state}/lock.wanted", after=True))
        session.reached()
        session.release()
        verify.release()
        done, found = session.end(), verify.end()
    assert done.code == 0, done.stderr
    assert done.document["problems"] == []
    (attempt,) = attempts(machine)
    assert found.document["completed"]
    assert found.document["blocks"] == found.document["missing"] == attempt.blocks == blocks
    # The first volume was compared before the session, which put what it lacked there, the second one after it.
    after = maps(machine)
    assert all(absent == bits for absent, bits, _ in after.values())
    assert sorted(len(bits) for _, bits, _ in after.values())[0] == 0
    assert sum(len(bits) for _, bits, _ in after.values()) > 0
    heal(machine)


def test_it_waits_for_the_end_of_a_session_and_of_an_upload(machine: CrashMachine) -> None:
    packs(machine)[0].unlink()
    with beside(machine, "verifying") as verify:
        with halted(machine) as ended:
            verify.start(["verify"], Fault("open", f"{verify.holder.state}/verify.lock", after=True))
            verify.reached()
            verify.release()
            # It has told nobody that it wants the lock.
            assert not (machine.state / "lock.wanted").exists()
        assert ended[0].code == 0
        found = verify.end()
    assert check_result(machine, found.document) > 0


def test_a_timer_begins_one_when_it_is_due_and_goes_on_with_one_that_was_cut_off(machine: CrashMachine) -> None:
    done = machine.run("verify", "--if-due").document
    if done.get("skipped") is None:  # a session with the cache has ended
        assert check_result(machine, done) == 0
    machine.run("verify")
    done = machine.run("verify", "--if-due").document
    assert (done["skipped"], done["exit_code"]) == ("not_due", 0)
    assert done["next"] is not None
    count = len(attempts(machine))
    killed = Fault("replace", f"{machine.state}/index/{store_id(cache_of(machine))}.verify", after=True)
    assert machine.attempt("verify", fault=killed).code == KILLED
    done = machine.run("verify", "--if-due").document
    assert check_result(machine, done) == 0
    assert len(attempts(machine)) == count + 1
    with beside(machine, "first") as first:
        first.start(["verify"], Fault("replace", f"{first.holder.state}/index/", after=True))
        first.reached()
        assert machine.run("verify", "--if-due").document["skipped"] == "running"
        first.release()
        assert first.end().code == 0


def test_what_verifications_did_and_were_skipped_for_stands_in_a_log_of_their_own(machine: CrashMachine) -> None:
    log = machine.state / "verification.log"
    assert not log.exists()
    machine.run("verify")
    skipped = machine.run("verify", "--if-due").document
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert {line["component"] for line in lines} == {"cache"}
    events = [line["event"] for line in lines]
    assert [event for event in events if event.startswith("verification_")] == [
        "verification_started", "verification_completed", "verification_skipped",
    ]  # fmt: skip
    assert (lines[-1]["reason"], lines[-1]["next"]) == ("not_due", skipped["next"])
    assert lines[-1]["due"] == lines[-1]["next"] > lines[-1]["timestamp"]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.unlink()
    log.mkdir()
    done = machine.run("verify").document
    assert (done["completed"], done["passed"]) == (True, True)
    assert done["problems"] == [f"the log {log} could not be written: Is a directory"]
    assert machine.run("verify", "--if-due").document["problems"] == done["problems"]


def test_a_second_verification_says_so(machine: CrashMachine) -> None:
    with beside(machine, "first") as first:
        first.start(["verify"], Fault("open", f"{first.holder.state}/index/", after=True))
        first.reached()
        done = machine.run("verify", expect=1)
        assert "another verification runs" in done.document["error"]
        first.release()
        assert first.end().code == 0
    assert [attempt.passed for attempt in attempts(machine)] == [True]


def test_a_cache_that_is_away_or_another_one_is_an_attempt_and_no_result(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    before = maps(machine)
    mine = store_id(cache)
    aside = cache.rename(cache.with_name("aside"))
    done = machine.run("verify", expect=1)
    assert "mount its disk" in done.document["error"]
    assert not done.document["completed"]
    shutil.copytree(aside, cache)
    (cache / "format").unlink()
    done = machine.run("verify", expect=1)
    assert not done.document["completed"]
    shutil.rmtree(cache)
    machine.init("--cache")
    # The new one has nothing: that is a result of its own, and the old one's stands apart.
    done = machine.run("verify", expect=1)
    assert done.document["missing"] == done.document["blocks"] == check_result(machine, done.document)
    cache.rename(cache.with_name("new"))
    aside.rename(cache)
    assert store_id(cache) == mine
    done = machine.run("verify", expect=1)
    assert "init --cache" in done.document["error"]
    machine.init("--cache")
    assert check_result(machine, machine.run("verify").document) == 0
    assert maps(machine) == before
    assert [each.completed for each in attempts(machine)] == [True, False, False]


def test_a_verification_cut_off_is_not_gone_on_with_another_cache(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    # The first volume is done, and the checkpoint says so, when it is killed on its way to the second.
    instant = in_the_first_volume(machine)
    wanted = Fault(instant.operation, instant.below, ["touch", str(machine.state / "lock.wanted")])
    killed = Fault("replace", f"{machine.state}/index/{store_id(cache)}.verify", count=2, after=True)
    assert machine.attempt("verify", faults=[wanted, killed]).code == KILLED
    old = cache.rename(cache.with_name("old"))
    machine.init("--cache")
    machine.backup()
    assert check_result(machine, machine.run("verify").document) == 0
    cache.rename(cache.with_name("new"))
    old.rename(cache)
    machine.init("--cache")
    assert check_result(machine, machine.run("verify", expect=1).document) > 0


def test_what_was_seen_before_a_verification_was_cut_off_is_stamped_at_its_end(machine: CrashMachine) -> None:
    for pack in packs(machine)[::2]:
        pack.unlink()
    shutil.rmtree(cache_of(machine) / "stamp")
    below = f"{machine.state}/index/{store_id(cache_of(machine))}"
    # The first volume is done, and the checkpoint says so, when it is killed on its way to the second.
    wanted = Fault("pwrite", f"{machine.state.resolve()}/volumes/", ["touch", str(machine.state / "lock.wanted")])
    killed = Fault("replace", f"{below}.verify", count=2, after=True)
    assert machine.attempt("verify", faults=[wanted, killed]).code == KILLED
    seen = Path(f"{below}.seen")
    noted = seen.read_bytes()
    assert len(noted) > 100
    damaged = noted[:-30] + b"x" + noted[-29:]
    # With what is noted it goes on; without, it begins anew. Either way all is stamped that is there.
    for content, count in ((noted, 1), (damaged, 2), (b"", 2)):
        fresh = machine.copy_to(machine.root.with_name(f"again{len(content)}{count}"))
        (fresh.state / seen.relative_to(machine.state)).write_bytes(content)
        assert check_result(fresh, fresh.run("verify", expect=1).document) > 0
        assert stamped(fresh)[0] == current(fresh) & held(fresh)
        assert len(attempts(fresh)) == count
        assert not (fresh.state / seen.relative_to(machine.state)).exists()
    # What it had found may be gone since: then that is compared once more.
    for pack in packs(machine):
        pack.unlink()
    document = machine.run("verify", expect=1).document
    assert check_result(machine, document) == document["blocks"]
    assert len(attempts(machine)) == 1


def test_packs_are_read_in_turn_and_a_damaged_one_is_set_aside_and_healed(machine: CrashMachine) -> None:
    machine.run("verify")
    whole = [*packs(machine), *packs(machine, "page")]
    victim = packs(machine)[1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    document = machine.run("verify").document
    assert (document["missing"], document["deep_packs"]) == (0, 0)
    done = machine.run("verify", "--deep", expect=None).document
    read = done["deep_packs"]
    while not done["damaged_packs"] and read < len(whole):
        done = machine.run("verify", "--deep", expect=None).document
        read += done["deep_packs"]
    # Each has its turn before any is read again: what completes the turn may begin the next one.
    assert read - done["deep_packs"] < len(whole)
    assert (done["damaged_packs"], done["damaged_bytes"]) == (1, victim.stat().st_size)
    assert any(victim.name in problem for problem in done["problems"])
    assert 0 < done["missing"] < done["blocks"]
    assert attempts(machine)[0].damaged_packs == 1
    # It stays set aside, also for who does not read.
    assert machine.run("verify", expect=None).document["missing"] == done["missing"]
    report = machine.backup()
    assert report["problems"] == []
    assert sum(volume["cache_blocks"] for volume in report["volumes"].values()) > 0
    assert machine.run("verify").document["missing"] == 0
    victim.unlink()
    Aftermath(machine).content("latest", "--only-cache")
    for _ in range(3):
        assert machine.run("verify", "--deep").document["damaged_packs"] == 0
    # What was read is told to the others, in one object.
    (told,) = (path for path in (cache_of(machine) / "checked").rglob("*") if path.is_file())
    name = CheckedName.parse(told.relative_to(cache_of(machine)).as_posix())
    assert name is not None
    checked = open_checks(name, told.read_bytes(), None, None)
    assert len(checked.keys) > 0
    damaged = PackName.parse(victim.relative_to(cache_of(machine)).as_posix())
    assert damaged is not None
    assert damaged.key not in checked.keys.tolist()


def test_without_a_cache_or_a_point_it_says_what_to_do(machine: CrashMachine) -> None:
    machine.extra = {"cache": "enabled = false"}
    assert "switched off" in machine.run("verify", expect=2).document["error"]
    timer = machine.run("verify", "--deep", "--if-due").document
    assert (timer["completed"], timer["skipped"], timer["exit_code"]) == (False, "disabled", 0)
    cache, machine.cache = machine.cache, None
    assert "no [cache] table" in machine.run("verify", "--deep", expect=2).document["error"]
    assert machine.run("verify", "--deep", "--if-due").document["skipped"] == "no_cache"
    machine.extra, machine.cache = {}, cache
    shutil.rmtree(machine.state / "volumes")
    done = machine.run("verify", expect=1)
    assert "forebay backup" in done.document["error"]


def test_a_damaged_map_is_an_attempt_and_the_next_session_puts_it_right(machine: CrashMachine) -> None:
    for path in (machine.state / "volumes").glob("*/map.sums"):
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)
    done = machine.run("verify", expect=1)
    assert "is damaged" in done.document["error"]
    assert [each.completed for each in attempts(machine)] == [False]
    assert machine.backup()["exit_code"] == 0
    assert check_result(machine, machine.run("verify").document) == 0


def test_how_much_is_read_is_configured(machine: CrashMachine) -> None:
    whole = len([*packs(machine), *packs(machine, "page")])
    for share, read in (("100%", whole), ("0%", 0)):
        machine.extra = {**machine.extra, "cache": f"verify.read = '{share}'"}
        assert machine.run("verify", "--deep").document["deep_packs"] == read
