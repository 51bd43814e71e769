"""A cache that two systems share is trimmed: who needs what is there still has it, and the other one heals its part."""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import numpy as np
from structlog.testing import capture_logs

from adapters.clock import SystemClock
from adapters.config import load_config
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.block import Bytes, Mask, ids_of, ref_of
from engine.cache.attempt import Attempt
from engine.cache.checks import open_checks
from engine.cache.stamping import stamp_session
from engine.cache.stamps import open_head
from engine.cache.trim import MIXED, Trimmed, Trimmer
from engine.cache.trimplan import Days, Ints
from engine.cache.verification import Verification, VerifySetup
from engine.columns import Column64
from engine.names import CheckedName, PackName, StampName
from engine.pack import PackBuilder, check_pack
from engine.pipeline.stores import open_side
from engine.policy import MIB, TrimPolicy
from engine.ports import Room
from engine.state import ENTRY
from engine.vault.certificate import Certificates
from engine.vault.formatobject import read_format
from tests.fakes_state import MemoryVolumeState
from tests.scenario.cheap import enrol
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine
from tests.scenario.mallory import identity_of, packs_in
from tests.scenario.recover import Recoverer

TODAY = 2500
OLD, NEW = 1000, TODAY - 1


class Seen:
    """When records were last seen, by what they hold: `recent` ids a short while ago, all others long ago."""

    def __init__(self, cache: Path, recent: set[bytes]) -> None:
        self._days: dict[int, Days] = {}
        for path in packs_in(cache):
            name = PackName.parse(path.relative_to(cache).as_posix())
            assert name is not None
            ids = check_pack(name, path.read_bytes(), None, None).ids
            days = [NEW if ident.tobytes() in recent else OLD for ident in ids]
            self._days[name.key] = np.array(days, np.uint16)

    async def packs(self, keys: Column64) -> Days:
        days = [self._days[key] for key in keys.tolist()]
        return np.array([each[0] if (each == each[0]).all() else MIXED for each in days], np.uint16)

    async def records(self, keys: Column64, counts: Ints) -> Days:
        found = [self._days[key] for key in keys.tolist()]
        assert [len(each) for each in found] == counts.tolist()
        return np.concatenate(found)

    async def since(self, keys: Column64) -> Mask:
        return np.zeros(len(keys), np.bool_)

    async def later(self, keys: Column64, counts: Ints) -> Days:
        return np.zeros(int(counts.sum()), np.uint16)


def machines(root: Path) -> tuple[Machine, Machine]:
    """Return two systems with one vault and one cache; the second one's volume is a third of the first one's."""
    chooser = random.Random(5)
    blocks = [chooser.randbytes(BLOCK) for _ in range(30)]
    contents = {"web-01": blocks, "db-02": [*blocks[:10], chooser.randbytes(BLOCK)]}
    made = []
    for name, content in contents.items():
        path = root / f"{name}.img"
        path.write_bytes(b"".join(content))
        machine = Machine(root / name, root / "vault", root / "cache", name, {"data": path})
        enrol(machine)
        assert backup(machine).exit_code == 0
        made.append(machine)
    return made[0], made[1]


def ids_in(machine: Machine) -> set[bytes]:
    content, keys = machine.volumes["data"].read_bytes(), identity_of(machine).keys
    return {ref_of(keys.blocks, content[at : at + BLOCK])[:16] for at in range(0, len(content), BLOCK)}


def trim(machine: Machine, recent: set[bytes], policy: TrimPolicy) -> Trimmed:
    """Trim the cache as `machine`."""
    return anyio.run(trimming, machine, recent, policy)


async def trimming(machine: Machine, recent: set[bytes], policy: TrimPolicy) -> Trimmed:
    assert machine.cache is not None
    cache, identity = machine.cache, identity_of(machine)
    objects = FolderStore(cache, "test", "flush")
    found = await read_format(objects, "cache", "write")
    certificates = await Certificates.load(objects, identity.domain, identity.vault_public)
    session = secrets.token_bytes(16)

    def new_pack() -> PackBuilder:
        return PackBuilder("data", identity.keys, identity.system, session, identity.signer, 4 * MIB)

    async def room() -> Room:
        return Room(1 << 40, 1 << 39)

    with StateDirectory.open(load_config(machine.config).system.state_dir) as state:
        side, problems = await open_side(found, objects, identity, state, certificates, own_only=False)
        assert problems == []
        seen = Seen(cache, recent)
        return await Trimmer(side.packs, seen, identity.keys, certificates, new_pack, room).run(policy, TODAY)


