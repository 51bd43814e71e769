"""Root objects: a restore point exists once its root does (docs/FORMAT.md, "Root").

A root is sealed under the system's listing key and signed by the system; it names the system and the point
itself, so that a root stored under another's name is noticed. Only whoever holds the recovery private key gets
from it to keys of blocks: the ref of a run's key tree travels in the run's envelope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from blake3 import blake3

from engine.block import BLOCK_BYTES, blocks_in
from engine.errors import SessionAborted, StoreCorrupt
from engine.names import PointId
from engine.packtable import PACK_ROW_BYTES, fault_in, rows_from_bytes
from engine.page import ADDRESS_BYTES, BLOCKS_MAX, PageAddress
from engine.signed import Header, Kind, Signer, Verify, decode_body

RUNS_MAX: Final = 16
ROOT_BYTES_PER_VOLUME: Final = 65536
RECOVERY_KEY_ID_BYTES: Final = 8

KIND: Final = Kind("root", b"FBROOT\x00\x01", b"forebay root v1\0", RECOVERY_KEY_ID_BYTES)

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Id16: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class RunDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a volume.

    `run`: 16 random bytes; `base`: no run is older, unnamed blocks are zero; `entries`, `zeros`: blocks named with
    an id and as zero; `leaves`: id leaves; `id_tree`, `table`: addresses of the roots of the trees (64 bytes; empty:
    no tree); `table_packs`: rows (56 bytes) of the page packs one needs to read the pack table; `envelope`: the
    address of the key tree, sealed to the system's recovery key.
    """

    run: Id16
    base: bool
    entries: Count
    zeros: Count
    leaves: Count
    id_tree: bytes
    table: bytes
    table_packs: bytes
    envelope: bytes


class VolumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One volume at one point: its size in `bytes` and `blocks`, ranges (offset, length) that could not be read, runs.

    `runs` are oldest first, at most 16; the oldest, and no other, is a base run. `figures` are for people.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    bytes: Count
    blocks: Count
    block_bytes: int = BLOCK_BYTES
    unreadable: list[tuple[Count, Count]] = []
    runs: Annotated[list[RunDescriptor], msgspec.Meta(max_length=RUNS_MAX)] = []
    figures: dict[str, int] = {}


class PreviousRoot(msgspec.Struct, frozen=True, kw_only=True):
    """The root this one follows on: the chain that shows lost points. Or the one it stands for."""

    order: Count
    incarnation: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    hash: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]

    @property
    def point(self) -> PointId:
        """The point of that root."""
        return PointId(self.order, self.incarnation)


class RootBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a root says: `time` in ms since 1970 UTC, the writing `version`, its `session`, the sessions it ends.

    `stands_for`: the root that said all this before, and is damaged in the vault; notes to it are notes to this one.
    """

    time: Count
    version: str
    session: Id16
    ended: list[Id16] = []
    previous: PreviousRoot | None = None
    volumes: list[VolumePoint] = []
    figures: dict[str, int] = {}
    stands_for: PreviousRoot | None = None

    def volume(self, name: str) -> VolumePoint | None:
        """Return the volume of that name, or None."""
        return next((volume for volume in self.volumes if volume.name == name), None)


class Root(msgspec.Struct, frozen=True):
    """A root that was opened: `hash` is the BLAKE3 of the whole object, what the next root's `previous` holds."""

    domain: bytes
    system: bytes
    point: PointId
    recovery_key_id: bytes
    certificate: int
    body: RootBody
    hash: bytes

    @property
    def named(self) -> PreviousRoot:
        """How other roots name this one."""
        return PreviousRoot(order=self.point.order, incarnation=self.point.incarnation, hash=self.hash)


_BODY: Final = msgspec.msgpack.Decoder(RootBody)
_VOLUME: Final = msgspec.msgpack.Decoder(VolumePoint)


def seal_root(
    body: RootBody,
    *,
    domain: bytes,
    system: bytes,
    point: PointId,
    recovery_key_id: bytes,
    certificate: int,
    listing_key: bytes,
    signer: Signer,
) -> bytes:
    """Return the bytes of the root object to be stored under `point.root(system)`.

    Raises: SessionAborted if it would be larger than 64 KiB a volume.
    """
    fault = _fault(body)
    assert fault is None, fault
    header = Header(domain, system, point, recovery_key_id, certificate)
    data = KIND.seal(header, msgspec.msgpack.encode(body), listing_key, signer)
    bytes_max = ROOT_BYTES_PER_VOLUME * max(1, len(body.volumes))
    if len(data) >= bytes_max:
        raise SessionAborted(_too_large(body.volumes, len(data), bytes_max))
    return data


