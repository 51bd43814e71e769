"""Volumes of every kind, by the command line or by whole sessions: sizes, holes, bad sectors, hints, absent ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import pytest

from tests.adapters.disks import loop_device
from tests.scenario.baddisk import bad_disk
from tests.scenario.cheap import enrol
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Done, Machine, overwrite, random_volume
from tests.scenario.recover import Recoverer

MIB = 1 << 20
SIZE = 6 * MIB


def machine_with(
    root: Path, volumes: dict[str, Path], *, cache: bool = True, volume_extra: dict[str, str] | None = None
) -> Machine:
    machine = Machine(
        root / "m", root / "vault", root / "cache" if cache else None, volumes=volumes, volume_extra=volume_extra or {}
    )
    enrol(machine)
    return machine


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def test_volumes_of_any_size_share_a_point_and_may_grow_shrink_and_vanish_to_nothing(tmp_path: Path) -> None:
    sizes: dict[str, list[int]] = {
        "empty": [0, 0, 0, 0],
        "byte": [1, 0, 1, 2],
        "short": [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK - 1],
        "grows": [10, 3 * BLOCK + 5, 70 * BLOCK + 5, 200 * BLOCK],
        "shrinks": [200 * BLOCK + 9, 65 * BLOCK, 64 * BLOCK, 0],
        "wild": [130 * BLOCK + 1, 4097, 128 * BLOCK, 129 * BLOCK + 512],
    }
    paths = {name: tmp_path / f"{name}.img" for name in sizes}
    for name, path in paths.items():
        path.write_bytes(noise(len(name), sizes[name][0]))
    machine = machine_with(tmp_path, paths)
    kept: list[tuple[str, dict[str, bytes]]] = []
    for day in range(4):
        for name, path in paths.items():
            before, size = path.stat().st_size, sizes[name][day]
            with path.open("r+b") as out:
                out.truncate(size)
                if size > before and day % 2:  # the rest stays a hole
                    out.seek(before + (size - before) // 2)
                    out.write(noise(day, size - out.tell()))
        report = backup(machine)
        assert (report.exit_code, report.problems) == (0, [])
        assert {name: volume.bytes for name, volume in report.volumes.items()} == {n: s[day] for n, s in sizes.items()}
        kept.append((str(report.point), {name: path.read_bytes() for name, path in paths.items()}))
    (newest, *_) = machine.points()
    assert {volume["name"]: volume["bytes"] for volume in newest["volumes"]} == {n: s[-1] for n, s in sizes.items()}
    for only_cache in (False, True):
        recoverer = Recoverer.of(machine, only_cache=only_cache)
        for point, contents in kept[:: 3 if only_cache else 1]:
            for name, content in contents.items():
                assert recoverer.restored(point, name) == content, (point, name)


def test_a_sparse_tebibyte_costs_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as out:
        out.truncate((1 << 40) + 12345)
    machine = machine_with(tmp_path, {"data": path})
    blocks = [0, 1, 1 << 20, (1 << 24) - 1, 1 << 24]  # the last one is short
    for block in blocks[:4]:
        overwrite(path, block, noise(block, BLOCK))
    overwrite(path, blocks[4], noise(4, 12345))
    first = backup(machine).volumes["data"]
    assert (first.read_bytes, first.changed, first.vault_blocks) == (4 * BLOCK + 12345, 5, 5)
    second = backup(machine).volumes["data"]
    assert (second.read_bytes, second.changed, second.vault_blocks) == (4 * BLOCK + 12345, 0, 0)
    target = tmp_path / "restored.img"
    assert Recoverer.of(machine).restore_to("latest", "data", target).exit_code == 0
    assert target.stat().st_size == path.stat().st_size
    assert target.stat().st_blocks * 512 < 8 * MIB
    with path.open("rb") as left, target.open("rb") as right:
        for block in [*blocks, 2, 1 << 23]:
            left.seek(block * BLOCK)
            right.seek(block * BLOCK)
            assert left.read(BLOCK) == right.read(BLOCK), block


def disk_of(root: Path, content: bytes) -> Path:
    path = root / "content"
    path.write_bytes(content)
    return path


def zeroed(content: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    result = bytearray(content)
    for offset, length in ranges:
        result[offset : offset + length] = bytes(length)
    return bytes(result)


@pytest.mark.root
@pytest.mark.parametrize("through", ["file", "device"])
def test_a_read_error_fails_the_session_and_names_volume_offset_and_error(tmp_path: Path, through: str) -> None:
    content = noise(1, SIZE)
    image = disk_of(tmp_path, content)

    def attempt(bad: Sequence[tuple[int, int]], expect: int) -> Done:
        with bad_disk(tmp_path, image, bad) as disk:
            if through == "file":
                machine.volumes["data"] = disk
                return machine.run("backup", expect=expect)
            with loop_device(disk) as device:
                machine.volumes["data"] = device
                return machine.run("backup", expect=expect)

    machine = machine_with(tmp_path, {"data": image}, cache=False)
    first = attempt([], 0)
    overwrite(image, 3, b"changed")
    failed = attempt([(2 * MIB + 8192, 512)], 1)
    found = re.search(r"'data': reading (\d+) bytes at offset (\d+) failed: Input/output error", failed.stderr)
    assert found is not None, failed.stderr
    length, offset = map(int, found.groups())
    assert offset <= 2 * MIB + 8192 < offset + length
    assert offset >= 2 * MIB
    assert (failed.document["point"], failed.document["exit_code"]) == (None, 1)
    assert failed.document["error"] in failed.stderr
    assert [row["id"] for row in machine.points()] == [first.document["point"]]
    again = attempt([], 0)
    assert again.document["problems"] == []
    assert Recoverer.of(machine).restored() == image.read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("hinted", [False, True])
def test_skipped_ranges_are_told_everywhere_and_repaired_by_the_next_session(tmp_path: Path, hinted: bool) -> None:
    content = noise(2, SIZE)
    image, hints = disk_of(tmp_path, content), tmp_path / "hints"
    extra = 'on_read_error = "skip"' + (f'\nhints = "{hints}"' if hinted else "")
    machine = machine_with(tmp_path, {"data": tmp_path / "disk"}, volume_extra={"data": extra})
    write_hints(hints, "mon", None)
    with bad_disk(tmp_path, image, []):
        whole = backup(machine)
    assert whole.problems == []
    bad = [(MIB + 512, 512), (2 * MIB - 4096, 3 * BLOCK + 8192), (SIZE - 512, 512)]
    # What cannot be told from good is a part of 4 KiB.
    ranges = [(MIB, 4096), (2 * MIB - 4096, 3 * BLOCK + 8192), (SIZE - 4096, 4096)]
    write_hints(hints, "tue", "mon", *bad)
    with bad_disk(tmp_path, image, bad):
        done = machine.run("backup", expect=4)
    (problem,) = done.document["problems"]
    assert problem.startswith("volume 'data': ")
    assert all(f"{length} bytes at {offset}" in problem for offset, length in ranges)
    assert done.document["volumes"]["data"]["unreadable_bytes"] == sum(length for _, length in ranges)
    (newest, older) = machine.points()
    assert [tuple(row) for row in newest["volumes"][0]["unreadable"]] == ranges
    assert older["volumes"][0]["unreadable"] == []
    target = tmp_path / "out"
    restored = machine.restore("latest", "data", target, expect=4)
    for offset, length in ranges:
        assert any(f"{length} bytes at offset {offset}" in text for text in restored.document["problems"])
    assert target.read_bytes() == zeroed(content, ranges)
    # Nothing changed since, says whoever writes the hints: what was unreadable is looked at all the same.
    write_hints(hints, "wed", "tue")
    with bad_disk(tmp_path, image, bad[:1]):
        partly = backup(machine)
    assert (partly.exit_code, len(partly.problems)) == (4, 1)
    write_hints(hints, "thu", "wed")
    with bad_disk(tmp_path, image, []):
        repaired = backup(machine)
    assert (repaired.exit_code, repaired.problems) == (0, [])
    assert repaired.volumes["data"].compared == ("hints" if hinted else "all")
    assert not hinted or repaired.volumes["data"].candidates == 1
    assert machine.points()[0]["volumes"][0]["unreadable"] == []
    for point in (str(whole.point), "latest"):
        assert Recoverer.of(machine).restored(point) == content
    assert anyio.run(Recoverer.of(machine).restore, str(partly.point)).content == zeroed(content, ranges[:1])


def write_hints(path: Path, generation: str, since: str | None, *extents: tuple[int, int]) -> None:
    lines = [{"generation": generation, "since": since}, *({"offset": at, "length": length} for at, length in extents)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def hinted(tmp_path: Path) -> tuple[Machine, Path]:
    """Return a machine with a hinted volume of 40 blocks and one point of generation "mon", and its hints file."""
    hints = tmp_path / "hints"
    volume = tmp_path / "data.img"
    volume.write_bytes(noise(3, 40 * BLOCK))
    machine = machine_with(tmp_path, {"data": volume}, volume_extra={"data": f'hints = "{hints}"'})
    write_hints(hints, "mon", None)
    report = backup(machine)
    assert (report.problems, report.volumes["data"].compared) == ([], "all")
    return machine, hints


def test_right_hints_are_believed(hinted: tuple[Machine, Path]) -> None:
    machine, hints = hinted
    overwrite(machine.volumes["data"], 7, b"new")
    write_hints(hints, "tue", "mon", (7 * BLOCK, 3))
    report = backup(machine)
    volume = report.volumes["data"]
    assert (report.problems, volume.compared, volume.changed, volume.candidates) == ([], "hints", 1, 1)
    write_hints(hints, "wed", "tue")
    report = backup(machine)
    assert (report.problems, report.volumes["data"].candidates) == ([], 0)
    assert Recoverer.of(machine).restored() == machine.volumes["data"].read_bytes()


WRONG_HINTS: dict[str, Callable[[Path], object]] = {
    "another generation": lambda hints: write_hints(hints, "wed", "tue"),
    "beyond the volume": lambda hints: write_hints(hints, "tue", "mon", (40 * BLOCK - 1, 2)),
    "garbage": lambda hints: hints.write_bytes(b"\xff{"),
    "empty": lambda hints: hints.write_bytes(b""),
    "gone": lambda hints: hints.unlink(),
}


@pytest.mark.parametrize("wrong", WRONG_HINTS)
def test_wrong_hints_cost_a_full_comparison_and_are_told(hinted: tuple[Machine, Path], wrong: str) -> None:
    machine, hints = hinted
    overwrite(machine.volumes["data"], 7, b"new")
    WRONG_HINTS[wrong](hints)
    report = backup(machine)
    (problem,) = report.problems
    assert str(hints) in problem
    assert (report.exit_code, report.volumes["data"].compared, report.volumes["data"].changed) == (0, "all", 1)
    assert Recoverer.of(machine).restored() == machine.volumes["data"].read_bytes()


def test_a_change_outside_the_hints_that_the_sample_meets_is_saved_and_told(tmp_path: Path) -> None:
    # Of so small a volume the sample is all there is.
    hints, volume = tmp_path / "hints", tmp_path / "data.img"
    volume.write_bytes(noise(4, 9 * BLOCK))
    machine = machine_with(tmp_path, {"data": volume}, volume_extra={"data": f'hints = "{hints}"'})
    write_hints(hints, "mon", None)
    assert backup(machine).problems == []
    overwrite(volume, 2, b"told")
    overwrite(volume, 6, b"not told")
    write_hints(hints, "tue", "mon", (2 * BLOCK, BLOCK))
    report = backup(machine)
    (problem,) = report.problems
    assert "block 6 changed outside the hints" in problem
    assert (report.exit_code, report.volumes["data"].compared, report.volumes["data"].changed) == (0, "all", 2)
    write_hints(hints, "wed", "tue")
    report = backup(machine)
    assert (report.problems, report.volumes["data"].compared) == ([], "hints")
    assert Recoverer.of(machine).restored() == volume.read_bytes()


def test_full_trusts_neither_hints_nor_local_state(hinted: tuple[Machine, Path]) -> None:
    machine, hints = hinted
    overwrite(machine.volumes["data"], 7, b"new")
    write_hints(hints, "tue", "mon")
    report = backup(machine, full=True)
    volume = report.volumes["data"]
    assert (report.problems, volume.compared, volume.read_bytes) == ([], "all", 40 * BLOCK)
    assert (volume.vault_blocks, volume.cache_blocks) == (1, 1)
    assert Recoverer.of(machine).restored() == machine.volumes["data"].read_bytes()


def test_a_session_may_be_of_some_volumes_and_latest_is_the_newest_that_has_one(tmp_path: Path) -> None:
    paths = {name: random_volume(tmp_path / f"{name}.img", 10, seed) for seed, name in enumerate("abc")}
    machine = machine_with(tmp_path, paths)
    machine.backup()
    second = {name: path.read_bytes() for name, path in paths.items()}
    for path in paths.values():
        overwrite(path, 3, noise(5, BLOCK))
    report = machine.backup("--volume", "c", "--volume", "a", "--volume", "c")
    assert set(report["volumes"]) == {"a", "c"}
    target = tmp_path / "out"
    for name, path in paths.items():
        machine.restore("latest", name, target, "--overwrite")
        assert target.read_bytes() == (second["b"] if name == "b" else path.read_bytes())
    refused = machine.restore(report["point"], "b", tmp_path / "none", expect=2)
    assert "'b'" in refused.stderr
    assert not (tmp_path / "none").exists()
    # What changed in b meanwhile, and what did not, is known by its own map.
    whole = machine.backup()
    assert {name: volume["changed"] for name, volume in whole["volumes"].items()} == {"a": 0, "b": 1, "c": 0}
    unknown = machine.run("backup", "--volume", "d", expect=2)
    assert "'d'" in unknown.stderr
    assert "a, b, c" in unknown.stderr


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_path_that_is_no_volume_fails_the_session_by_name(tmp_path: Path, kind: str) -> None:
    good = random_volume(tmp_path / "good.img", 5)
    wrong = tmp_path / "wrong"
    machine = machine_with(tmp_path, {"good": good}, cache=False)
    first = machine.backup()
    machine.volumes["bad"] = wrong
    if kind == "folder":
        wrong.mkdir()
    done = machine.run("backup", expect=1)
    assert "'bad'" in done.stderr
    assert str(wrong) in done.stderr
    assert done.document["point"] is None
    assert [row["id"] for row in machine.points()] == [first["point"]]
    assert machine.backup("--volume", "good")["problems"] == []