class Meanwhile(FolderStore):
    """A cache in which something happens before the first call that begins with `when`."""

    def __init__(self, cache: Path, happens: Callable[[], Awaitable[object]], when: str = "get data/") -> None:
        super().__init__(cache, "test", "flush")
        self._happens: Callable[[], Awaitable[object]] | None = happens
        self._when = when

    async def _before(self, call: str) -> None:
        if call.startswith(self._when) and self._happens is not None:
            happens, self._happens = self._happens, None
            await happens()

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        await self._before(f"get {name}")
        return await super().get(name, offset, length)

    async def put(self, name: str, data: Bytes) -> None:
        await self._before(f"put {name}")
        await super().put(name, data)


def named_in_stamps(machine: Machine) -> set[int]:
    """Return the keys of all packs of which stamps of a system speak."""
    assert machine.cache is not None
    found: set[int] = set()
    for path in (machine.cache / "stamp" / identity_of(machine).system.hex()).rglob("*-*"):
        name = StampName.parse(path.relative_to(machine.cache).as_posix())
        assert name is not None
        found.update(open_head(name, path.read_bytes(), None, None).packs.tolist())
    return found


def written_anew(cache: Path, before: set[str]) -> int:
    """Return the key of the one pack that is new in a cache."""
    (path,) = (path for path in packs_in(cache) if path.name not in before)
    name = PackName.parse(path.relative_to(cache).as_posix())
    assert name is not None
    return name.key


def read_deep(
    machine: Machine, happens: Callable[[], Awaitable[object]], when: str = "get data/"
) -> tuple[Attempt, list[str], set[int]]:
    """Verify the cache of `machine` and read all packs; return result, problems, and which packs others are told of."""
    assert machine.cache is not None
    cache, config = machine.cache, load_config(machine.config)

    async def main() -> tuple[Attempt, list[str], set[int]]:
        with StateDirectory.open(config.system.state_dir) as state:
            setup = VerifySetup(
                identity=identity_of(machine),
                state=state,
                history=state.history,
                clock=SystemClock(),
                cache=Meanwhile(cache, happens, when),
                volumes=["data"],
                read_share=1.0,
            )
            verification = Verification(setup)
            assert await verification.run()
            assert verification.attempt is not None
            assert not len(state.upkeep(bytes.fromhex(verification.attempt.store)).lost_packs().damaged)
            told: set[int] = set()
            for path in (cache / "checked" / identity_of(machine).system.hex()).rglob("*"):
                if (name := CheckedName.parse(path.relative_to(cache).as_posix())) is not None:
                    told |= set(open_checks(name, path.read_bytes(), None, None).keys.tolist())
            return verification.attempt, verification.problems, told

    return anyio.run(main)


