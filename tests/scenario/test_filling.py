"""What a point in the spool needs and nobody has whole: salvaged, filled in, waited for; never lost without a word."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.names import PackName
from engine.pack import check_pack
from tests.scenario.crash_backlog import Backlog
from tests.scenario.crash_machine import CrashMachine, Forge, in_memory, made, objects
from tests.scenario.machine import BLOCK, Done

FIRST, COUNT = 20, 90  # the blocks that every point but the first wrote anew


@pytest.fixture(scope="module")
def template(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A point in the vault, which is there, and two in the spool; the second overwrote what the first had changed."""
    generator = random.Random(8)
    with in_memory(tmp_path_factory.mktemp("filling")) as root:
        machine = made(root / "template", forge, 0, spool=True, extra={"vault": "retries_max = 0"})
        backlog = Backlog(machine)
        backlog.keep(machine.backup()["point"])
        machine.away()
        for _ in range(2):
            before = objects(backlog.spool).keys()
            with machine.volumes["data"].open("r+b") as out:
                out.seek(FIRST * BLOCK)
                out.write(generator.randbytes(COUNT * BLOCK))
            point = machine.backup(expect=3)["point"]
            backlog.keep(point)
            backlog.packs[point] = {name for name in objects(backlog.spool).keys() - before if name.startswith("data/")}
        machine.back()
        yield backlog


@pytest.fixture
def backlog(template: Backlog, fast_path: Path) -> Backlog:
    return template.copy_to(fast_path / "work")


def damage_a_record(pack: Path) -> int:
    """Flip a bit in the second record of a pack; return how many records it has."""
    name = PackName.parse(f"data/{pack.parent.name}/{pack.name}")
    assert name is not None
    data = bytearray(pack.read_bytes())
    entries = check_pack(name, bytes(data), None, None)
    data[int(entries.offsets[1]) + 500] ^= 1
    pack.write_bytes(data)
    return len(entries.offsets)


def without_cache(machine: CrashMachine) -> None:
    assert machine.cache is not None
    shutil.rmtree(machine.cache)
    machine.cache = None


def hole_blocks(done: Done) -> dict[str, int]:
    """Return how many blocks each point that was published lacks."""
    return {
        each["point"]: sum(count for ranges in each["holes"].values() for _, count in ranges)
        for each in done.document["uploaded"]
    }


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_of_a_damaged_pack_in_the_spool_only_what_does_not_open_is_a_hole(backlog: Backlog, how: str) -> None:
    machine = backlog.machine
    without_cache(machine)
    first, second = sorted(backlog.spooled)
    pack = backlog.spool / max(backlog.packs[second])
    if how == "flipped":
        damage_a_record(pack)
    else:  # in the middle of its last record
        name = PackName.parse(max(backlog.packs[second]))
        assert name is not None
        entries = check_pack(name, pack.read_bytes(), None, None)
        pack.write_bytes(pack.read_bytes()[: int(entries.offsets[-1]) + 700])
    done = machine.run("upload", expect=1)
    assert hole_blocks(done) == {first: 0, second: 1}
    assert any("is published incomplete" in problem for problem in done.document["problems"])
    assert not any("is gone from the vault" in problem for problem in done.document["problems"]) or how == "cut"
    assert backlog.in_spool() == []
    backlog.restore(first)
    target = machine.root / "restored"
    restored = machine.restore(second, "data", target, expect=1)
    (((hole, count),),) = (restored.document["holes"],)
    assert count == 1
    content = bytearray(backlog.contents[second]["data"])
    content[hole * BLOCK : (hole + 1) * BLOCK] = bytes(BLOCK)
    assert target.read_bytes() == bytes(content)
    # What is lost is still on the volume: the next point has it.
    report = machine.backup()
    assert report["volumes"]["data"]["vault_blocks"] == 1
    backlog.contents[report["point"]] = backlog.contents[second]
    backlog.restore(report["point"])


def test_of_a_damaged_pack_nothing_is_passed_on_that_nobody_can_open(backlog: Backlog) -> None:
    """The keys of overwritten blocks are gone from this machine: whether their records are whole, it cannot tell."""
    machine = backlog.machine
    without_cache(machine)
    first, second = sorted(backlog.spooled)
    records = damage_a_record(backlog.spool / max(backlog.packs[first]))
    assert hole_blocks(machine.run("upload", expect=1)) == {first: records, second: 0}
    backlog.restore(second)
    report = machine.backup()
    assert report["volumes"]["data"]["vault_blocks"] == 0
    backlog.contents[report["point"]] = backlog.contents[second]
    backlog.restore(report["point"])


