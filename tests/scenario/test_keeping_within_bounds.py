"""Trimming on real caches: a device of its own keeps the room it is to keep, whatever cuts it off, whoever trims."""

from __future__ import annotations

import json
import os
import random
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.names import PackName
from engine.pack import check_pack
from tests.adapters.disks import tmpfs, tool
from tests.samba import Samba
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, in_memory
from tests.scenario.halting import beside
from tests.scenario.machine import BLOCK, Machine, overwrite, random_volume
from tests.scenario.past import lived, record_of
from tests.scenario.smbmachine import share_machine

pytestmark = pytest.mark.root
MIB = 1 << 20
BLOCKS = 200
KILLS = 6


def cache_of(machine: Machine) -> Path:
    assert machine.cache is not None
    return machine.cache


def packs(machine: CrashMachine) -> dict[str, int]:
    """Return names and sizes of the packs of blocks in the cache."""
    root = cache_of(machine)
    files = sorted(path for path in (root / "data").rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}


def held(machine: CrashMachine) -> set[bytes]:
    """Return the ids of all blocks in the cache."""
    found: set[bytes] = set()
    for text in packs(machine):
        name = PackName.parse(text)
        assert name is not None
        found.update(row.tobytes() for row in check_pack(name, (cache_of(machine) / text).read_bytes(), None, None).ids)
    return found


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """Yield a machine whose cache holds 200 blocks of a month ago, of which 130 have changed since, and those."""
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("trim")) as root:
        volume = random_volume(root / "data.img", BLOCKS, seed=1)
        machine = CrashMachine(
            root / "machine", root / "vault", root / "cache", volumes={"data": volume}, forge=forge,
            extra={"cache": 'trim = { min_free = "1%" }'},
        )  # fmt: skip
        machine.init()
        lived(machine, 30)
        generator = random.Random(7)
        for block in range(BLOCKS):
            if block % 20 < 13:  # some of every pack, in whatever order they were packed
                overwrite(volume, block, generator.randbytes(BLOCK))
        lived(machine, 3)
        lived(machine, 1)
        yield machine


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


@contextmanager
def on_a_device(machine: Machine, free_bytes: int, min_free: int) -> Iterator[Path]:
    """Put the cache on a device of its own with so much free; `min_free` percent are to be."""
    cache = cache_of(machine)
    aside = cache.with_name("cache-aside")
    cache.rename(aside)
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in aside.rglob("*"))
    with tmpfs(cache, used + free_bytes):
        shutil.copystat(aside, cache)
        shutil.copytree(aside, cache, dirs_exist_ok=True)
        for path in (cache, *cache.rglob("*")):
            owner = aside.joinpath(path.relative_to(cache)).stat()
            os.chown(path, owner.st_uid, owner.st_gid)
        others = [line for line in machine.extra["cache"].splitlines() if not line.startswith("trim")]
        machine.extra["cache"] = "\n".join([*others, f'trim = {{ min_free = "{min_free}%" }}'])
        try:
            yield cache
        finally:
            tool("umount", "-l", cache)  # a server may have it open still
    shutil.rmtree(aside)


def bounded(machine: CrashMachine) -> Any:
    """Return a device of some 20 MiB, of which 4 are free and two fifths are to be."""
    return on_a_device(machine, 4 * MIB, 40)


def restored(machine: CrashMachine, *arguments: str) -> bytes:
    target = machine.root / "restored"
    machine.restore("latest", "data", target, *arguments, "--overwrite")
    return target.read_bytes()


def test_a_device_keeps_the_room_it_is_to_keep_and_what_is_in_use_stays(machine: CrashMachine) -> None:
    with bounded(machine) as cache:
        before = packs(machine)
        room = shutil.disk_usage(cache)
        assert room.free < 0.4 * room.total
        document = machine.run("trim").document
        room = shutil.disk_usage(cache)
        assert room.free >= 0.4 * room.total
        assert (document["met"], document["completed"], document["refused"], document["problems"]) == (
            True,
            True,
            None,
            [],
        )
        assert document["deleted"] + document["rewritten"] > 0
        assert (document["device_bytes"], document["lacking_bytes"]) == (room.total, 0)
        assert abs(document["free_bytes"] - room.free) < MIB
        assert sum(packs(machine).values()) < sum(before.values())
        assert restored(machine, "--only-cache") == machine.volumes["data"].read_bytes()
        again = machine.run("trim").document
        assert (again["met"], again["deleted"], again["rewritten"], again["looked"]) == (True, 0, 0, False)
        assert machine.run("verify").document["missing"] == 0
        assert machine.backup()["volumes"]["data"]["cache_blocks"] == 0


def test_every_session_trims_at_its_end(machine: CrashMachine) -> None:
    with bounded(machine) as cache:
        overwrite(machine.volumes["data"], 5, b"n" * BLOCK)
        report = machine.backup()
        room = shutil.disk_usage(cache)
        assert room.free >= 0.4 * room.total
        assert (report["exit_code"], report["problems"], report["trim"]["met"]) == (0, [], True)
        assert report["trim"]["freed_bytes"] > 0
        record = record_of(machine)
        assert record is not None
        assert (record.report.met, record.report.size_bytes) == (True, report["trim"]["size_bytes"])
        assert record.looked == record.report
        assert restored(machine, "--only-cache") == machine.volumes["data"].read_bytes()