def open_root(name: str, data: bytes, listing_key: bytes, verify: Verify) -> Root:
    """Return the root in `data`, the object stored under `name`; everything it says was checked for sense.

    Raises: StoreCorrupt (cut, flipped, swapped, not signed by the system), FormatTooNew, and what `verify` raises.
    """
    header = root_header(name, data)
    _, plain = KIND.open(name, data, listing_key, verify)
    body = decode_body(name, _BODY, plain)
    if fault := _fault(body):
        raise StoreCorrupt(name, fault)
    return Root(
        header.domain, header.system, header.point, header.fields, header.certificate, body, blake3(data).digest()
    )


def root_header(name: str, data: bytes) -> Header:
    """Return what a root says without any key, checked against `name` only: nothing of it is signed yet.

    `fields` is the recovery key id. Raises: StoreCorrupt, FormatTooNew.
    """
    header = KIND.header(name, data)
    if PointId.parse_root(name) != (header.system, header.point):
        raise StoreCorrupt(name, f"it holds {header.point.root(header.system)}, stored under another name")
    return header


def encode_volume(volume: VolumePoint) -> bytes:
    """Return a volume's point as it lies in local state."""
    return msgspec.msgpack.encode(volume)


def decode_volume(data: bytes, where: str) -> VolumePoint:
    """Return what `encode_volume` encoded. Raises: StoreCorrupt naming `where`."""
    volume = decode_body(where, _VOLUME, data)
    if fault := _volume_fault(volume):
        raise StoreCorrupt(where, fault)
    return volume


def _fault(body: RootBody) -> str | None:
    if len({volume.name for volume in body.volumes}) != len(body.volumes):
        return "it has two volumes of one name"
    return next((fault for volume in body.volumes if (fault := _volume_fault(volume))), None)


def _volume_fault(volume: VolumePoint) -> str | None:
    if volume.block_bytes != BLOCK_BYTES or volume.blocks != blocks_in(volume.bytes) or volume.blocks > BLOCKS_MAX:
        return f"the geometry of volume {volume.name!r} is impossible"
    if any(offset + length > volume.bytes for offset, length in volume.unreadable):
        return f"volume {volume.name!r} has an unreadable range beyond its end"
    if any(run.base != (position == 0) for position, run in enumerate(volume.runs)):
        return f"volume {volume.name!r} has no base run, or it is not the oldest"
    return next((fault for run in volume.runs if (fault := _run_fault(run))), None)


def _run_fault(run: RunDescriptor) -> str | None:
    if run.entries > BLOCKS_MAX or run.zeros > BLOCKS_MAX or run.leaves > run.entries + run.zeros:
        return "a run counts an impossible number of blocks"
    if bool(run.id_tree) != bool(run.entries + run.zeros) or bool(run.id_tree) != bool(run.leaves):
        return "a run counts blocks and has no tree of them, or the other way round"
    if any(tree and not is_absolute(tree) for tree in (run.id_tree, run.table)):
        return "a run's tree has no absolute address"
    if bool(run.id_tree) != bool(run.table_packs) or len(run.table_packs) % PACK_ROW_BYTES:
        return "a run names no whole number of packs"
    if fault := fault_in(rows_from_bytes(run.table_packs)):
        return f"a run's list of packs is wrong: {fault}"
    return None


def is_absolute(address: bytes) -> bool:
    """Tell whether 64 bytes from outside a pack can be a page's address: they must name a pack."""
    return len(address) == ADDRESS_BYTES and PageAddress.parse(address).pack != 0


def _too_large(volumes: Sequence[VolumePoint], size: int, bytes_max: int) -> str:
    # Runs are few and small: what can grow without bound is the list of what could not be read.
    worst = max(volumes, key=lambda volume: len(volume.unreadable), default=None)
    reason = f"; volume {worst.name!r} has {len(worst.unreadable)} unreadable ranges" if worst else ""
    return f"the restore point cannot be written: its root would have {size} bytes of at most {bytes_max}{reason}"
