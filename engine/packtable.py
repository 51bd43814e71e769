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
_ROW: Final = struct.Struct("<16s32sII")
DROPPED: Final = 0xFFFFFFFF  # in a row map: this pack is left out

PackRows: TypeAlias = npt.NDArray[np.void]  # dtype PACK_ROW, shape (n,)


def rows_of(names: Iterable[PackName]) -> PackRows:
    """Return the rows of `names`, sorted by hash, each pack once."""
    unique = {name.hash: name for name in names}
    packed = [
        _ROW.pack(name.writer, digest, name.size, KINDS.index(name.kind)) for digest, name in sorted(unique.items())
    ]
    return np.frombuffer(bytearray(b"".join(packed)), PACK_ROW)


def rows_from_bytes(data: Bytes) -> PackRows:
    """Return the rows in `data`, a whole number of them; check them with `fault_in`."""
    return np.frombuffer(data, PACK_ROW)


def sorted_rows(rows: PackRows) -> PackRows:
    """Return `rows` sorted by hash, each hash once."""
    if not len(rows):
        return rows
    _, first = np.unique(_hashes(rows), return_index=True)
    return rows[first]


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


def join_tables(tables: Sequence[PackRows], dropped: Sequence[Mask]) -> tuple[PackRows, list[npt.NDArray[np.uint32]]]:
    """Return the union of pack tables, and for each of them the new row of each of its rows (DROPPED if masked).

    Rows count as the same only if they are so in every field: a table from a neighbour must not change what is
    known of someone else's pack.
    """
    kept = [table[~mask] for table, mask in zip(tables, dropped, strict=True)]
    joined = np.concatenate(kept) if kept else np.zeros(0, PACK_ROW)
    # Fixed width: the zero bytes NumPy strips from the end of strings change neither order nor equality.
    raw = np.ascontiguousarray(joined).view(f"S{PACK_ROW.itemsize}").reshape(-1)
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    maps, at = [], 0
    for mask in dropped:
        row_map = np.full(len(mask), DROPPED, np.uint32)
        count = int((~mask).sum())
        row_map[~mask] = inverse[at : at + count]
        at += count
        maps.append(row_map)
    return joined[first], maps


class PackTable:
    """Finds packs by the 8-byte prefix of their hash; holds `rows` (sorted, checked) and 12 bytes a row."""

    def __init__(self, rows: PackRows) -> None:
        self.rows = rows
        keys = np.ascontiguousarray(rows["hash"][:, :8]).view("<u8").reshape(-1)
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
