"""Rows that name packs in tables: 56 bytes each, in pack tables of runs and of index fragments alike.

A row is `writer 16 | hash 32 | size u32 | kind u32` (0 data, 1 page). Tables are sorted by hash, without repeats.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import Bytes, Mask
from engine.names import PackName

PACK_ROW: Final = np.dtype([("writer", "u1", (16,)), ("hash", "u1", (32,)), ("size", "<u4"), ("kind", "<u4")])
PACK_ROW_BYTES: Final = PACK_ROW.itemsize
PACK_BYTES_MAX: Final = 80 << 20  # nothing larger is taken for a pack
KINDS: Final = ("data", "page")
DROPPED: Final = 0xFFFFFFFF  # in a row map: this pack is left out

_PACKED: Final = struct.Struct("<16s32sII")
# The first eight bytes of the hash in a row.
_KEYS: Final = np.dtype({"names": ["key"], "formats": ["<u8"], "offsets": [16], "itemsize": PACK_ROW_BYTES})
_SLICE: Final = 1 << 16

PackRows: TypeAlias = npt.NDArray[np.void]  # dtype PACK_ROW, shape (n,)


def rows_of(names: Iterable[PackName]) -> PackRows:
    """Return the rows of `names`, sorted by hash, each pack once."""
    unique = {name.hash: name for name in names}
    packed = [
        _PACKED.pack(name.writer, digest, name.size, KINDS.index(name.kind)) for digest, name in sorted(unique.items())
    ]
    return np.frombuffer(bytearray(b"".join(packed)), PACK_ROW)


def rows_from_bytes(data: Bytes) -> PackRows:
    """Return the rows in `data`, a whole number of them; check them with `fault_in`."""
    return np.frombuffer(data, PACK_ROW)


def sorted_rows(rows: PackRows) -> PackRows:
    """Return `rows` sorted by hash, each hash once; themselves, if they are: a table may have millions."""
    hashes = _hashes(rows)
    if bool((hashes[1:] > hashes[:-1]).all()):
        return rows
    order = hashes.argsort(kind="stable")
    first: Mask = np.ones(len(order), np.bool_)
    for start in range(1, len(order), _SLICE):
        part = order[start - 1 : start + _SLICE]
        first[start : start + _SLICE] = hashes[part[1:]] != hashes[part[:-1]]
    del hashes
    return rows[order[first]]


def with_rows(rows: PackRows, more: PackRows) -> PackRows:
    """Return `rows` and what they lack of a few others, both sorted by hash, each hash once."""
    hashes, wanted = _hashes(rows), _hashes(more)
    at = hashes.searchsorted(wanted)
    lacking: Mask = np.ones(len(wanted), np.bool_)
    (inside,) = (at < len(hashes)).nonzero()
    lacking[inside] = hashes[at[inside]] != wanted[inside]
    del hashes
    return np.insert(rows, at[lacking], more[lacking]) if lacking.any() else rows


def order_of(rows: PackRows) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of the hashes as numbers that ascend where the hashes do."""
    return np.ascontiguousarray(rows["hash"][:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def pack_name(row: np.void) -> PackName:
    """Return the name of the pack a checked row stands for."""
    return PackName(KINDS[int(row["kind"])], row["writer"].tobytes(), row["hash"].tobytes(), int(row["size"]))


def pack_names(rows: PackRows) -> list[PackName]:
    """Return the names of the packs that checked rows stand for; `pack_name` costs several times as much a row."""
    raw = rows.tobytes()
    starts = range(0, len(raw), PACK_ROW_BYTES)
    columns = zip(starts, rows["size"].tolist(), rows["kind"].tolist(), strict=True)
    return [PackName(KINDS[kind], raw[at : at + 16], raw[at + 16 : at + 48], size) for at, size, kind in columns]


def fault_in(rows: PackRows) -> str | None:
    """Say what is wrong with a table read from a store (order, kinds, sizes), or None."""
    hashes = _hashes(rows)
    if not bool((hashes[1:] > hashes[:-1]).all()):
        return "its packs are not in ascending order"
    if bool((rows["kind"] >= len(KINDS)).any()):
        return "it names a pack of an unknown kind"
    if bool(((rows["size"] == 0) | (rows["size"] > PACK_BYTES_MAX)).any()):
        return "it names a pack of an impossible size"
    return None


def keys_of(rows: PackRows) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of the hashes, as places hold them, where they lie: a copy of nothing."""
    keys: npt.NDArray[np.uint64] = rows.view(_KEYS)["key"]
    return keys


class JoinedTable:
    """The union of pack tables. Its rows stay where they are until they are asked for; it holds 12 bytes for each.

    `maps`: for each table the new row of each of its rows, DROPPED if `dropped` says so. Rows count as the same only
    if they are so in every field: a table from a neighbour must not change what is known of someone else's pack.
    (Where several packs share a key, by a freak or forgery, one may be there twice.)
    """

    def __init__(self, tables: Sequence[PackRows], dropped: Sequence[Mask] | None = None) -> None:
        self._tables = tables
        self._bases = np.cumsum([0, *map(len, tables)])
        left = [np.arange(len(table)) for table in tables]
        if dropped is not None:
            left = [np.flatnonzero(~mask) for mask in dropped]
        parts = list(zip(tables, left, self._bases.tolist(), strict=False))
        keys = np.concatenate([np.empty(0, np.uint64), *(keys_of(table)[rows] for table, rows, _ in parts)])
        at = np.concatenate([np.empty(0, np.intp), *(rows + base for _, rows, base in parts)])
        order = keys.argsort(kind="stable")
        keys, at = keys[order], at[order]
        new: Mask = np.ones(len(at), np.bool_)
        (twice,) = (keys[1:] == keys[:-1]).nonzero()
        for start in range(0, len(twice), _SLICE):
            second = twice[start : start + _SLICE] + 1
            new[second] = (self._words(at[second]) != self._words(at[second - 1])).any(axis=1)
        self._at = at[new]
        both = np.full(self._bases[-1], DROPPED, np.uint32)
        both[at] = np.cumsum(new) - 1
        self.maps = [both[base : base + len(table)] for table, base in zip(tables, self._bases.tolist(), strict=False)]

    def __len__(self) -> int:
        return len(self._at)

    def rows(self, start: int = 0, stop: int | None = None) -> PackRows:
        """Return a copy of the rows in [start, stop)."""
        return self._words(self._at[start:stop]).reshape(-1).view(PACK_ROW)

    def _words(self, at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
        words = np.empty((len(at), PACK_ROW_BYTES // 8), np.uint64)
        of = self._bases.searchsorted(at, "right") - 1
        for number, table in enumerate(self._tables):
            (here,) = (of == number).nonzero()
            words[here] = table.view(np.uint64).reshape(-1, PACK_ROW_BYTES // 8)[at[here] - self._bases[number]]
        return words


class PackTable:
    """Finds packs by the 8-byte prefix of their hash; holds `rows` (sorted, checked) and 12 bytes a row."""

    def __init__(self, rows: PackRows) -> None:
        self.rows = rows
        keys = keys_of(rows)
        self._order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._keys = keys[self._order]

    def find(self, key: int) -> PackName | None:
        """Return the pack whose hash begins with `key` (little-endian), or None."""
        at = int(np.searchsorted(self._keys, np.uint64(key)))
        if at == len(self._keys) or int(self._keys[at]) != key:
            return None
        return pack_name(self.rows[int(self._order[at])])

    def names(self) -> list[PackName]:
        """Return the names of all packs, sorted by hash."""
        return pack_names(self.rows)


def _hashes(rows: PackRows) -> npt.NDArray[np.bytes_]:
    # Of one width, so that the zero bytes NumPy strips from the end change neither order nor equality.
    return np.ascontiguousarray(rows["hash"]).view("S32").reshape(-1)
