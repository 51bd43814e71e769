"""Stamps: on which day a system last saw each record of a cache's packs (docs/FORMAT.md, Stamp).

A stamp says things that stay true: so stamps of one system, of whatever age, are read together, and of a record the
greatest day counts. The newest stamps of a system say again what its older ones said; then those may go. The head is
read alone: for each pack the newest and the oldest day. The days of single records are read of packs about to go.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from engine.block import Bytes
from engine.distinct import distinct
from engine.errors import StoreCorrupt
from engine.names import StampName
from engine.subkeys import DomainKeys
from engine.trailer import TRAILER_BYTES, Signer, Verifier, check_trailer, make_trailer

STAMP_LABEL: Final = b"forebay stamp v1\0"
STAMP_HEADER_BYTES: Final = 104
STAMP_READ_MAX: Final = 16 << 20  # bytes; nothing larger is taken for a stamp
STAMP_WRITE_MAX: Final = 8 << 20  # a writer begins another one: several copies are in memory when it is put
RECORDS_MAX: Final = 1 << 20  # of one pack
NEVER: Final = 0
DAYS_MAX: Final = 256  # different ones in one pack; of more, the oldest count as the next newer one

Days = npt.NDArray[np.uint16]

_MAGIC: Final = b"FBSTAMP\x01"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHHHII16s16s8sII32s")
_ROW_FIELDS: Final = struct.Struct("<QIHH")
_ROW: Final = np.dtype([("pack", "<u8"), ("detail", "<u4"), ("newest", "<u2"), ("oldest", "<u2")])
_DETAIL: Final = struct.Struct("<IHH")
_DAY_MS: Final = 86_400_000
_EPOCH_MS: Final = 1_577_836_800_000  # 2020-01-01


def day_of(now_ms: int) -> int:
    """Return the day (since 2020-01-01, UTC) of a time in ms since 1970; at least 1, at most 65,535."""
    return min(max((now_ms - _EPOCH_MS) // _DAY_MS, 1), 0xFFFF)


class Seen(msgspec.Struct, frozen=True, eq=False):
    """When the records of one pack were last seen: `days` uint16, by record number; one item: all on that day.

    `pack` is the pack's key; 0 in `days`: never.
    """

    pack: int
    days: Days


class StampHead(msgspec.Struct, frozen=True, eq=False):
    """The head of a stamp. Packs ascending by key; `newest`, `oldest` day of any of a pack's records (0: never).

    `since`: its writer's stamps follow each other since that day with no more than 14 days between, 0: since this one.
    `details`: where the days of a pack's
    records lie, 0: all of them on `newest`.
    """

    name: StampName
    since: int
    packs: npt.NDArray[np.uint64]
    newest: Days
    oldest: Days
    details: npt.NDArray[np.uint32]
    details_at: int
    details_bytes: int
    details_hash: bytes

    @property
    def size(self) -> int:
        """How many bytes the whole stamp has."""
        return self.details_at + self.details_bytes


def encode_stamps(
    packs: Iterable[Seen],
    names: Iterable[StampName],
    since: int,
    keys: DomainKeys,
    signer: Signer,
    bytes_max: int = STAMP_WRITE_MAX,
) -> Iterator[tuple[StampName, bytes]]:
    """Yield as many stamps as it takes for all `packs` (ascending by key), under the next names each."""
    rest = iter(names)
    rows, body, room = bytearray(), bytearray(), bytes_max - STAMP_HEADER_BYTES - TRAILER_BYTES

    def finished() -> tuple[StampName, bytes]:
        name = next(rest)
        header = _HEADER.pack(
            _MAGIC, _VERSION, name.day, since, 0, len(rows) // _ROW.itemsize, len(body), keys.domain, name.writer,
            name.incarnation, name.sequence, 0, blake3(body).digest(),
        )  # fmt: skip
        head = header + rows
        return name, head + make_trailer(STAMP_LABEL, blake3(head).digest(), keys, signer) + body

    for pack in packs:
        newest, oldest = int(pack.days.max()), int(pack.days.min())
        detail = b"" if newest == oldest else _encode_days(pack.days)
        if rows and len(rows) + _ROW.itemsize + len(body) + len(detail) > room:
            yield finished()
            rows, body = bytearray(), bytearray()
        # Counted from the start of the details, plus one: 0 says that there are none.
        rows += _ROW_FIELDS.pack(pack.pack, len(body) + 1 if detail else 0, newest, oldest)
        body += detail
    if rows:
        yield finished()


def head_bytes(name: StampName, start: Bytes) -> int:
    """Return how long the head of a stamp is, from its first bytes (104 at least). Raises: StoreCorrupt."""
    return _counts(name, memoryview(start))[0]


def open_head(name: StampName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> StampHead:
    """Check the head of a stamp read from a store; `data` may be all of the stamp.

    Without `keys` the MAC and without `verifier` the signature stay unchecked. Raises: StoreCorrupt.
    """
    where, view = str(name), memoryview(data)
    stop, count, details_bytes = _counts(name, view)
    if len(view) < stop:
        raise StoreCorrupt(where, "it is cut")
    sealed = stop - TRAILER_BYTES
    fields = _HEADER.unpack_from(view)
    since, domain, details_hash = fields[3], fields[7], fields[12]
    checksum = blake3(view[:sealed]).digest()
    check_trailer(STAMP_LABEL, view[sealed:stop], checksum, domain, name.writer, keys, verifier, where)
    rows = np.frombuffer(view[STAMP_HEADER_BYTES:sealed], _ROW, count)
    packs, newest, oldest = (np.ascontiguousarray(rows[column]) for column in ("pack", "newest", "oldest"))
    details = np.ascontiguousarray(rows["detail"])
    if bool((packs[1:] <= packs[:-1]).any()):
        raise StoreCorrupt(where, "its packs are not in order")
    if bool((oldest > newest).any()) or bool((newest > name.day).any()) or bool((newest == NEVER).any()):
        raise StoreCorrupt(where, "it names days that cannot be")
    if bool(((details == 0) != (newest == oldest)).any()) or bool((details > details_bytes).any()):
        raise StoreCorrupt(where, "its details are not where they must be")
    if since >= name.day:
        raise StoreCorrupt(where, "it claims to be older than those before it")
    return StampHead(name, since, packs, newest, oldest, details, stop, details_bytes, details_hash)


class StampDetails:
    """The days of single records of the packs of one stamp; `data` are the bytes behind its head.

    Raises: StoreCorrupt.
    """

    def __init__(self, head: StampHead, data: Bytes) -> None:
        if len(data) != head.details_bytes or blake3(data).digest() != head.details_hash:
            raise StoreCorrupt(str(head.name), "its details are cut or damaged")
        self._head, self.data = head, memoryview(data)

    def seen(self, row: int) -> Seen:
        """Return what the stamp says of the pack at `row` of its head. Raises: StoreCorrupt."""
        head = self._head
        pack, newest, oldest = int(head.packs[row]), int(head.newest[row]), int(head.oldest[row])
        if not head.details[row]:
            return Seen(pack, np.array([newest], np.uint16))
        days = _decode_days(str(head.name), self.data[int(head.details[row]) - 1 :])
        if (int(days.max()), int(days.min())) != (newest, oldest):
            raise StoreCorrupt(str(head.name), "its head and its details disagree")
        return Seen(pack, days)


def newest_days(heads: Iterable[StampHead]) -> tuple[npt.NDArray[np.uint64], Days]:
    """Return all packs any of the stamps names, ascending, and the newest day any record of each was seen."""
    parts = list(heads)
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint16)
    packs, days = np.concatenate([head.packs for head in parts]), np.concatenate([head.newest for head in parts])
    order = np.lexsort((days, packs))
    packs, days = packs[order], days[order]
    last = np.concatenate([packs[1:] != packs[:-1], [True]])
    return packs[last], days[last]


def later(first: Days, second: Days) -> Days:
    """Return, for each record of a pack, the later of two days; one item stands for all records.

    Where both count records differently nothing fits: then all of them get the latest day of either.
    """
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        return np.array([max(int(first.max()), int(second.max()))], np.uint16)
    found: Days = np.maximum(first, second)
    return found


def _counts(name: StampName, view: memoryview) -> tuple[int, int, int]:
    """Return (bytes of the head, packs, bytes of the details)."""
    where = str(name)
    if len(view) < STAMP_HEADER_BYTES:
        raise StoreCorrupt(where, "it is cut")
    fields = _HEADER.unpack_from(view)
    if fields[:2] != (_MAGIC, _VERSION) or fields[4] or fields[11]:
        raise StoreCorrupt(where, "it is not a stamp of a version this program knows")
    day, count, details_bytes = fields[2], fields[5], fields[6]
    claimed = StampName(fields[8], day, fields[9], fields[10])
    if claimed != name:
        raise StoreCorrupt(where, f"its header says it is {claimed}: it was copied here from another name")
    stop = STAMP_HEADER_BYTES + count * _ROW.itemsize + TRAILER_BYTES
    if stop + details_bytes > STAMP_READ_MAX:
        raise StoreCorrupt(where, f"no stamp is {stop + details_bytes} bytes long")
    return stop, count, details_bytes


def _encode_days(days: Days) -> bytes:
    """Return the days of a pack's records: count | number of different days | 0 | the days | an index a record."""
    different = distinct(days)
    if len(different) > DAYS_MAX:
        # Towards later days: nothing is taken for older than it is.
        kept = np.concatenate([different[:1], different[-(DAYS_MAX - 1) :]]) if different[0] == NEVER else different
        different = kept[-DAYS_MAX:]
    index = different.searchsorted(days, "left").astype(np.uint8)
    width = _width(len(different))
    packed = index
    if width < 8:
        padded = np.zeros(-(-len(index) * width // 8) * 8 // width, np.uint8)
        padded[: len(index)] = index
        bits = np.unpackbits(padded[:, None], axis=1, count=width, bitorder="little")
        packed = np.packbits(bits.reshape(-1), bitorder="little")
    head = _DETAIL.pack(len(days), len(different), 0)
    return head + different.astype("<u2").tobytes() + packed.tobytes()


def _decode_days(where: str, data: memoryview) -> Days:
    if len(data) < _DETAIL.size:
        raise StoreCorrupt(where, "its details are cut")
    count, number, reserved = _DETAIL.unpack_from(data)
    if not 1 < count <= RECORDS_MAX or not 1 < number <= DAYS_MAX or reserved:
        raise StoreCorrupt(where, "its details are not in a form this program knows")
    width = _width(number)
    start = _DETAIL.size + 2 * number
    stop = start + -(-count * width // 8)
    if len(data) < stop:
        raise StoreCorrupt(where, "its details are cut")
    different = np.frombuffer(data, "<u2", number, _DETAIL.size)
    if bool((different[1:] <= different[:-1]).any()):
        raise StoreCorrupt(where, "its days are not in order")
    packed = np.frombuffer(data, np.uint8, stop - start, start)
    index = packed
    if width < 8:
        bits = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
        index = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    if int(index.max()) >= number:
        raise StoreCorrupt(where, "its details name a day that is not there")
    days: Days = different[index]
    return days


def _width(number: int) -> int:
    """Return how many bits tell one of so many days."""
    return next(width for width in (1, 2, 4, 8) if number <= 1 << width)


def merged(parts: Sequence[Iterator[Seen]]) -> Iterator[Seen]:
    """Yield what several ascending sources say of each pack, together, ascending by pack."""
    heads = [next(part, None) for part in parts]
    while any(head is not None for head in heads):
        pack = min(head.pack for head in heads if head is not None)
        days: Days | None = None
        for at, head in enumerate(heads):
            if head is not None and head.pack == pack:
                days = head.days if days is None else later(days, head.days)
                heads[at] = next(parts[at], None)
        assert days is not None
        yield Seen(pack, days)
