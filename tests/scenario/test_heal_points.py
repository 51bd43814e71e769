"""`heal = "points"` on real stores: what only older restore points need comes back into the cache, from the vault."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from adapters.compose import build_setup
from adapters.config import load_config
from adapters.lifetime import lifetime
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.block import DELTA_FLAG
from engine.cache import pointneeds
from engine.cache.attempt import PointsHealed
from engine.cache.healing import Healing, HealSetup
from engine.cache.stamps import day_of
from engine.names import PackName
from engine.pack import check_pack
from engine.page import BLOCKS_MAX, IdLeaf
from engine.ports import Room
from engine.runs import RunReader
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, in_memory, made
from tests.scenario.halting import beside
from tests.scenario.machine import BLOCK, overwrite, random_volume
from tests.scenario.past import lived, trim
from tests.scenario.past import verify as past_verify

POINTS = {"cache": 'heal = "points"\ntrim.min_free = "1%"'}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """A machine with three points, parts of which lie in the vault as deltas; the volumes are as in the newest."""
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("heal")) as root:
        machine = made(root / "template", forge)
        machine.backup()
        yield machine


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        copy = template.copy_to(path / "work")
        copy.extra = dict(POINTS)
        yield copy


def cache_of(machine: CrashMachine) -> Path:
    assert machine.cache is not None
    return machine.cache


def packs(store: Path, kind: str = "data") -> list[Path]:
    return sorted(
        (path for path in (store / kind).rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns
    )


def lose(machine: CrashMachine, kind: str = "data") -> None:
    """Take all packs of a kind out of the cache."""
    for folder in (cache_of(machine) / kind).iterdir():
        shutil.rmtree(folder)


def without_what_is_old(machine: CrashMachine) -> None:
    """Have the cache lose all blocks, and get back what the volumes have."""
    machine.extra = {"cache": 'trim.min_free = "1%"'}
    lose(machine)
    assert verify(machine, expect=1)["points"] is None
    assert machine.backup()["problems"] == []
    machine.extra = dict(POINTS)


def verify(machine: CrashMachine, *arguments: str, expect: int | None = 0) -> Any:
    return machine.run("verify", *arguments, expect=expect).document


def contents(machine: CrashMachine, *arguments: str) -> dict[str, bytes | None]:
    """Return what each point has of the larger volume, None: not all of it can be had."""
    found: dict[str, bytes | None] = {}
    out = machine.root / "out"
    for row in machine.points():
        out.unlink(missing_ok=True)
        done = machine.restore(row["id"], "data", out, *arguments, expect=None)
        found[row["id"]] = out.read_bytes() if done.code == 0 else None
    return found


def deltas(store: Path) -> int:
    """Return how many deltas lie in a store."""
    count = 0
    for path in packs(store):
        name = PackName.parse(path.relative_to(store).as_posix())
        assert name is not None
        count += int((check_pack(name, path.read_bytes(), None, None).lengths & DELTA_FLAG != 0).sum())
    return count


@pytest.fixture(scope="module")
def before(template: CrashMachine) -> dict[str, bytes | None]:
    """What the points of the template hold."""
    found = contents(template)
    assert None not in found.values()
    assert len(set(found.values())) == 3
    return found


def test_what_only_older_points_need_comes_back_from_the_vault(
    machine: CrashMachine, before: dict[str, bytes | None]
) -> None:
    for kind in ("data", "page"):
        lose(machine, kind)
    done = verify(machine, expect=1)
    assert (done["missing"], done["problems"]) == (done["blocks"], [])
    points = done["points"]
    assert (points["completed"], points["points"], points["error"], points["no_room"]) == (True, 3, None, 0)
    assert points["healed"] == points["missing"] > 0
    # What the volumes have is left to the next session, deltas came as they are, with their sources.
    assert deltas(cache_of(machine)) > 0
    assert verify(machine, expect=1)["missing"] > 0
    report = machine.backup()
    assert report["problems"] == []
    assert contents(machine, "--only-cache") == {**before, report["point"]: machine.volumes["data"].read_bytes()}
    # Nothing is missing any more, so nothing is read.
    done = verify(machine)
    assert (done["missing"], done["points"]["missing"], done["points"]["read_bytes"]) == (0, 0, 0)
    said = machine.run("status").document["cache"]["last_completed"]
    assert said["points"] == done["points"]
    assert verify(machine, "--deep")["damaged_packs"] == 0


def test_by_default_only_what_the_volumes_have_comes_back(
    machine: CrashMachine, before: dict[str, bytes | None]
) -> None:
    without_what_is_old(machine)
    machine.extra = {}
    assert (verify(machine)["missing"], verify(machine)["points"]) == (0, None)
    found = contents(machine, "--only-cache")
    whole = [point for point, content in found.items() if content is not None]
    assert whole == [point for point in found if point >= max(before)]


def test_a_vault_that_is_away_or_damaged_fails_no_verification(machine: CrashMachine) -> None:
    without_what_is_old(machine)
    machine.away()
    done = verify(machine)
    assert (done["passed"], done["missing"], done["points"]["completed"]) == (True, 0, False)
    assert any("of older restore points was not put there" in problem for problem in done["problems"])
    assert "mount its disk" in done["points"]["error"]
    machine.back()
    victim = packs(machine.vault)[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = verify(machine)
    assert (done["passed"], done["points"]["completed"]) == (True, True)
    assert 0 < done["points"]["healed"] < done["points"]["missing"]
    assert any(victim.name in problem and "is damaged" in problem for problem in done["problems"])
    # What is known to be damaged is not read again.
    machine.run("verify", "--vault", "--read", "100%", expect=1)
    done = verify(machine)
    assert done["points"]["read_bytes"] < victim.stat().st_size
    assert done["points"]["healed"] == 0
    assert any("lie in packs that the vault lost" in problem for problem in done["problems"])


def test_killed_or_asked_to_give_way_it_goes_on_where_it_was(
    machine: CrashMachine, before: dict[str, bytes | None]
) -> None:
    without_what_is_old(machine)
    instant = Fault("link", f"{cache_of(machine)}/data/", after=True)
    assert machine.attempt("verify", fault=instant).code == KILLED
    # A timer goes on with it, though no verification is due.
    with beside(machine, "healing") as healing, beside(machine, "session", forge=machine.forge) as session:
        healing.start(["verify", "--if-due"], instant)
        healing.reached()
        session.start(["backup"], Fault("open", f"{session.holder.state}/lock.wanted", after=True))
        session.reached()
        session.release()
        healing.release()
        done, found = session.end(), healing.end()
    assert done.code == 0, done.stderr
    assert (found.code, found.document["blocks"], found.document["points"]["completed"]) == (0, 0, True)
    assert verify(machine, "--if-due")["skipped"] == "not_due"
    found_now = contents(machine, "--only-cache")
    assert {point: found_now[point] for point in before} == before


class Filled:
    """A device with so much free now beyond what trimming and healing leave, of which the cache's packs take more."""

    def __init__(self, cache: Path, free_bytes: int) -> None:
        self._cache, self._left = cache, free_bytes + size_of(cache)

    async def room(self) -> Room:
        # One hundredth is `min_free`, another one is left to sessions.
        return Room(100 << 20, (2 << 20) + self._left - size_of(self._cache))


