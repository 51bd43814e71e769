"""Builds small vaults and caches out of a model of volumes, with the engine's own writers and no session."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.acks import PackAck
from engine.block import BLOCK_BYTES, PLACE, Bytes, Ids, Places, blocks_in, ref_of
from engine.errors import RestoreError, StateCorrupt
from engine.fragment import encode_fragment
from engine.names import FORMAT, FragmentName, PackName, PointId
from engine.note import NoteBody, seal_note
from engine.pack import FinishedPack, PackBuilder
from engine.packtable import rows_of
from engine.pagestore import PageWriter
from engine.ports import MirrorFiles
from engine.recovery.access import Access, SystemAccess, by_passphrase
from engine.recovery.blocksource import BlockSource
from engine.recovery.catalogue import Catalogue, Point
from engine.recovery.places import CACHE, SPOOL, VAULT, Place, Problems
from engine.recovery.places import Places as Stores
from engine.recovery.restore import Restore, RestoreReport
from engine.recovery.sources import open_source
from engine.root import PreviousRoot, RootBody, RunDescriptor, VolumePoint, open_root, seal_root
from engine.runbuild import RunChunk
from engine.runs import envelope_info, write_run
from engine.seal import Codec, Sealer
from engine.vault import hpke
from engine.vault.certificate import Certificate, issue
from engine.vault.formatobject import StoreKind, new_store
from engine.vault.identity import Identity
from engine.vault.slots import KdfCost, OpenedDomain, found
from tests.engine.fakes_delta import SourceBlock, encode_delta, map_of, pieces
from tests.fakes import FakeClock, MemoryStore

PASSPHRASE = "correct horse battery staple"
INCARNATION = b"incarnat"


@cache
def domain(passphrase: str = PASSPHRASE, number: int = 0) -> tuple[OpenedDomain, tuple[str, bytes]]:
    """One domain per passphrase and number for all tests: founding costs an Argon2id run."""
    return found(passphrase, KdfCost.cheapest(), None)


@dataclass
class System:
    """A system that writes points; `blocks` is its block map: volume → block number → (ref, vault place)."""

    name: str
    opened: OpenedDomain
    id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    listing_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    maps: dict[str, dict[int, bytes]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    runs: dict[str, list[RunDescriptor]] = field(default_factory=dict)
    previous: PreviousRoot | None = None
    order: int = 1_700_000_000_000
    sequence: int = 0

    @property
    def certificate(self) -> Certificate:
        return issue(
            self.opened,
            system=self.id,
            number=1,
            name=self.name,
            signing_public=self.signing.public_key().public_bytes_raw(),
            listing_key=self.listing_key,
            issued_ms=1,
        )

    def identity(self, world: World) -> Identity:
        certificate = self.certificate
        return Identity(
            system=self.id,
            name=self.name,
            domain=self.opened.domain,
            domain_secret=self.opened.domain_secret,
            signing_private=self.signing.private_bytes_raw(),
            listing_key=self.listing_key,
            recovery_public=self.opened.recovery_public,
            vault_public=self.opened.vault_public,
            certificate_number=1,
            certificate=certificate.data,
            slots=self.opened.slots,
            vault=world.formats[VAULT],
            cache=world.formats.get(CACHE),
            spool=world.formats.get(SPOOL),
        )


@dataclass
class Side:
    """What one store holds, besides its objects: where each block lies, and packs no fragment lists yet."""

    objects: MemoryStore
    places: dict[bytes, tuple[PackName, int, int]] = field(default_factory=dict)
    unlisted: list[FinishedPack] = field(default_factory=list)
    sources: dict[bytes, PackName] = field(default_factory=dict)  # of a delta's id: the pack of its source

    async def put(self, pack: FinishedPack) -> None:
        await self.objects.put(str(pack.name), pack.data)
        self.unlisted.append(pack)
        for ident, offset, length in zip(pack.ids, pack.offsets, pack.lengths, strict=True):
            self.places[ident.tobytes()] = pack.name, int(offset), int(length)

    def place(self, ref: bytes) -> np.void:
        found: np.void = self.lookup(np.frombuffer(ref[:16], "<u8").reshape(1, 2))[0]
        return found

    def lookup(self, ids: Ids) -> Places:
        places = np.zeros(len(ids), PLACE)
        for at, ident in enumerate(ids):
            if known := self.places.get(ident.tobytes()):
                places[at] = known[0].key, known[1], known[2]
        return places

    def name(self, key: int) -> PackName | None:
        return next((name for name, _, _ in self.places.values() if name.key == key), None)


class World:
    """A vault, and a cache and a spool if wanted, with systems that back up into them.

    `delta`: a block that shares parts with the one it takes the place of goes to the vault as a delta of that one.
    While `fallback` is set, points go to the spool instead of the vault, and lean on what both have.
    """

    def __init__(
        self,
        *,
        cache: bool = True,
        pack_bytes: int = 300_000,
        codec: Codec = Codec.NONE,
        delta: bool = False,
        spool: bool = False,
    ) -> None:
        self.delta, self.fallback = delta, False
        self.contents: dict[bytes, bytes] = {}
        self.opened, self.slot = domain()
        self.keys = self.opened.keys
        self.pack_bytes, self.codec = pack_bytes, codec
        self.vault = Side(MemoryStore())
        self.cache = Side(MemoryStore()) if cache else None
        self.spool = Side(MemoryStore()) if spool else None
        self.formats: dict[str, bytes] = {}
        self._put_format(VAULT, "vault", self.vault)
        if self.cache is not None:
            self._put_format(CACHE, "cache", self.cache)
        if self.spool is not None:
            self._put_format(SPOOL, "spool", self.spool)

    def _put_format(self, name: str, kind: StoreKind, side: Side) -> None:
        made = new_store(kind)
        self.formats[name] = made.store
        side.objects.objects[FORMAT] = made.encode()
        side.objects.objects[self.slot[0]] = self.slot[1]

    @property
    def far(self) -> Side:
        """Where points go now: the vault, or the spool in its stead."""
        return self.spool if self.fallback and self.spool is not None else self.vault

    @property
    def sides(self) -> list[Side]:
        return [self.far] if self.cache is None else [self.far, self.cache]

    @property
    def all_sides(self) -> dict[str, Side]:
        """Every store by the name of its place, nearest first."""
        sides = {CACHE: self.cache, SPOOL: self.spool, VAULT: self.vault}
        return {name: side for name, side in sides.items() if side is not None}

    def lookup(self, ids: Ids) -> Places:
        """Return the places of ids where points go now, else in the vault."""
        places = self.far.lookup(ids)
        return np.where(places["length"] > 0, places, self.vault.lookup(ids))

    def pack_name(self, key: int) -> PackName | None:
        return self.far.name(key) or self.vault.name(key)

    def pack_of(self, ref: bytes) -> PackName:
        return (self.far.places.get(ref[:16]) or self.vault.places[ref[:16]])[0]

    def system(self, name: str = "web-01") -> System:
        system = System(name, self.opened)
        certificate = system.certificate
        for side in self.all_sides.values():
            side.objects.objects[certificate.object_name] = certificate.data
        return system

    async def backup(
        self,
        system: System,
        volumes: Mapping[str, bytes],
        *,
        base: Collection[str] = (),
        copy: bool = True,
        unreadable: Mapping[str, list[tuple[int, int]]] | None = None,
    ) -> PointId:
        """Write a point of `volumes`; `base`: write base runs for these. `copy`: the cache gets blocks and copies."""
        session = secrets.token_bytes(16)
        points = []
        for name, content in volumes.items():
            runs = await self._volume(system, session, name, content, name in base, copy)
            points.append(
                VolumePoint(
                    name=name,
                    bytes=len(content),
                    blocks=blocks_in(len(content)),
                    runs=runs,
                    unreadable=(unreadable or {}).get(name, []),
                )
            )
        await self._publish(system, copy)
        return await self._root(system, session, points, copy)

    async def stand_in(self, system: System, point: PointId) -> PointId:
        """Put a root into the vault that stands for another one."""
        name = point.root(system.id)
        root = open_root(name, self.far.objects.objects[name], system.listing_key, lambda *_: True)
        standing = next(point.stand_ins())
        data = self._sealed(system, standing, msgspec.structs.replace(root.body, stands_for=root.named))
        await self.far.objects.put(standing.root(system.id), data)
        return standing

    def _sealed(self, system: System, point: PointId, body: RootBody) -> bytes:
        return seal_root(
            body,
            domain=self.keys.domain,
            system=system.id,
            point=point,
            recovery_key_id=hpke.key_id(self.opened.recovery_public),
            certificate=1,
            listing_key=system.listing_key,
            signer=system.signing.sign,
        )

    async def _root(self, system: System, session: bytes, points: list[VolumePoint], copy: bool) -> PointId:
        system.order += 1000
        point = PointId(system.order, INCARNATION)
        body = RootBody(time=system.order, version="0.1.0", session=session, previous=system.previous, volumes=points)
        data = self._sealed(system, point, body)
        for side in self.sides if copy else [self.far]:
            await side.objects.put(point.root(system.id), data)
        root = open_root(point.root(system.id), data, system.listing_key, lambda *_: True)
        system.previous = PreviousRoot(order=point.order, incarnation=point.incarnation, hash=root.hash)
        return point

    async def note(self, system: System, point: PointId, body: NoteBody) -> str:
        name, data = seal_note(
            body,
            domain=self.keys.domain,
            system=system.id,
            point=point,
            certificate=1,
            listing_key=system.listing_key,
            signer=system.signing.sign,
        )
        for side in self.sides:
            await side.objects.put(name, data)
        return name

    async def _volume(
        self, system: System, session: bytes, name: str, content: bytes, base: bool, copy: bool
    ) -> list[RunDescriptor]:
        runs = [] if base else system.runs.get(name, [])
        old = system.maps.get(name, {}) if runs else {}
        new: dict[int, bytes] = {}
        blocks: dict[bytes, bytes] = {}
        for number in range(blocks_in(len(content))):
            block = content[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            if any(block):
                new[number] = ref_of(self.keys.blocks, block)
                blocks[new[number]] = block
        self.contents |= blocks
        before = {ref: old[number] for number, ref in new.items() if number in old and self.delta}
        for side in self.sides if copy else [self.far]:
            await self._send(system, session, side, blocks, before if side is self.far else {})
        changed = sorted(number for number, ref in new.items() if old.get(number) != ref)
        zeros = sorted(set(old) - set(new))
        if changed or zeros or not runs:
            runs = [*runs, await self._run(system, session, changed, new, zeros, not runs, copy)]
        system.maps[name], system.sizes[name], system.runs[name] = new, len(content), runs
        return runs

    async def _send(
        self, system: System, session: bytes, side: Side, blocks: Mapping[bytes, bytes], before: Mapping[bytes, bytes]
    ) -> None:
        sealer = Sealer(self.codec, self.keys.blocks)
        builder = self._builder(system, session, "data")
        for ref, block in blocks.items():
            if ref[:16] in side.places or (side is self.spool and ref[:16] in self.vault.places):
                continue
            record = self._delta(block, before.get(ref)) or sealer.seal(ref, block)
            if not builder.room(len(record)):
                await side.put(builder.finish())
                builder = self._builder(system, session, "data")
            source = self.pack_of(before[ref]) if record[16] else None
            builder.add(record, [source] if source else [])
            if source:
                side.sources[ref[:16]] = source
        if builder.count:
            await side.put(builder.finish())

    def sources(self) -> dict[bytes, PackName]:
        """Return, by the id of a delta where points go now or in the vault, the pack of its source."""
        return {**self.vault.sources, **self.far.sources}

    def place(self, ref: bytes) -> np.void:
        found: np.void = self.lookup(np.frombuffer(ref[:16], "<u8").reshape(1, 2))[0]
        return found

    def _delta(self, block: bytes, before: bytes | None) -> bytes | None:
        if before is None or not self.place(before)["length"] or before[:16] in self.sources():
            return None
        old = pieces(self.contents[before])
        same = {at: 0 for at, part in enumerate(pieces(block)) if at < len(old) and part == old[at]}
        if not same:
            return None
        return encode_delta(self.keys.blocks, block, [SourceBlock(before, self.place(before))], map_of(block, same))

    def _builder(self, system: System, session: bytes, kind: str) -> PackBuilder:
        return PackBuilder(kind, self.keys, system.id, session, system.signing.sign, self.pack_bytes)

    async def _run(
        self,
        system: System,
        session: bytes,
        changed: list[int],
        refs: Mapping[int, bytes],
        zeros: list[int],
        base: bool,
        copy: bool,
    ) -> RunDescriptor:
        async def put(pack: FinishedPack) -> None:
            await self.far.put(pack)
            if copy and self.cache is not None:
                await self.cache.put(pack)

        writer = PageWriter(
            lambda: self._builder(system, session, "page"),
            put,
            self.keys.pages,
            Sealer(Codec.ZSTD, self.keys.pages),
            self.lookup,
            self.pack_name,
        )
        chosen = [refs[number] for number in changed]
        rows = np.frombuffer(b"".join(chosen), np.uint8).reshape(-1, 48)
        places = self.lookup(np.ascontiguousarray(rows[:, :16]).view("<u8").reshape(-1, 2))
        extents = [] if base else zeros
        chunk = RunChunk.of(
            np.array(changed, np.uint64),
            rows,
            places,
            np.array(extents, np.uint64),
            np.ones(len(extents), np.uint64),
        )
        packs = {self.pack_of(ref) for ref in chosen}
        packs |= {source for ident, source in self.sources().items() if any(ref[:16] == ident for ref in chosen)}
        return await write_run(
            writer,
            [chunk],
            base=base,
            packs=lambda: rows_of(packs),
            seal_envelope=lambda run, address: hpke.seal(
                self.opened.recovery_public, address, envelope_info(self.keys.domain, system.id, run)
            ),
        )

    async def _publish(self, system: System, copy: bool) -> None:
        system.sequence += 1
        for side in self.sides if copy else [self.far]:
            packs = [PackAck.of(pack) for pack in side.unlisted]
            side.unlisted.clear()
            if packs:
                name = FragmentName(system.id, INCARNATION, system.sequence)
                await side.objects.put(str(name), encode_fragment(name, packs, self.keys, system.signing.sign))

    def places(self, *names: str) -> tuple[Stores, Problems]:
        """Return the places `names` (all there are by default), and the list their problems go to."""
        problems = Problems()
        wanted = {name: side for name, side in self.all_sides.items() if not names or name in names}
        return Stores(
            [Place(name, f"memory:{name}", side.objects) for name, side in wanted.items()], problems
        ), problems


def block(seed: int) -> bytes:
    """Return a random block."""
    return np.random.default_rng(seed).bytes(BLOCK_BYTES)


def volume(*seeds: int | None, tail: int = 0) -> bytes:
    """Return a volume of one block per seed (None: zeros) and a short last block of `tail` bytes."""
    content = b"".join(bytes(BLOCK_BYTES) if seed is None else block(seed) for seed in seeds)
    return content + np.random.default_rng(len(seeds)).bytes(tail)


class MemoryTarget:
    """A RestoreTarget in memory, full of dirt to begin with, that tells how it ended."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(b"\xa5" * size_bytes)
        self.written = 0
        self.finished = self.abandoned = False
        self.kept: list[bytes] = []
        self.restarted = False
        self.fail_at: int | None = None
        self._lock = threading.Lock()

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        data = b"".join(pieces)
        if self.fail_at is not None and offset + len(data) > self.fail_at:
            raise RestoreError("the target is full")
        assert offset + len(data) <= len(self.content)
        with self._lock:
            self.content[offset : offset + len(data)] = data
            self.written += len(data)

    def zero(self, offset: int, length: int) -> None:
        assert offset >= 0
        assert length > 0
        assert offset + length <= len(self.content)
        self.content[offset : offset + length] = bytes(length)

    def begun(self) -> bytes:
        return self.kept[-1] if self.kept else b""

    def keep(self, progress: bytes) -> None:
        self.kept.append(progress)

    def restart(self) -> None:
        self.kept.clear()
        self.restarted = True

    def finish(self) -> None:
        self.finished = True

    def abandon(self) -> None:
        self.abandoned = True