def test_what_protection_keeps_from_being_met_is_said_and_noted_and_fails_no_session(machine: CrashMachine) -> None:
    with on_a_device(machine, 4 * MIB, 95) as cache:
        report = machine.backup()
        told = report["trim"]
        assert (report["exit_code"], told["met"], told["refused"]) == (0, False, None)
        assert told["lacking_bytes"] > 0
        assert told["protected_bytes"] > 130 * BLOCK
        document = machine.run("trim", expect=4).document
        assert (document["met"], document["completed"], document["exit_code"]) == (False, True, 4)
        record = record_of(machine)
        assert record is not None
        assert record.report.lacking_bytes == document["lacking_bytes"]
        assert record.grown[-1] == (record.report.day, record.report.size_bytes)
        room = shutil.disk_usage(cache)
        assert abs(0.95 * room.total - room.free - document["lacking_bytes"]) < MIB
        assert restored(machine, "--only-cache") == machine.volumes["data"].read_bytes()
        said = machine.attempt("trim").stderr
        assert "trim_threshold_not_met" in said


def test_killed_at_any_change_it_makes_nothing_is_lost_and_the_next_one_ends_it(machine: CrashMachine) -> None:
    whole = machine.copy_to(machine.root.parent / "whole")
    with bounded(whole):
        old = packs(whole).keys()
        document = whole.run("trim").document
        changes, left = whole.changes, held(whole)
        made = sum(size for name, size in packs(whole).items() if name not in old)
    assert document["rewritten"] > 0
    assert changes > KILLS
    for kill_at in range(1, changes + 1, -(-changes // KILLS)):
        fresh = machine.copy_to(machine.root.parent / "killed")
        with bounded(fresh) as cache:
            assert fresh.attempt("trim", kill_at=kill_at, torn=kill_at % 2 == 0).code in (KILLED, 0, 1)
            assert held(fresh) >= left
            # What the killed one had kept of packs that it did not get to delete lies there twice, until it is old.
            assert fresh.attempt("trim", expect=None).document["lacking_bytes"] <= made
            # A point is restored from what is left, by whoever has a cache only.
            assert restored(fresh, "--only-cache") == fresh.volumes["data"].read_bytes()
            room = shutil.disk_usage(cache)
            assert room.free >= 0.4 * room.total - made
            assert fresh.run("verify").document["missing"] == 0


def test_it_gives_way_to_a_session_and_begins_again(machine: CrashMachine) -> None:
    with bounded(machine) as cache, beside(machine, "trimming") as trimming, beside(machine, "session") as session:
        trimming.start(["trim"], Fault("link", f"{cache}/gc/"))
        trimming.reached()
        session.start(["backup"], Fault("open", f"{session.holder.state}/lock.wanted", after=True))
        session.reached()
        session.release()
        trimming.release()
        done, ended = session.end(), trimming.end()
        assert (done.code, ended.code) == (0, 0)
        assert done.document["problems"] == []
        assert done.document["trim"]["met"]
        assert ended.document["met"]
        assert restored(machine, "--only-cache") == machine.volumes["data"].read_bytes()


@pytest.mark.parametrize("instant", [("link", "gc/"), ("unlink", "data/")])
def test_two_systems_trim_one_cache_at_once(machine: CrashMachine, instant: tuple[str, str]) -> None:
    other = CrashMachine(
        machine.root.parent / "other", machine.vault, machine.cache, name="db-02",
        volumes={"data": random_volume(machine.root.parent / "other.img", 20, seed=3)}, forge=machine.forge,
        extra=machine.extra,
    )  # fmt: skip
    other.init()
    lived(other, 2)
    lived(other, 0)
    with bounded(machine) as cache, beside(machine, "first") as first:
        operation, prefix = instant
        before = packs(machine)
        first.start(["trim"], Fault(operation, f"{cache}/{prefix}"))
        first.reached()
        # What the first one has kept lies there already, and what it was taken from still does.
        assert other.attempt("trim").code in (0, 4)
        first.release()
        assert first.end().code in (0, 4)
        assert sum(packs(machine).values()) < sum(before.values())
        for each in (machine, other):
            assert restored(each, "--only-cache") == each.volumes["data"].read_bytes()
            assert each.run("verify").document["missing"] == 0


def test_without_a_cache_it_says_so(machine: CrashMachine) -> None:
    machine.extra["cache"] = "enabled = false"
    assert "the cache is switched off" in machine.run("trim", expect=2).stderr
    machine.cache = None
    assert "has no [cache] table: there is nothing to trim" in machine.run("trim", expect=2).stderr


def test_a_cache_that_is_away_is_said_in_a_sentence(machine: CrashMachine) -> None:
    machine.extra["cache"] = "retries_max = 0"
    cache_of(machine).rename(cache_of(machine).with_name("elsewhere"))
    done = machine.run("trim", expect=1)
    assert "mount its disk" in done.document["error"]
    assert json.loads(done.stdout)["completed"] is False


@pytest.mark.services
def test_a_cache_in_a_share_keeps_the_room_its_server_tells_of(samba: Samba, tmp_path: Path) -> None:
    volume = random_volume(tmp_path / "data.img", 60, seed=5)
    machine = share_machine(tmp_path / "machine", samba, uuid.uuid4().hex, volume)
    machine.init()
    lived(machine, 30)
    generator = random.Random(9)
    for block in range(40):
        overwrite(volume, block, generator.randbytes(BLOCK))
    lived(machine, 3)
    lived(machine, 1)
    with on_a_device(machine, MIB, 40) as cache:
        document = machine.run("trim").document
        room = shutil.disk_usage(cache)
        assert (document["met"], document["device_bytes"], document["problems"]) == (True, room.total, [])
        assert room.free >= 0.4 * room.total
        assert document["freed_bytes"] > MIB
        machine.restore("latest", "data", tmp_path / "restored", "--only-cache")
        assert (tmp_path / "restored").read_bytes() == volume.read_bytes()
        assert machine.backup()["trim"]["met"]