def size_of(store: Path) -> int:
    return sum(path.stat().st_size for path in packs(store))


def healed(machine: CrashMachine, free_bytes: int, held_max: int = 16) -> PointsHealed:
    """Heal with so much room on the cache's device, sixteen blocks at once."""
    machine.write_config()
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> PointsHealed:
        async with lifetime():
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                session = await build_setup(config, identity, state)
                assert session.cache is not None
                device = Filled(cache_of(machine), free_bytes)
                session = msgspec.structs.replace(session, cache=msgspec.structs.replace(session.cache, device=device))
                setup = HealSetup(session=session, history=state.history, volumes=["data"], held_max=held_max)
                healing = Healing(setup)
                assert await healing.run()
                assert healing.problems == []
                return healing.done

    return anyio.run(main)


def days_of(paths: Iterable[Path], store: Path) -> set[int]:
    """Return how many days ago what lies in packs was seen last, as the packs say."""
    found: set[int] = set()
    for path in paths:
        name = PackName.parse(path.relative_to(store).as_posix())
        assert name is not None
        found.update(check_pack(name, path.read_bytes(), None, None).days.tolist())
    return {day_of(time.time_ns() // 1_000_000) - day for day in found}


def test_what_was_found_is_not_looked_for_again_and_what_then_goes_is(
    machine: CrashMachine, before: dict[str, bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_through: list[tuple[int, int]] = []

    class Told(RunReader):
        def leaves(self, first: int = 0, stop: int = BLOCKS_MAX) -> AsyncGenerator[IdLeaf, None]:
            gone_through.append((first, stop))
            return super().leaves(first, stop)

    monkeypatch.setattr(pointneeds, "RunReader", Told)
    assert healed(machine, 1000 * BLOCK).missing == 0
    assert len(gone_through) >= 3
    gone_through.clear()
    assert healed(machine, 1000 * BLOCK).missing == 0
    assert gone_through == []
    # Each pack in turn, as if trimmed, lost or rotted; and what only the volumes need is left to the sessions.
    for path in packs(cache_of(machine)):
        path.unlink()
        verify(machine, expect=None)
        found = verify(machine, expect=None)["points"]
        assert (found["missing"], found["healed"]) == (0, 0)
        machine.backup()
        now = contents(machine, "--only-cache")
        assert {point: now[point] for point in before} == before
    # The notes lost or damaged, everything is gone through again.
    gone_through.clear()
    (notes,) = machine.state.glob("index/*.found")
    notes.write_bytes(notes.read_bytes()[:-1])
    assert healed(machine, 1000 * BLOCK).missing == 0
    assert len(gone_through) >= 3


def founded(root: Path, template: CrashMachine) -> tuple[CrashMachine, Path]:
    """Return a machine of its own that heals restore points, and its volume."""
    volume = random_volume(root / "data.img", 60, seed=1)
    machine = CrashMachine(
        root / "machine", root / "vault", root / "cache", volumes={"data": volume}, forge=template.forge,
        extra=dict(POINTS),
    )  # fmt: skip
    machine.init()
    return machine, volume


def test_no_pack_of_the_vault_is_read_twice_and_no_record_comes_twice(
    template: CrashMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with in_memory(tmp_path) as root:
        machine, volume = founded(root, template)
        generator = random.Random(7)
        for days_ago in (9, 7, 5, 3):
            lived(machine, days_ago)
            for block in range(40):
                overwrite(volume, block, generator.randbytes(4096))
        lose(machine)
        past_verify(machine, 2)
        lived(machine, 2)
        current = set(packs(cache_of(machine)))
        # The newest come first, and their sources are looked for while the packs of those are still to be read.
        monkeypatch.setattr("engine.cache.bringing.HELD_BYTES", 1)
        monkeypatch.setattr("engine.cache.bringing.READS_MAX", 1)
        done = healed(machine, 1000 * BLOCK, 1 << 20)
        assert (done.healed, done.no_room) == (done.missing, 0)
        assert deltas(cache_of(machine)) > 0
        came = [name for path in set(packs(cache_of(machine))) - current for name in ids_of(path, cache_of(machine))]
        assert len(came) == len(set(came)) >= done.missing > 40
        assert done.read_bytes <= size_of(machine.vault)
        assert None not in contents(machine, "--only-cache").values()


def ids_of(path: Path, store: Path) -> list[bytes]:
    name = PackName.parse(path.relative_to(store).as_posix())
    assert name is not None
    return [each.tobytes() for each in check_pack(name, path.read_bytes(), None, None).ids]


def test_it_keeps_within_the_bounds_of_trimming_and_neither_undoes_the_other(
    template: CrashMachine, tmp_path: Path
) -> None:
    with in_memory(tmp_path) as root:
        machine, volume = founded(root, template)
        lived(machine, 30)
        generator = random.Random(7)
        for first, days_ago in ((0, 20), (20, 3)):
            for block in range(first, first + 20):
                overwrite(volume, block, generator.randbytes(BLOCK))
            lived(machine, days_ago)
        lose(machine)
        past_verify(machine, 2)
        lived(machine, 2)
        past_verify(machine, 0)
        current = set(packs(cache_of(machine)))
        # Where there is room for a few, those come back that were on the volume last; and no more than fit.
        few = healed(machine, 10 * BLOCK)
        new = set(packs(cache_of(machine))) - current
        assert 0 < few.healed < 10
        assert few.no_room > 0
        assert few.put_bytes == sum(path.stat().st_size for path in new) < 10 * BLOCK
        assert days_of(new, cache_of(machine)) == {20}
        assert healed(machine, 0).healed == 0
        rest = healed(machine, 60 * BLOCK)
        assert (rest.healed, rest.no_room) == (few.missing - few.healed, 0) == (rest.missing, 0)
        new = set(packs(cache_of(machine))) - current
        assert days_of(new, cache_of(machine)) == {20, 30}
        # As old as it was: a bound of age lets go of it, and then it is not brought back.
        machine.extra = {"cache": f'{POINTS["cache"]}\ntrim.max_age = "25 d"'}
        report = trim(machine)
        assert report.deleted + report.rewritten > 0
        again = healed(machine, 60 * BLOCK)
        assert (again.missing, again.healed, again.put_bytes) == (0, 0, 0)
        report = trim(machine)
        assert (report.deleted, report.rewritten) == (0, 0)
        found = sorted(contents(machine, "--only-cache").items())
        assert [content is None for _, content in found] == [True, False, False, False]
