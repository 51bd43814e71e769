"""The local map of one volume: `map`, `map.sums`, `head`, `missing`, and the staged pages beside them.

How a commit survives a crash at any instant:
1. `sync_staged` seals what is staged: whole page images with checksums, durable (staging.py).
2. `apply` first reserves the space it will need, so that a full disk ends it while the old map is whole.
3. It writes `head.next`, durably: from here on the old map is given up and the new one is certain. Whoever opens
   the state next finishes what follows, also with the vault away: a begun apply proves that the root was put.
4. The images go over the map, the checksums over `map.sums`, each synced; then `head.next` is renamed to `head`.
5. What was staged is dropped. Found again with its seal, it is known to be applied: the head names the seal.
An empty set over a map that keeps its size changes nothing but the head, which is then replaced in one step.

A head holds the total of all checksums, so that a lost piece of `map.sums` (which would make used pages look
unused) is noticed. The map ends with the head's volume: what lies beyond is cut off or, within the last page,
zero (`tail`: that page's image, when cutting changed it).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk
from adapters.state.missing import MissingBitmap
from adapters.state.pagefile import PAGE_BYTES, WORD_BYTES, PageFile, WordFile, allocate, check_pages, page_sums
from adapters.state.parts import PartFiles
from adapters.state.staging import EVERY_PAGE, Staging, overlay
from engine.block import blocks_in
from engine.errors import SessionAborted, StateCorrupt
from engine.parts import Origins, PartEntries
from engine.state import ENTRY, PAGE_ENTRIES, Entries, Head, Masks, Pages

HEAD_MAGIC: Final = b"FBHEAD\x00\x01"
_U64: Final = (1 << 64) - 1


class _Standing(msgspec.Struct, frozen=True):
    """What the file `head` holds: the head, the total of the map's checksums, the seal applied, the last page."""

    head: Head
    sums: int
    seal: bytes
    tail: bytes

    @property
    def blocks(self) -> int:
        return blocks_in(self.head.volume_bytes)

    @property
    def pages(self) -> int:
        return -(-self.blocks // PAGE_ENTRIES)


class VolumeMap:
    """The state of one volume in `folder` (implements `VolumeState`).

    Opened `writable`, it finishes an apply that a crash cut off, and drops what was staged by a session that died,
    unless that is sealed and `keep_sealed`: an open intent may ask for it. `problem` says in a sentence why the map
    counts as lost (it reads as empty then, and `head` raises), or is None.
    """

    def __init__(self, folder: Path, disk: Disk, *, writable: bool, keep_sealed: bool = True) -> None:
        self._disk, self._lock = disk, threading.RLock()
        self._folder = folder
        if writable:
            disk.make_folder(folder)
        self._head_path, self._next_path = folder / "head", folder / "head.next"
        self.problem: str | None = None
        self._standing = self._load(self._head_path)
        self._pending = self._load(self._next_path) if writable else None
        self._sums_checked = False
        self._map = PageFile(disk.open(folder / "map", writable=writable))
        self._sums = WordFile(disk.open(folder / "map.sums", writable=writable))
        self._missing = MissingBitmap(disk.open(folder / "missing", writable=writable))
        self._staging = Staging(folder, disk, writable=writable, base=self.read)
        self._parts = PartFiles(folder, disk, writable=writable)
        if writable:
            self._recover(keep_sealed)

    @property
    def head(self) -> Head | None:
        """What the map stands at; None: there is no map. Raises: StateCorrupt (it is damaged; until `forget`)."""
        if self.problem is not None:
            raise StateCorrupt(self.problem)
        return self._standing.head if self._standing else None

    def read(self, pages: Pages) -> Entries:
        """Return the map's entries of `pages`, checksums checked. Raises: StateCorrupt."""
        standing = self._settled()
        if standing is None:
            return np.zeros((pages.size, PAGE_ENTRIES), dtype=ENTRY)
        return self._checked(pages)

    def used_pages(self, first: int, stop: int) -> Pages:
        """Return the pages in [first, stop) whose entries are not all zero, without staged changes.

        Raises: StateCorrupt.
        """
        standing = self._settled()
        if standing is None:
            return np.empty(0, dtype=np.int64)
        return self._sums.used_pages(first, min(stop, standing.pages))

    def stage(self, page: int, mask: int, entries: Entries) -> None:
        """Stage the entries of a page that `mask` names. Raises: SessionAborted (also for a full disk)."""
        self._staging.stage(page, mask, entries)

    def staged_pages(self) -> Pages:
        """Return the pages with staged entries, ascending."""
        return self._staging.pages()

    def read_staged(self, pages: Pages) -> tuple[Masks, Entries]:
        """Return masks and entries staged for `pages`; entries outside the mask are undefined."""
        return self._staging.read(pages)

    def current(self, pages: Pages) -> Entries:
        """Return the map's entries with staged ones laid over them. Raises: StateCorrupt."""
        entries = self.read(pages)
        overlay(entries, *self._staging.read(pages))
        return entries

    def parts(self, pages: Pages) -> tuple[PartEntries, Origins]:
        """Return what is known of the parts of the blocks of `pages`, zero where nothing is (parts.py)."""
        return self._parts.read(pages, self.read)

    def stage_parts(self, page: int, mask: int, parts: PartEntries, origins: Origins | None) -> None:
        """Stage what becomes known of the blocks of a page that `mask` names. Raises: StateCorrupt, SessionAborted."""
        self._staging.break_seal()
        self._parts.stage(page, mask, parts, origins)

    def forget_parts(self) -> None:
        """Discard everything known and staged of parts. Raises: SessionAborted."""
        self._parts.forget()

    def sync_staged(self) -> None:
        """Seal what is staged, durably, also if that is nothing: `apply` needs it.

        Raises: StateCorrupt, SessionAborted.
        """
        with self._lock:
            standing = self._settled()
            self._staging.close_set(standing.seal if standing else b"", self._parts.total())

    def discard_staged(self) -> None:
        """Forget what is staged, unless its apply has begun: then it is committed and stays.

        Raises: SessionAborted.
        """
        with self._lock:
            if self._pending is None or self.problem is not None:
                self._drop_staged()

    def forget(self) -> None:
        """Discard the map, its head, its bitmap and what is staged. Raises: SessionAborted."""
        with self._lock:
            self._disk.remove(self._head_path)
            self._disk.remove(self._next_path)
            self._disk.sync_folder(self._folder)
            self._standing = self._pending = self.problem = None
            self._drop_staged()
            self._parts.drop_known()
            self._map.cut(0)
            self._sums.cut(0)
            self._missing.clear()

    def apply(self, head: Head) -> None:
        """Lay the sealed set over the map, durably, then set the head; a second call changes nothing.

        Raises: StateCorrupt (nothing is sealed, or something is damaged), SessionAborted (the disk is full: the
        map is what it was, or, once begun, the next call or the next opening completes it).
        """
        with self._lock:
            base = self._settled()
            seal = self._staging.seal
            if seal is None:
                if base is not None and _same_point(base.head, head):
                    self._drop_staged()
                    return
                raise StateCorrupt(f"{self._folder} holds no finished set of changes for this restore point")
            if base is not None and seal.number == base.seal:
                self._close_apply()
                return
            if seal.base != (base.seal if base else b""):
                raise StateCorrupt(f"{self._folder} has lost the map its set of changes was made for")
            if base is None:
                self._start_anew()
            elif seal.empty and base.blocks == blocks_in(head.volume_bytes):
                self._replace_head(_Standing(head, base.sums, seal.number, b""))
                return
            tail = self._tail(head)
            standing = _Standing(head, 0, seal.number, tail)
            self._reserve(standing)
            standing = msgspec.structs.replace(standing, sums=self._total_after(standing))
            try:
                write_struct(self._next_path, HEAD_MAGIC, standing, self._disk)
            except SessionAborted:
                self._disk.remove(self._next_path)
                raise
            self._pending = standing
            self._finish()

    def missing(self, pages: Pages) -> Masks:
        """Return, per page, which blocks the cache is known to lack; all of them where the bitmap is damaged."""
        return self._missing.read(pages, self._blocks())

    def missing_pages(self, first: int, stop: int) -> Pages:
        """Return the pages in [first, stop) with at least one missing bit."""
        return self._missing.pages(first, stop, self._blocks())

    def set_missing(self, pages: Pages, masks: Masks) -> None:
        """Replace the missing bits of `pages`; durable after `sync_missing`. Raises: SessionAborted."""
        self._missing.write(pages, masks, self._blocks())

    def sync_missing(self) -> None:
        """Make the missing-block bitmap durable. Raises: SessionAborted."""
        self._missing.sync()

    def amend(self, head: Head) -> None:
        """Replace the head by one of the same point, durably. Raises: StateCorrupt, SessionAborted."""
        with self._lock:
            standing = self._settled()
            assert standing is not None
            assert _same_point(standing.head, head)
            write_struct(self._head_path, HEAD_MAGIC, msgspec.structs.replace(standing, head=head), self._disk)
            self._standing = msgspec.structs.replace(standing, head=head)

    def close(self) -> None:
        """Release the files."""
        self._staging.close()
        self._parts.close()
        self._missing.close()
        self._map.file.close()
        self._sums.file.close()

    def _load(self, path: Path) -> _Standing | None:
        try:
            return read_struct(path, HEAD_MAGIC, _Standing, self._disk)
        except StateCorrupt as error:
            self.problem = str(error)
            return None

    def _recover(self, keep_sealed: bool) -> None:
        """Finish an apply that was cut off; drop what was staged and is not sealed, not wanted, or applied already."""
        seal = self._staging.seal if self._staging.adds_up() else None
        if seal is None or not self._parts.adds_up(seal.parts):
            self._parts.drop_staged()
        if self._pending is not None and self.problem is None:
            try:
                if seal is None:
                    raise StateCorrupt(f"{self._next_path} has lost the set of changes it stands for")
                self._finish()
            except StateCorrupt as error:
                self.problem = str(error)
        if seal is not None and self._standing is not None and seal.number == self._standing.seal:
            self._drop_applied()
        elif seal is None or not keep_sealed:
            self._drop_staged()

    def _settled(self) -> _Standing | None:
        """Return what the map stands at, None if there is no map; completes a begun apply, checks the total once."""
        with self._lock:
            if self.problem is not None or (self._standing is None and self._pending is None):
                return None
            if self._pending is not None:
                self._finish()
            assert self._standing is not None
            if not self._sums_checked:
                self._check_total(self._standing)
            return self._standing

    def _check_total(self, standing: _Standing) -> None:
        if self._sums.total(standing.pages) != standing.sums:
            raise StateCorrupt(f"{self._sums.file.path} is damaged: its total does not match the head's")
        self._sums_checked = True

    def _blocks(self) -> int:
        return self._standing.blocks if self._standing else EVERY_PAGE * PAGE_ENTRIES

    def _start_anew(self) -> None:
        """Empty the map: what lies there belongs to no head."""
        self._disk.remove(self._head_path)
        self._disk.remove(self._next_path)
        self._disk.sync_folder(self._folder)
        self._standing = self._pending = self.problem = None
        self._parts.drop_known()
        for file in (self._map, self._sums):
            file.cut(0)
            file.file.sync()

    def _tail(self, head: Head) -> bytes:
        """Return the image the last page gets when entries beyond the volume's end must go; b"" if none must."""
        page, used = divmod(blocks_in(head.volume_bytes), PAGE_ENTRIES)
        if not used:
            return b""
        last = self.current(np.array([page], dtype=np.int64))
        beyond = last[0, used:].view(np.uint8)
        if not beyond.any():
            return b""
        beyond[:] = 0
        return last.tobytes()

    def _reserve(self, standing: _Standing) -> None:
        """Reserve the space of pages that have none yet: a full disk is noticed before anything is overwritten."""
        for pages in self._staging.masks.used(0, standing.pages):
            fresh = pages[(self._sums.read(pages) == 0) & (self._staging.sums.read(pages) != 0)]
            if fresh.size:
                allocate(self._map.file, fresh, PAGE_BYTES)
                allocate(self._sums.file, fresh, WORD_BYTES)

    def _total_after(self, standing: _Standing) -> int:
        """Return the total the checksums will have once the sealed set is applied."""
        stop = standing.pages
        total = self._sums.total(stop)
        for pages in self._staging.masks.used(0, stop):
            new, old = self._staging.sums.read(pages), self._sums.read(pages)
            total += int(new.sum(dtype=np.uint64)) - int(old.sum(dtype=np.uint64))
        if standing.tail:
            last = np.array([stop - 1], dtype=np.int64)
            staged = self._staging.masks.read(last)[0] != 0
            before = self._staging.sums.read(last)[0] if staged else self._sums.read(last)[0]
            total += self._tail_sum(standing) - int(before)
        return total & _U64

    def _tail_sum(self, standing: _Standing) -> int:
        image = np.frombuffer(standing.tail, dtype=np.uint8).reshape(1, PAGE_BYTES)
        return int(page_sums(np.array([standing.pages - 1], dtype=np.int64), image)[0])

    def _finish(self) -> None:
        """Carry out `head.next`: may be begun again at any point, and ends with the same map."""
        standing = self._pending
        assert standing is not None
        seal = self._staging.seal
        if seal is None or seal.number != standing.seal:
            raise StateCorrupt(f"{self._next_path} has lost the set of changes it stands for")
        self._sums_checked = False
        stop, last = standing.pages, np.array([standing.pages - 1], dtype=np.int64)
        for pages in self._staging.groups(stop):
            images, sums = self._staging.whole(pages)
            written = (sums != 0) | (self._sums.read(pages) != 0)
            self._map.write(pages[written], images[written])
        if standing.tail:
            self._map.write(last, np.frombuffer(standing.tail, dtype=np.uint8).reshape(1, PAGE_BYTES))
        self._map.cut(stop)
        self._map.file.sync()
        for pages in self._staging.groups(stop):
            sums = self._staging.sums.read(pages)
            written = (sums != 0) | (self._sums.read(pages) != 0)
            self._sums.write(pages[written], sums[written])
        if standing.tail:
            self._sums.write(last, np.array([self._tail_sum(standing)], dtype=np.uint64))
        self._sums.cut(stop)
        self._sums.file.sync()
        self._check_total(standing)
        self._missing.cut(standing.blocks)
        self._parts.apply(self._staging.masks, self._checked, standing.blocks)
        self._disk.replace(self._next_path, self._head_path)
        self._standing, self._pending = standing, None
        self._close_apply()

    def _replace_head(self, standing: _Standing) -> None:
        self._parts.apply(self._staging.masks, self._checked, standing.blocks)
        write_struct(self._head_path, HEAD_MAGIC, standing, self._disk)
        self._standing = standing
        self._drop_applied()

    def _close_apply(self) -> None:
        self._disk.sync_folder(self._folder)
        self._drop_applied()

    def _drop_applied(self) -> None:
        self._staging.drop_applied()
        self._parts.drop_staged()

    def _drop_staged(self) -> None:
        self._staging.drop()
        self._parts.drop_staged()

    def _checked(self, pages: Pages) -> Entries:
        images = self._map.read(pages)
        check_pages(self._map.file.path, pages, images, self._sums.read(pages))
        return images.view(ENTRY)


def _same_point(known: Head, head: Head) -> bool:
    """Tell whether both are of one restore point: what is known of the cache may have been settled in between."""
    return (known.order, known.incarnation, known.root_hash) == (head.order, head.incarnation, head.root_hash)