def test_what_another_one_trims_between_listing_and_reading_is_no_damage(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    before = {path.name for path in packs_in(tmp_path / "cache")}
    with capture_logs() as events:
        attempt, problems, told = read_deep(web, lambda: trimming(db, ids_in(db), TrimPolicy(age_days_max=30)))
    after = {path.name for path in packs_in(tmp_path / "cache")}
    assert (len(before - after), len(after - before)) == (1, 1)
    assert problems == []
    assert not [event for event in events if event["event"] in ("pack_damaged", "packs_gone")]
    # What was written anew is found; what was old and went is missing, and of nothing more is said that it is.
    assert (attempt.damaged_packs, attempt.blocks, attempt.missing) == (0, 30, 20)
    listed = (path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("*-*"))
    assert told <= {name.key for name in map(PackName.parse, listed) if name is not None}
    (volume,) = backup(web).volumes.values()
    assert (volume.vault_blocks, volume.cache_blocks) == (0, 20)


def test_a_verification_sees_what_another_one_moves_while_it_stamps_where_it_lies_then(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    cache = tmp_path / "cache"
    before = {path.name for path in packs_in(cache)}
    policy = TrimPolicy(age_days_max=30)
    attempt, problems, _ = read_deep(web, lambda: trimming(db, ids_in(db), policy), "put stamp/")
    assert written_anew(cache, before) in named_in_stamps(web)
    assert (attempt.completed, attempt.blocks, attempt.missing, attempt.unique, problems) == (True, 30, 20, 10, [])
    (volume,) = backup(web).volumes.values()
    assert (volume.vault_blocks, volume.cache_blocks) == (0, 20)


def test_a_session_stamps_what_another_one_moves_meanwhile_where_it_lies_then(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    cache, identity = tmp_path / "cache", identity_of(web)
    before, content = {path.name for path in packs_in(cache)}, web.volumes["data"].read_bytes()
    shutil.rmtree(cache / "stamp")
    volume, entries = MemoryVolumeState(), np.zeros(64, ENTRY)
    for number in range(30):
        ref = ref_of(identity.keys.blocks, content[number * BLOCK : (number + 1) * BLOCK])
        entries["ref"][number] = np.frombuffer(ref, np.uint8)
    volume.stage(0, (1 << 30) - 1, entries)

    async def main() -> None:
        objects = Meanwhile(cache, lambda: trimming(db, ids_in(db), TrimPolicy(age_days_max=30)), "put stamp/")
        found = await read_format(objects, "cache", "write")
        certificates = await Certificates.load(objects, identity.domain, identity.vault_public)
        with StateDirectory.open(load_config(web.config).system.state_dir) as state:
            side, _ = await open_side(found, objects, identity, state, certificates, own_only=False)
            await stamp_session(side.packs, identity, state.incarnation, SystemClock().now_ms(), [volume])
            # What is gone is known to be, at once.
            there = side.packs.index.lookup(ids_of(entries["ref"][:30]))["length"] > 0
            assert there.tolist() == [True] * 10 + [False] * 20

    anyio.run(main)
    assert written_anew(cache, before) in named_in_stamps(web)


def test_what_vanishes_between_listing_and_reading_is_missing_and_not_damaged(tmp_path: Path) -> None:
    web, _ = machines(tmp_path)
    (mine,) = (tmp_path / "cache" / "data" / identity_of(web).system.hex()).rglob("*-*")

    async def vanish() -> None:
        mine.unlink()

    with capture_logs() as events:
        attempt, problems, _ = read_deep(web, vanish)
    assert (attempt.damaged_packs, attempt.missing, problems) == (0, 30, [])
    assert [event["packs"] for event in events if event["event"] == "packs_gone"] == [1]
    (volume,) = backup(web).volumes.values()
    assert (volume.vault_blocks, volume.cache_blocks) == (0, 30)
    assert Recoverer.of(web, only_cache=True).restored() == web.volumes["data"].read_bytes()


def test_who_needs_what_is_there_has_it_after_another_one_trimmed(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    before = {path: path.stat().st_size for path in packs_in(tmp_path / "cache")}
    done = trim(db, ids_in(db), TrimPolicy(age_days_max=30))
    assert (done.deleted, done.rewritten, done.problems) == (0, 1, ())
    after = {path: path.stat().st_size for path in packs_in(tmp_path / "cache")}
    assert sum(before.values()) - sum(after.values()) == done.freed_bytes > 15 * BLOCK
    # A third system's restore, with nothing but the cache and the passphrase.
    assert Recoverer.of(db, only_cache=True).restored() == db.volumes["data"].read_bytes()
    # Whose blocks went: sessions go on, what is looked at is put back, and nothing of it goes to the vault again.
    assert Recoverer.of(web).restored() == web.volumes["data"].read_bytes()
    report = backup(web, full=True)
    (volume,) = report.volumes.values()
    assert (report.exit_code, report.problems) == (0, [])
    assert (volume.vault_blocks, volume.cache_blocks) == (0, 20)
    assert Recoverer.of(web, only_cache=True).restored() == web.volumes["data"].read_bytes()
    report = backup(web, full=True)
    (volume,) = report.volumes.values()
    assert (volume.vault_blocks, volume.cache_blocks) == (0, 0)


def test_a_cache_that_is_trimmed_away_is_filled_anew(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    done = trim(web, set(), TrimPolicy(age_days_max=30))
    assert (done.deleted, done.rewritten) == (2, 0)
    assert packs_in(tmp_path / "cache") == []
    for machine in (db, web):
        assert backup(machine, full=True).exit_code == 0
        assert Recoverer.of(machine, only_cache=True).restored() == machine.volumes["data"].read_bytes()


def test_a_restore_does_not_complain_of_what_was_trimmed_before_or_meanwhile(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    recoverer = Recoverer.of(web)
    policy = TrimPolicy(age_days_max=30)
    recoverer.cache = Meanwhile(tmp_path / "cache", lambda: trimming(db, ids_in(db), policy))
    for trimmed_away in (False, True, True):
        if trimmed_away:
            trim(db, set(), policy)
        done = anyio.run(recoverer.restore)
        assert (done.content, done.report.problems) == (web.volumes["data"].read_bytes(), [])
    assert packs_in(tmp_path / "cache") == []


def test_a_restore_tells_of_what_vanished_from_the_cache(tmp_path: Path) -> None:
    web, db = machines(tmp_path)
    trim(db, ids_in(db), TrimPolicy(age_days_max=30))
    for path in packs_in(tmp_path / "cache"):
        path.unlink()
    done = anyio.run(Recoverer.of(web).restore)
    assert done.content == web.volumes["data"].read_bytes()
    (problem,) = done.report.problems
    assert "is gone from the store" in problem
