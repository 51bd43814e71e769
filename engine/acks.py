"""What is remembered of a pack a store acknowledged until an index fragment lists it (entries of the ack log)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import Ids, ids_from_bytes
from engine.names import PackName
from engine.pack import FinishedPack
from engine.ports import AckLog


class PackAck(msgspec.Struct, frozen=True, eq=False):
    """A pack without its bytes: see `FinishedPack` for the columns."""

    name: PackName
    ids: Ids
    offsets: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]
    sources: tuple[tuple[int, PackName], ...] = ()

    @classmethod
    def of(cls, pack: FinishedPack) -> PackAck:
        """Return what is to be remembered of a pack that was put: copies, for views would keep all its bytes."""
        return cls(pack.name, pack.ids.copy(), pack.offsets.copy(), pack.lengths.copy(), pack.sources)

    def encode(self) -> bytes:
        """Return the entry for the ack log."""
        name, sources = self.name, SourceTable.of(self)
        return msgspec.msgpack.encode(
            _Stored(
                pack=str(name),
                ids=self.ids.tobytes(),
                offsets=self.offsets.astype("<u4").tobytes(),
                lengths=self.lengths.astype("<u4").tobytes(),
                packs=[str(each) for each in sources.packs],
                sources=np.stack([sources.entry, sources.pack]).tobytes(),
            )
        )

    @classmethod
    def decode(cls, entry: bytes) -> PackAck | None:
        """Return what an entry says, or None if it is damaged: a pack not remembered is sent again, no more."""
        try:
            stored = msgspec.msgpack.decode(entry, type=_Stored)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        name = PackName.parse(stored.pack)
        packs = [pack for pack in map(PackName.parse, stored.packs) if pack is not None]
        count = len(stored.ids) // 16
        columns_fit = len(stored.ids) == count * 16 and len(stored.offsets) == len(stored.lengths) == count * 4
        if name is None or not columns_fit or count == 0 or len(packs) < len(stored.packs) or len(stored.sources) % 8:
            return None
        entries, rows = np.frombuffer(stored.sources, "<u4").reshape(2, -1)
        if bool((entries >= count).any()) or bool((rows >= len(packs)).any()):
            return None
        known = tuple(zip(entries.tolist(), (packs[row] for row in rows.tolist()), strict=True))
        offsets, lengths = np.frombuffer(stored.offsets, "<u4"), np.frombuffer(stored.lengths, "<u4")
        return cls(name, ids_from_bytes(stored.ids), offsets, lengths, known)


class SourceTable(NamedTuple):
    """The sources of a pack's deltas as columns: entry in the order of its records, position in `packs`."""

    packs: list[PackName]
    entry: npt.NDArray[np.uint32]
    pack: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, pack: FinishedPack | PackAck) -> SourceTable:
        """Return the sources of a pack; `packs` sorted by hash, each once."""
        count = len(pack.sources)
        hashes = [source.hash for _, source in pack.sources]
        names = dict(zip(hashes, (source for _, source in pack.sources), strict=True))
        position = {digest: at for at, digest in enumerate(sorted(names))}
        return cls(
            [names[digest] for digest in position],
            np.fromiter((entry for entry, _ in pack.sources), np.uint32, count),
            np.fromiter(map(position.__getitem__, hashes), np.uint32, count),
        )


def encode_durable(count: int) -> bytes:
    """Return the entry saying that the first `count` packs in the log are durable."""
    return msgspec.msgpack.encode(count)


def rewrite(log: AckLog, packs: Iterable[PackAck], durable: int) -> None:
    """Let a log hold these packs only, the first `durable` of them durable (*sync*). Raises: SessionAborted."""
    log.clear()
    for pack in packs:
        log.append(pack.encode())
    if durable:
        log.append(encode_durable(durable))


def decode_log(entries: Sequence[bytes]) -> tuple[list[PackAck], list[PackAck]]:
    """Return the packs in a log: (those known to be durable, those acknowledged after the last flush)."""
    acks: list[PackAck | None] = []
    durable = 0
    for entry in entries:
        try:
            durable = max(durable, msgspec.msgpack.decode(entry, type=int))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            acks.append(PackAck.decode(entry))
    return [ack for ack in acks[:durable] if ack is not None], [ack for ack in acks[durable:] if ack is not None]


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    pack: str
    ids: bytes
    offsets: bytes
    lengths: bytes
    packs: list[str]
    sources: bytes
