"""A cache that is away, goes away, is given up, replaced or switched off: what it costs, and how it is made whole."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.disks import tool
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, Aftermath, CrashMachine, Forge, in_memory, made, objects
from tests.scenario.machine import BLOCK, overwrite

ON_ERROR = [("warn", 0), ("error", 4), ("fail", 1)]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("away")) as root:
        yield made(root / "template", forge)


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


def cache_of(machine: CrashMachine, on_error: str = "warn") -> Path:
    assert machine.cache is not None
    machine.extra = {"cache": f'retries_max = 1\non_error = "{on_error}"'}
    return machine.cache


def sent(report: Any, lane: str) -> int:
    return sum(volume[f"{lane}_blocks"] for volume in report["volumes"].values())


def check_healed(machine: CrashMachine) -> None:
    """Run a session without any change on the volumes: the cache gets what it lacks, and then restores alone."""
    after = Aftermath(machine)
    report = machine.backup()
    assert report["problems"] == []
    assert report["cache"] == "ok"
    assert sent(report, "vault") == 0
    assert sent(report, "cache") > 0
    after.content("latest", "--only-cache")
    report = machine.backup()
    assert (report["problems"], sent(report, "cache"), sent(report, "vault")) == ([], 0, 0)


@pytest.mark.parametrize(("on_error", "code"), ON_ERROR)
@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_cache_that_is_away_at_the_start(machine: CrashMachine, left: str, on_error: str, code: int) -> None:
    cache = cache_of(machine, on_error)
    aside = cache.rename(cache.with_name("aside"))
    if left == "an empty folder":
        cache.mkdir()
    report = machine.backup(expect=code)
    sentence = report["error"] or report["problems"][0]
    assert str(cache) in sentence
    assert "mount its disk" in sentence
    assert (report["point"] is None) == (on_error == "fail")
    if left == "an empty folder":
        assert list(cache.iterdir()) == []
        cache.rmdir()
    assert not cache.exists()
    if on_error != "fail":
        Aftermath(machine).content("latest")
    aside.rename(cache)
    if on_error == "fail":
        machine.backup()
        Aftermath(machine).content("latest", "--only-cache")
    else:
        check_healed(machine)


@pytest.mark.root
@pytest.mark.parametrize(("on_error", "code"), ON_ERROR)
@pytest.mark.parametrize("when", ["data/", "page/", "index/", "root/"])
def test_a_cache_that_is_unmounted_in_mid_session(machine: CrashMachine, when: str, on_error: str, code: int) -> None:
    cache = cache_of(machine, on_error)
    disk = cache.rename(cache.with_name("disk"))
    cache.mkdir()
    try:
        tool("mount", "--bind", disk, cache)
        fault = Fault("link", f"{cache}/{when}", ["umount", "-l", str(cache)])
        done = machine.attempt("backup", fault=fault, expect=code)
        assert list(cache.iterdir()) == [], "nothing is written into the empty mount point"
        if on_error == "fail":
            assert "mount its disk" in done.document["error"]
        else:
            assert done.document["cache"] == "given up"
            assert any("mount its disk" in problem for problem in done.document["problems"])
        # What the cache's index and root are told is told after the vault's root: that point stands, and is named.
        assert (done.document["point"] is None) == (on_error == "fail" and when in ("data/", "page/"))
        if done.document["point"] is not None:
            Aftermath(machine).content(done.document["point"])
        tool("mount", "--bind", disk, cache)
        if done.document["point"] is None:
            machine.backup()
            Aftermath(machine).content("latest", "--only-cache")
        else:
            report = machine.backup()
            assert (report["problems"], report["cache"], sent(report, "vault")) == ([], "ok", 0)
            Aftermath(machine).content("latest", "--only-cache")
            assert sent(machine.backup(), "cache") == 0
    finally:
        with suppress(RuntimeError):
            tool("umount", cache)


@pytest.mark.root
@pytest.mark.parametrize("what", ["an empty disk", "another cache", "an old copy of it"])
def test_another_disk_that_comes_in_the_place_of_the_cache_gets_nothing(machine: CrashMachine, what: str) -> None:
    cache = cache_of(machine)
    disk = cache.rename(cache.with_name("disk"))
    other = cache.with_name("other")
    if what == "another cache":
        cache.mkdir()
        machine.init("--cache")
        cache.rename(other)
    elif what == "an old copy of it":
        shutil.copytree(disk, other)
    else:
        other.mkdir()
    cache.mkdir(exist_ok=True)
    if what == "another cache":
        # Adopted last, it is the one this system knows: the first one is "the other one" now.
        disk, other = other, disk
    before = objects(other)
    overwrite(machine.volumes["data"], 3, b"o" * BLOCK)
    try:
        tool("mount", "--bind", disk, cache)
        swap = (
            f"umount -l {shlex.quote(str(cache))} && mount --bind {shlex.quote(str(other))} {shlex.quote(str(cache))}"
        )
        fault = Fault("link", f"{cache}/data/", ["sh", "-c", swap])
        done = machine.attempt("backup", fault=fault).document
        if what != "an old copy of it":
            assert objects(other) == before
            assert done["cache"] == "given up"
            assert any(str(cache) in problem for problem in done["problems"])
        Aftermath(machine).content("latest")
        tool("umount", cache)
        tool("mount", "--bind", disk, cache)
        report = machine.backup()
        assert (report["problems"], report["cache"], sent(report, "vault")) == ([], "ok", 0)
        Aftermath(machine).content("latest", "--only-cache")
        assert sent(machine.backup(), "cache") == 0
    finally:
        with suppress(RuntimeError):
            tool("umount", cache)


def test_what_a_cache_missed_over_many_sessions_is_put_there(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    aside = cache.rename(cache.with_name("aside"))
    for day in range(1, 5):
        for block in range(day, 40, 7):
            overwrite(machine.volumes["data"], block, bytes([day]) * (BLOCK // 2) + bytes([block]) * (BLOCK // 2))
        machine.backup()
    aside.rename(cache)
    check_healed(machine)


@pytest.mark.parametrize("where", ["root/", "index/", "data/"])
def test_a_session_killed_after_the_cache_was_given_up(machine: CrashMachine, where: str) -> None:
    cache = cache_of(machine)
    aside = cache.rename(cache.with_name("aside"))
    fault = Fault("link", f"{machine.vault}/{where}", after=True)
    assert machine.attempt("backup", fault=fault).code == KILLED
    aside.rename(cache)
    report = machine.backup()
    assert report["problems"] == []
    Aftermath(machine).content("latest", "--only-cache")
    assert sent(machine.backup(), "cache") == 0


def test_a_cache_that_is_switched_off_for_a_while_gets_what_it_missed(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    before = objects(cache)
    machine.extra["cache"] = "enabled = false"
    for day in range(3):
        overwrite(machine.volumes["data"], day, bytes([day + 1]) * BLOCK)
        report = machine.backup()
        assert (report["cache"], report["problems"]) == (None, [])
    assert objects(cache) == before
    machine.extra = {}
    check_healed(machine)


def test_a_replaced_cache_is_filled_after_init_adopted_it(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    machine.backup()
    old = cache.rename(cache.with_name("old"))
    machine.init("--cache")
    check_healed(machine)
    # The old one comes back in its place: it is not the adopted one, and nothing is written there.
    cache.rename(cache.with_name("new"))
    old.rename(cache)
    before = objects(cache)
    overwrite(machine.volumes["data"], 3, b"o" * BLOCK)
    report = machine.backup()
    assert any("init --cache" in problem for problem in report["problems"]), report["problems"]
    assert objects(cache) == before
    machine.init("--cache")
    check_healed(machine)


def test_a_damaged_missing_block_bitmap_only_costs_a_comparison(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    aside = cache.rename(cache.with_name("aside"))
    machine.backup()
    aside.rename(cache)
    for path in machine.state.glob("volumes/*/missing"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    check_healed(machine)


def test_other_bytes_under_the_name_of_a_page_pack_do_not_keep_a_cache_from_being_used(machine: CrashMachine) -> None:
    """What a power cut leaves of packs that were not synced, and that nobody lists."""
    cache = cache_of(machine)
    aside = cache.rename(cache.with_name("aside"))
    machine.backup()
    aside.rename(cache)
    for path in [*(cache / "index").rglob("*"), *(machine.state / "index").rglob("*")]:
        if path.is_file():
            path.unlink()
    torn = [path for path in (cache / "page").rglob("*") if path.is_file()]
    for path in torn:
        path.write_bytes(bytes(path.stat().st_size))
    report = machine.backup()
    assert (report["problems"], report["cache"]) == ([], "ok")
    assert not any(any(path.read_bytes()) for path in torn)


def test_a_cache_without_its_folder_of_packs_gives_no_wrong_bytes(machine: CrashMachine) -> None:
    cache = cache_of(machine)
    machine.backup()
    shutil.rmtree(cache / "data")
    Aftermath(machine).content("latest")
    assert machine.backup()["problems"] == []
