"""A cache that two systems share is trimmed: who needs what is there still has it, and the other one heals its part."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import anyio
import numpy as np

from adapters.config import load_config
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.block import Mask, ref_of
from engine.cache.trim import MIXED, Trimmed, Trimmer
from engine.cache.trimplan import Days, Ints
from engine.columns import Column64
from engine.names import PackName
from engine.pack import PackBuilder, check_pack
from engine.pipeline.stores import open_side
from engine.policy import MIB, TrimPolicy
from engine.ports import Room
from engine.vault.certificate import Certificates
from engine.vault.formatobject import read_format
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
    assert machine.cache is not None
    cache, identity = machine.cache, identity_of(machine)

    async def main() -> Trimmed:
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

    return anyio.run(main)


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