def test_a_point_that_needs_the_cache_waits_for_it_and_is_overtaken_by_one_that_does_not(backlog: Backlog) -> None:
    machine = backlog.machine
    first, second = sorted(backlog.spooled)
    damage_a_record(backlog.spool / max(backlog.packs[first]))
    with backlog.without_cache():
        tried: list[dict[str, bytes]] = []
        for _ in range(2):
            done = machine.run("upload", expect=3)
            assert done.document["left"] == 1
            (sentence,) = (problem for problem in done.document["problems"] if "waits in the spool" in problem)
            assert first in sentence
            assert "enabled = false" in sentence
            tried.append(objects(machine.vault))
        assert tried[0] == tried[1], "what was tried in vain costs nothing a second time"
        listed = machine.run("points", expect=4).document["points"]
        assert {row["id"]: row["state"] for row in listed} == {
            max(backlog.contents.keys() - backlog.spooled): "ok",
            first: "spooled",
            second: "ok",
        }
        # A session goes into the spool, and waits there no longer than it must.
        report = machine.backup()
        assert (report["route"], report["backlog"]) == ("FALLBACK", 1)
        assert [each["point"] for each in report["uploaded"]] == [report["point"]]
        backlog.contents[report["point"]] = backlog.contents[second]
    done = machine.run("upload")
    assert hole_blocks(done) == {first: 0}
    assert backlog.in_spool() == []
    backlog.stands()


@pytest.mark.parametrize("kind", ["data", "page"])
def test_a_point_waits_for_the_cache_as_long_as_it_is_configured(backlog: Backlog, kind: str) -> None:
    machine = backlog.machine
    assert machine.cache is not None
    for pack in (machine.vault / kind / machine.owner).iterdir():
        pack.unlink()
    with backlog.without_cache():
        assert machine.run("upload", expect=3).document["left"] == 2
        assert {*backlog.spooled} <= backlog.listed()
        machine.extra["cache"] = "enabled = false"
        done = machine.run("upload", expect=1)
        assert all(hole_blocks(done).values())
        assert backlog.in_spool() == []
    # The cache has what the vault lacks: with it they come back whole all the same.
    machine.extra["cache"] = ""
    backlog.restore_all()


def test_key_slots_and_certificate_that_a_spool_lost_are_put_back_by_the_next_session_that_writes_there(
    backlog: Backlog,
) -> None:
    machine = backlog.machine
    machine.away()
    for kind in ("key", "cert"):
        (standing,) = (path for path in (backlog.spool / kind).rglob("*") if path.is_file())
        standing.unlink() if kind == "key" else standing.write_bytes(b"")
    assert machine.cache is not None
    shutil.rmtree(machine.cache)
    machine.cache = None
    report = machine.backup("--full", expect=3)
    assert not any("spool:" in problem for problem in report["problems"])
    out = machine.root / "out"
    out.unlink(missing_ok=True)
    machine.restore(report["point"], "data", out, "--spool", str(backlog.spool), "--system", "web-01")
    assert out.read_bytes() == machine.volumes["data"].read_bytes()


def test_a_damaged_root_in_the_spool_is_told_and_does_not_count_as_waiting(backlog: Backlog) -> None:
    machine = backlog.machine
    first, second = sorted(backlog.spooled)
    root = next(path for path in (backlog.spool / "root").rglob("*") if path.name == first)
    root.write_bytes(root.read_bytes()[:-7])
    without_cache(machine)
    assert {row["id"]: row["state"] for row in machine.points()}[first] == "damaged"
    refused = machine.restore(first, "data", machine.root / "out", expect=1)
    assert first in refused.stderr
    assert not (machine.root / "out").exists()
    assert machine.run("status").document["spool"]["points"] == 2
    backlog.restore(second)
    report = machine.backup(expect=1)
    assert report["backlog"] == 0
    assert [each["point"] for each in report["uploaded"]] == [second, report["point"]]
    assert any(f"restore point {first} is lost" in problem for problem in report["problems"])
    backlog.keep(report["point"])
    del backlog.contents[first]
    assert backlog.in_spool() == []
    assert backlog.listed() == backlog.contents.keys()
    backlog.restore_all()
    assert machine.backup()["route"] == "VAULT"


def test_a_root_that_is_damaged_in_the_spool_is_uploaded_from_its_copy_in_the_cache(backlog: Backlog) -> None:
    first, _ = sorted(backlog.spooled)
    root = next(path for path in (backlog.spool / "root").rglob("*") if path.name == first)
    root.write_bytes(b"")
    backlog.upload_all()
    assert backlog.listed() == backlog.contents.keys()
    backlog.stands()