class MemoryMirror:
    """MirrorFiles in memory; `opened` counts the mirrors that were ever written to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self._made: dict[str, bytearray] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> memoryview:
        if name not in self.files:
            raise StateCorrupt(f"there is no {name}")
        return memoryview(self.files[name])

    def create(self, name: str, size: int) -> memoryview:
        self._made[name] = bytearray(size)
        return memoryview(self._made[name])

    def publish(self, name: str, data: memoryview | bytes) -> None:
        self._made.pop(name, None)
        self.files[name] = bytes(data)

    def remove(self, name: str) -> None:
        self.files.pop(name, None)


@dataclass
class Outcome:
    report: RestoreReport
    content: bytes
    source: BlockSource
    mirrors: dict[str, MemoryMirror]


async def open_access(places: Stores, passphrase: str = PASSPHRASE) -> Access:
    return await by_passphrase(passphrase, None, places)


async def find(places: Stores, access: SystemAccess, text: str = "latest", volume: str = "data") -> Point:
    catalogue = Catalogue(places)
    return await catalogue.find(await catalogue.names(access), text, volume)


async def restore(
    world: World, text: str = "latest", volume: str = "data", *, system: str = "web-01", only: tuple[str, ...] = ()
) -> Outcome:
    """Restore as the command line does: places, keys, point, blocks."""

    async def checked(place: Place) -> None:
        from engine.vault.formatobject import read_format

        kinds: dict[str, StoreKind] = {VAULT: "vault", CACHE: "cache", SPOOL: "spool"}
        await read_format(place.objects, kinds[place.name])

    places, _ = world.places(*only)
    await places.open(checked)
    access = (await open_access(places)).named(system)
    point = await find(places, access, text, volume)
    return await restore_point(places, point, volume)


async def restore_point(places: Stores, point: Point, volume: str = "data") -> Outcome:
    mirrors: dict[str, MemoryMirror] = {}

    def mirror(name: str) -> MirrorFiles:
        mirrors[name] = MemoryMirror()
        return mirrors[name]

    source = open_source(places, point, mirror)
    target = MemoryTarget(point.volume(volume).bytes)
    restoring = Restore(point, volume, target, source, FakeClock())
    report = await restoring.run()
    assert target.finished
    assert not target.abandoned
    return Outcome(report, bytes(target.content), source, mirrors)
