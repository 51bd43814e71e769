"""The local mirror of one store's index: fragments as they lie in the store, and the mirror's own merges of them.

A merge lists exactly which fragments it stands for, so that whatever leaves the store can leave the mirror: an
entry without a fragment in the store behind it is a ghost. All methods are *sync*, for one thread at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3

from engine.block import Mask
from engine.columns import U32, Columns, Listing, SourceRows
from engine.errors import StateCorrupt, StoreCorrupt
from engine.fragment import INDEX_HEADER_BYTES, Fragment, Layout, open_fragment, view_fragment
from engine.merge import count_kept, count_kept_sources, in_order, merge_listings
from engine.names import FragmentName
from engine.packtable import JoinedTable, PackRows
from engine.ports import MirrorFiles
from engine.removal import REMOVALS_PREFIX
from engine.subkeys import DomainKeys
from engine.view import View

VIEWS_MAX: Final = 6  # of own and of foreign fragments each; more are merged
MERGED_AT_ONCE_MAX: Final = 32
CHECKED_BYTES_MAX: Final = 2 << 20  # mirror files up to this size are hashed whenever they are opened

_LABEL: Final = b"forebay mirror v1\0"
_MAGIC: Final = b"FBLOCAL\x01"
_HEADER: Final = struct.Struct("<8sII16s16sIII20x")
_COVER: Final = struct.Struct("<16s8sII32s")
_VERSION: Final = 2
_SEAL_BYTES: Final = 64
_ROWS_AT_ONCE: Final = 1 << 16


class Stamp(NamedTuple):
    """What a fragment in the store was when it was mirrored: its size in bytes and its checksum (32 bytes)."""

    size: int
    checksum: bytes


class Local(msgspec.Struct, frozen=True, eq=False):
    """One file of the mirror. `contents`: the fragments whose entries it has; `superseded`: those they stand for."""

    file: str
    view: View
    contents: Mapping[FragmentName, Stamp]
    superseded: frozenset[FragmentName]

    def writers(self) -> set[bytes]:
        """Return whose fragments it has."""
        return {name.writer for name in self.contents}


class Mirror:
    """What of a store's index is held locally, in at most `views_max` own and as many foreign files."""

    def __init__(self, files: MirrorFiles, keys: DomainKeys, writer: bytes, *, views_max: int = VIEWS_MAX) -> None:
        self._files, self._keys, self._writer, self._views_max = files, keys, writer, views_max
        self._locals: dict[str, Local] = {}
        self._loaded = False
        self._number = 0

    def load(self) -> None:
        """Open what the folder holds, once; files that are damaged or stood for by a merge are removed."""
        if self._loaded:
            return
        names = [name for name in self._files.names() if not name.startswith(REMOVALS_PREFIX)]
        merges = sorted((name for name in names if name.startswith("merged/")), key=_number_of, reverse=True)
        held: set[FragmentName] = set()
        # Newest merges first: where two overlap, a merge was interrupted, and the older one is to go.
        for file in [*merges, *(name for name in names if not name.startswith("merged/"))]:
            local = self._open(file)
            if local is None or not held.isdisjoint(local.contents):
                self._files.remove(file)
                continue
            held.update(local.contents)
            self._locals[file] = local
        self._number = max(map(_number_of, merges), default=0)
        self._loaded = True

    def held(self) -> dict[FragmentName, Stamp]:
        """Return the fragments whose entries are here."""
        return {name: stamp for local in self._locals.values() for name, stamp in local.contents.items()}

    def superseded(self) -> set[FragmentName]:
        """Return the fragments that merged fragments of the store, held here, stand for."""
        return {name for local in self._locals.values() for name in local.superseded}

    def views(self) -> tuple[list[View], list[View]]:
        """Return (own views, foreign views), the largest first."""
        views = sorted((local.view for local in self._locals.values()), key=len, reverse=True)
        return [view for view in views if view.own], [view for view in views if not view.own]

    def add(self, data: bytes, fragment: Fragment) -> None:
        """Keep a fragment that was checked. Raises: StateCorrupt."""
        file = str(fragment.name)
        self._files.publish(file, data)
        local = self._open(file)
        if local is None:
            raise StateCorrupt(f"the index mirror does not give back what was just written to it ({file})")
        self._locals[file] = local

    def reconcile(self, listed: Collection[FragmentName], writers: Collection[bytes]) -> None:
        """Let go of every fragment that is no longer listed, was merged in the store, or is not of `writers`.

        A merge cannot let go of one fragment of a writer: all of that writer's go, to be fetched again.
        """
        superseded = self.superseded()
        for local in list(self._locals.values()):
            gone = {
                name.writer
                for name in local.contents
                if name not in listed or name in superseded or name.writer not in writers
            }
            if gone:
                self._without(local, gone)

    def compact(self) -> None:
        """Merge the smallest files until few enough views are left.

        With every one goes the next larger one, as long as that has at most twice what goes already: so sizes stay far
        apart, most entries lie in one or two files, and over 610 fragments, of 160 million blocks, an entry is
        written 5.6 times in all. (A fixed number of files at a time writes it 26 times.)
        """
        for own in (True, False):
            group = sorted((local for local in self._locals.values() if local.view.own is own), key=_entries)
            while len(group) > self._views_max:
                count = _merged_together([len(local.view) for local in group])
                merged = self._merge(group[:count], frozenset())
                group = sorted([*group[count:], *([merged] if merged else [])], key=_entries)

    def _without(self, local: Local, writers: set[bytes]) -> None:
        if local.writers() <= writers:
            self._remove(local)
        else:
            self._merge([local], frozenset(writers))

    def _remove(self, local: Local) -> None:
        del self._locals[local.file]
        self._files.remove(local.file)

    def _merge(self, parts: Sequence[Local], without: frozenset[bytes]) -> Local | None:
        """Replace `parts` by one merge of them that leaves out all packs of the writers in `without`.

        Damaged ones only go, to be fetched again; None: all of them were.
        """
        sound = [part for part in parts if in_order(part.view.listing)]
        merged = self._write_merge(sound, without) if sound else None
        for part in parts:
            self._remove(part)
        if merged is not None:
            self._locals[merged.file] = merged
        return merged

    def _write_merge(self, parts: Sequence[Local], without: frozenset[bytes]) -> Local:
        contents = {name: s for part in parts for name, s in part.contents.items() if name.writer not in without}
        superseded = {name for part in parts for name in part.superseded if name.writer not in without}
        self._number += 1
        file = f"merged/{'own' if parts[0].view.own else 'foreign'}-{self._number:08x}"
        covers = b"".join(
            [_COVER.pack(n.writer, n.incarnation, n.sequence, *stamp) for n, stamp in sorted(contents.items())]
            + [_COVER.pack(n.writer, n.incarnation, n.sequence, 0, bytes(32)) for n in sorted(superseded)]
        )
        views = [part.view for part in parts]
        table = JoinedTable([view.rows for view in views], [_rows_of_writers(view.rows, without) for view in views])
        mapped = list(zip((view.listing for view in views), table.maps, strict=True))
        entries = sum(count_kept(part.columns, row_map) for part, row_map in mapped)
        sources = sum(count_kept_sources(part, row_map) for part, row_map in mapped)
        layout = Layout(entries, len(table), len(covers) // _COVER.size, sources, cover_bytes=_COVER.size)
        sealed = layout.trailer + len(table)
        buffer = self._files.create(file, sealed + _SEAL_BYTES)
        header = (_MAGIC, _VERSION, entries, self._keys.domain, self._writer, layout.packs, layout.covers, sources)
        buffer[:INDEX_HEADER_BYTES] = _HEADER.pack(*header)
        listed = _fill(layout.columns(buffer), _source_rows(layout, buffer), len(table), merge_listings(mapped))
        _fill_table(buffer[layout.table : layout.cover_list], table)
        buffer[layout.cover_list : layout.source_list] = covers
        buffer[layout.trailer : sealed] = listed.tobytes()
        checksum = blake3(buffer[:sealed]).digest()
        buffer[sealed:] = checksum + self._keys.mac(_LABEL, checksum)
        self._files.publish(file, buffer)
        merged = self._open(file)
        if merged is None:
            raise StateCorrupt(f"the index mirror does not give back what was just written to it ({file})")
        return merged

    def _open(self, file: str) -> Local | None:
        """Return a file of the mirror, or None if it is damaged, of another domain, or none of ours."""
        name = FragmentName.parse(file)
        own = file.startswith("merged/own-")
        try:
            data = self._files.open(file)
            if name is not None:
                fragment = self._reopen(name, data)
                contents = {name: Stamp(len(data), fragment.checksum)}
                return Local(file, fragment.view(self._writer), contents, frozenset(fragment.covers))
            return self._open_merge(file, data, own) if own or file.startswith("merged/foreign-") else None
        except (StoreCorrupt, StateCorrupt):
            return None

    def _reopen(self, name: FragmentName, data: memoryview) -> Fragment:
        if len(data) <= CHECKED_BYTES_MAX:
            return open_fragment(name, data, self._keys, None)
        return view_fragment(name, data, self._keys.domain)

    def _open_merge(self, file: str, data: memoryview, own: bool) -> Local:
        if len(data) < INDEX_HEADER_BYTES + _SEAL_BYTES:
            raise StoreCorrupt(file, "it is cut")
        magic, version, entries, domain, writer, packs, covers, sources = _HEADER.unpack_from(data)
        layout = Layout(entries, packs, covers, sources, cover_bytes=_COVER.size)
        sealed = layout.trailer + packs
        if (magic, version, domain, writer) != (_MAGIC, _VERSION, self._keys.domain, self._writer):
            raise StoreCorrupt(file, "it is not a merge of this mirror")
        if sealed + _SEAL_BYTES != len(data):
            raise StoreCorrupt(file, "its counts do not fit its length")
        if len(data) <= CHECKED_BYTES_MAX:
            checksum = blake3(data[:sealed]).digest()
            if bytes(data[sealed:]) != checksum + self._keys.mac(_LABEL, checksum):
                raise StoreCorrupt(file, "its checksum does not fit its bytes")
        contents: dict[FragmentName, Stamp] = {}
        superseded: set[FragmentName] = set()
        for of, incarnation, sequence, size, checksum in _COVER.iter_unpack(
            data[layout.cover_list : layout.source_list]
        ):
            if size:
                contents[FragmentName(of, incarnation, sequence)] = Stamp(size, checksum)
            else:
                superseded.add(FragmentName(of, incarnation, sequence))
        listed = np.frombuffer(data, np.bool_, packs, layout.trailer)
        view = View(layout.columns(data), layout.rows(data), own, _source_rows(layout, data), listed)
        return Local(file, view, contents, frozenset(superseded))


def _source_rows(layout: Layout, data: memoryview) -> SourceRows:
    """Return the source rows of a merge: two columns, unlike a fragment's, so that they are searched where they lie."""
    at, count = layout.source_list, layout.sources
    return SourceRows(np.frombuffer(data, U32, count, at), np.frombuffer(data, U32, count, at + 4 * count))


def _fill(columns: Columns, sources: SourceRows, packs: int, chunks: Iterable[Listing]) -> Mask:
    """Write all chunks one after the other; return which of the packs are listed."""
    listed: Mask = np.zeros(packs, np.bool_)
    at = sources_at = 0
    for chunk, rows in chunks:
        stop, sources_stop = at + chunk.entries, sources_at + len(rows.entry)
        columns.lo[at:stop], columns.hi[at:stop] = chunk.lo, chunk.hi
        columns.pack[at:stop], columns.offset[at:stop], columns.length[at:stop] = chunk.pack, chunk.offset, chunk.length
        sources.entry[sources_at:sources_stop] = rows.entry + U32.type(at)
        sources.pack[sources_at:sources_stop] = rows.pack
        listed[chunk.pack] = True
        at, sources_at = stop, sources_stop
    assert (at, sources_at) == (columns.entries, len(sources.entry))
    return listed


def _fill_table(buffer: memoryview, table: JoinedTable) -> None:
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = table.rows(start, start + _ROWS_AT_ONCE)
        at = start * rows.itemsize
        buffer[at : at + rows.nbytes] = rows.tobytes()


def _rows_of_writers(rows: PackRows, writers: Collection[bytes]) -> Mask:
    found: Mask = np.zeros(len(rows), np.bool_)
    for writer in writers:
        found |= (rows["writer"] == np.frombuffer(writer, np.uint8)).all(axis=1)
    return found


def _entries(local: Local) -> int:
    return len(local.view)


def _merged_together(entries: Sequence[int]) -> int:
    """Return how many of the smallest files to merge; `entries` of each, ascending."""
    count, total = 2, sum(entries[:2])
    while count < min(len(entries), MERGED_AT_ONCE_MAX) and entries[count] <= 2 * total:
        total += entries[count]
        count += 1
    return count


def _number_of(file: str) -> int:
    digits = file.rpartition("-")[2]
    return int(digits, 16) if len(digits) == 8 and set(digits) <= set("0123456789abcdef") else 0
