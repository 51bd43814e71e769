"""Restore: a volume of a restore point, streamed in windows from every place that has it to a target.

    runs of the volume, overlaid → window of refs → each content once, from the nearest place, checked against its
    ref → written wherever the window needs it; zero ranges are skipped or zeroed

Rules (DESIGN.md §2): the restore gives the exact bytes or says which blocks it could not give. A block that no place
gives, or whose place in the block map cannot be read, is a hole: it reads as zeros, is listed by number, and the
exit code is 1; everything else is still restored. After every window the target keeps how far it is, and a restore of
the same volume of the same point to the same target goes on from there.

Memory is that of one window of refs read ahead (2 MiB each), of the jobs of `BlockSource` and of what waits to be
written (`writer.py`, 64 MiB and what is on its way).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt
from anyio.streams.memory import MemoryObjectSendStream

from engine.block import BLOCK_BYTES, Bytes, Mask, Refs, block_length
from engine.errors import StoreCorrupt
from engine.events import EventLog
from engine.exitcodes import DONE, FAILED, SOMETHING_MISSING
from engine.names import PackName
from engine.packtable import PackTable
from engine.ports import Clock, RestoreTarget
from engine.recovery.blocksource import BlockSource
from engine.recovery.catalogue import Point
from engine.recovery.pages import PlacesReader
from engine.recovery.places import CACHE, SPOOL, VAULT, sole_error
from engine.recovery.writer import Writer
from engine.root import VolumePoint
from engine.runs import RunReader, Window, overlay, overlay_what_opens

log = EventLog("restore")

WINDOW_BLOCKS: Final = 32768
LEAST_BLOCKS: Final = 1024  # what a page that cannot be read costs at most around it: the blocks of one leaf
HOLES_MAX: Final = 65536  # ranges listed; more are counted

Rows: TypeAlias = npt.NDArray[np.intp]


class RestoreReport(msgspec.Struct, kw_only=True):
    """The document of `restore --json`.

    `resumed`: bytes of the volume that an interrupted restore had done; `from_cache`, `from_vault`, `from_spool`:
    bytes of content each gave since; `holes`: [first block, count] of what could not be given;
    `hole_blocks`: how many blocks that is, also where there are too many ranges to list; `problems`: sentences, also
    about damage that was made good from another place.
    """

    point: str
    system: str
    volume: str
    bytes: int
    blocks: int
    resumed: int = 0
    from_cache: int = 0
    from_vault: int = 0
    from_spool: int = 0
    holes: list[tuple[int, int]] = []
    hole_blocks: int = 0
    problems: list[str] = []
    seconds: float = 0.0
    exit_code: int = DONE


class _Progress(msgspec.Struct, array_like=True):
    """What a target keeps of a restore: of what (hash of the root, volume), how many blocks are done, their holes."""

    version: int
    root: bytes
    volume: str
    done_blocks: int
    holes: list[tuple[int, int]]
    hole_blocks: int


PROGRESS_VERSION: Final = 1


@dataclass(slots=True)
class _Holes:
    """Ranges of blocks that could not be given, merged where they touch; bounded."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    blocks: int = 0

    def add(self, first: int, count: int) -> None:
        """Add a range that begins after all before it."""
        self.blocks += count
        if self.ranges and sum(self.ranges[-1]) == first:
            first, count = self.ranges[-1][0], self.ranges[-1][1] + count
            self.ranges[-1] = first, count
        elif len(self.ranges) < HOLES_MAX:
            self.ranges.append((first, count))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks [first, first + count): their state, and which of them the block map, as far as it opens, tells not."""

    first: int
    count: int
    window: Window
    unknown: Mask | None = None


class Restore:
    """One restore of the volume `name` of `point` to `target`; `run` once.

    `source` gives the blocks; `clock` times it.
    """

    def __init__(
        self,
        point: Point,
        name: str,
        target: RestoreTarget,
        source: BlockSource,
        clock: Clock,
    ) -> None:
        self._point, self._target, self._source, self._clock = point, target, source, clock
        self._volume: VolumePoint = point.volume(name)
        self._writer = Writer(target)
        self._holes = _Holes()
        self._tables: list[PackTable] = []
        self._first = 0  # the first block that is not done yet
        self._from_bytes = self._to_bytes = self._given_before = 0

    @property
    def done_bytes(self) -> int:
        """How much of the volume is done, for a progress display."""
        return min(self._from_bytes + self._source.total_bytes - self._given_before, self._to_bytes)

    async def run(self) -> RestoreReport:
        """Restore everything that can be given, finish the target and return the report.

        Raises: StoreError (no place is left), RestoreError (the target failed), ConfigError (without the recovery
        key), StoreCorrupt (the envelopes do not open); the target is abandoned then.
        """
        started = self._clock.monotonic()
        try:
            await anyio.to_thread.run_sync(self._resume)
            try:
                await self._stream()
            finally:
                self._writer.close()
            await anyio.to_thread.run_sync(self._target.finish)
        except BaseExceptionGroup as group:
            self._give_up()
            raise sole_error(group) from group
        except BaseException:
            self._give_up()
            raise
        return self._report(self._clock.monotonic() - started)

    def _give_up(self) -> None:
        if self._target.begun():
            log.warning("restore_interrupted", volume=self._volume.name, then="the same command goes on where it was")
        self._target.abandon()

    def _resume(self) -> None:
        """Go on from what an interrupted restore of the same volume to this target kept (*sync*)."""
        kept = self._target.begun()
        if not kept:
            return
        try:
            progress = msgspec.msgpack.decode(kept, type=_Progress)
        except msgspec.MsgspecError:
            progress = None
        root = self._point.require_root()
        same = progress is not None and (progress.version, progress.root, progress.volume) == (
            PROGRESS_VERSION,
            root.hash,
            self._volume.name,
        )
        if progress is None or not same or not 0 < progress.done_blocks <= self._volume.blocks:
            self._target.restart()
            return
        self._first = progress.done_blocks
        self._holes = _Holes(progress.holes, progress.hole_blocks)
        self._from_bytes = self._to_bytes = min(self._first * BLOCK_BYTES, self._volume.bytes)
        log.info("restore_resumed", volume=self._volume.name, done_bytes=self._from_bytes)

    def _keep(self, done_blocks: int) -> None:
        root = self._point.require_root().hash
        holes = self._holes
        progress = _Progress(PROGRESS_VERSION, root, self._volume.name, done_blocks, holes.ranges, holes.blocks)
        self._target.keep(msgspec.msgpack.encode(progress))

    async def _stream(self) -> None:
        readers = await self._readers()
        sender, receiver = anyio.create_memory_object_stream[_Piece](1)
        async with anyio.create_task_group() as group, receiver:
            group.start_soon(self._read_ahead, readers, sender)
            async for piece in receiver:
                self._from_bytes, self._given_before = piece.first * BLOCK_BYTES, self._source.total_bytes
                self._to_bytes = min((piece.first + piece.count) * BLOCK_BYTES, self._volume.bytes)
                await self._restore(piece)
                self._from_bytes = self._to_bytes
                if piece.first + piece.count < self._volume.blocks:
                    await anyio.to_thread.run_sync(self._keep, piece.first + piece.count)

    async def _readers(self) -> list[RunReader]:
        access, root = self._point.access, self._point.require_root()
        pages = PlacesReader(self._source, access.keys(root).pages)
        # Opening sixteen envelopes takes milliseconds each.
        opened = await anyio.to_thread.run_sync(lambda: [access.open_envelope(root, run) for run in self._volume.runs])
        readers = [RunReader(pages, run, key) for run, key in zip(self._volume.runs, opened, strict=True)]
        for reader in readers:
            try:
                table = await reader.table()
            except StoreCorrupt as error:
                # What it would have named is looked up by id.
                self._source.places.problems.add(str(error))
                continue
            self._tables.append(table)
            self._source.supply.writers |= {writer.tobytes() for writer in np.unique(table.rows["writer"], axis=0)}
        return readers

    async def _read_ahead(self, readers: Sequence[RunReader], sender: MemoryObjectSendStream[_Piece]) -> None:
        async with sender:
            for first in range(self._first, self._volume.blocks, WINDOW_BLOCKS):
                stop = min(first + WINDOW_BLOCKS, self._volume.blocks)
                async with aclosing(self._pieces(readers, first, stop)) as pieces:
                    async for piece in pieces:
                        try:
                            await sender.send(piece)
                        except anyio.BrokenResourceError:
                            return  # whoever takes them has failed, and says so itself

    async def _pieces(self, readers: Sequence[RunReader], first: int, stop: int) -> AsyncGenerator[_Piece, None]:
        """Yield the state of [first, stop); where a page cannot be read, halve the range until it stands alone."""
        ranges = [(first, stop)]
        while ranges:
            first, stop = ranges.pop()
            try:
                yield _Piece(first, stop - first, await overlay(readers, first, stop))
            except StoreCorrupt as error:
                if stop - first > LEAST_BLOCKS:
                    middle = first + (stop - first) // 2 // LEAST_BLOCKS * LEAST_BLOCKS
                    middle = middle if middle > first else first + LEAST_BLOCKS
                    ranges += [(middle, stop), (first, middle)]
                    continue
                window, unknown, failed = await overlay_what_opens(readers, first, stop)
                for each in failed or [error]:
                    self._source.places.problems.add(str(each))
                yield _Piece(first, stop - first, window, unknown)

    async def _restore(self, piece: _Piece) -> None:
        refs = piece.window.refs
        wanted = np.flatnonzero(refs.view("<u8").any(axis=1))
        await anyio.to_thread.run_sync(self._zero_between, piece.first, piece.count, wanted)
        unknown = np.flatnonzero(piece.unknown) if piece.unknown is not None else np.zeros(0, np.intp)
        if not len(wanted):
            await self._note_holes(piece, unknown)
            return
        unique, first_at, standing = _distinct(refs, wanted)
        failed = np.zeros(len(unique), np.bool_)

        def take(positions: Sequence[int], contents: Sequence[Bytes]) -> None:
            blocks = sorted((piece.first + row, at) for at, each in enumerate(positions) for row in standing.rows(each))
            for at in self._write(blocks, contents):
                failed[positions[at]] = True

        missing = await self._source.give(unique, piece.window.places[first_at], self._resolve, take)
        failed[missing] = True
        await anyio.to_thread.run_sync(self._writer.drain)
        rows = [row for at in np.flatnonzero(failed).tolist() for row in standing.rows(at)]
        await self._note_holes(piece, np.union1d(np.array(rows, np.intp), unknown))

    def _write(self, blocks: Sequence[tuple[int, int]], contents: Sequence[Bytes]) -> list[int]:
        """Have (block, position in `contents`) pairs, ascending, written; return those that fit no block."""
        wrong: list[int] = []
        runs: list[tuple[int, list[Bytes]]] = []
        following = -1
        for block, at in blocks:
            content = contents[at]
            if len(content) != block_length(block, self._volume.bytes):
                wrong.append(at)
                self._source.places.problems.add(
                    f"the block map of restore point {self._point.id} is wrong: it gives block {block} of volume "
                    f"{self._volume.name!r} a content of {len(content)} bytes"
                )
                continue
            if block != following:
                runs.append((block * BLOCK_BYTES, []))
            runs[-1][1].append(content)
            following = block + 1
        self._writer.write(runs)
        return wrong

    async def _note_holes(self, piece: _Piece, rows: np.ndarray) -> None:
        for start, stop in _ranges(rows):
            self._holes.add(piece.first + start, stop - start)
            await anyio.to_thread.run_sync(self._zero, piece.first + start, piece.first + stop)

    def _zero_between(self, first: int, count: int, wanted: np.ndarray) -> None:
        zero: Mask = np.ones(count, np.bool_)
        zero[wanted] = False
        for start, stop in _ranges(np.flatnonzero(zero)):
            self._zero(first + start, first + stop)

    def _zero(self, first: int, stop: int) -> None:
        offset = first * BLOCK_BYTES
        self._target.zero(offset, min(stop * BLOCK_BYTES, self._volume.bytes) - offset)

    def _resolve(self, key: int) -> PackName | None:
        return next((name for table in self._tables if (name := table.find(key)) is not None), None)

    def _report(self, seconds: float) -> RestoreReport:
        volume, holes = self._volume, self._holes
        problems = [*self._point.problems, *self._source.places.problems.listed()]
        unreadable = [
            f"{length} bytes at offset {offset} of volume {volume.name!r} could not be read when the point was made: "
            "what stands there now is not what stood there then"
            for offset, length in volume.unreadable
        ]
        if holes.blocks:
            problems.append(
                f"blocks of volume {volume.name!r} that could not be given, and read as zeros: {holes.blocks}"
            )
        return RestoreReport(
            point=str(self._point.id),
            system=self._point.access.name,
            volume=volume.name,
            bytes=volume.bytes,
            blocks=volume.blocks,
            resumed=min(self._first * BLOCK_BYTES, volume.bytes),
            from_cache=self._source.given_bytes.get(CACHE, 0),
            from_vault=self._source.given_bytes.get(VAULT, 0),
            from_spool=self._source.given_bytes.get(SPOOL, 0),
            holes=holes.ranges,
            hole_blocks=holes.blocks,
            problems=problems + unreadable,
            seconds=round(seconds, 3),
            exit_code=FAILED if holes.blocks else SOMETHING_MISSING if unreadable else DONE,
        )


class _Standing:
    """In which rows of a window each of its distinct refs stands."""

    def __init__(self, rows: Rows, bounds: Rows) -> None:
        """Keep the rows of all refs, one after the other; those of ref i are bounds[i] to bounds[i + 1]."""
        self._rows: list[int] = rows.tolist()
        self._bounds: list[int] = bounds.tolist()

    def rows(self, position: int) -> list[int]:
        """Return the rows of the ref at `position`."""
        return self._rows[self._bounds[position] : self._bounds[position + 1]]


def _distinct(refs: Refs, wanted: Rows) -> tuple[Refs, Rows, _Standing]:
    """Return the distinct refs among the rows `wanted`, in the order they first stand there, that row, and all rows."""
    column = np.ascontiguousarray(refs[wanted]).view("S48").reshape(-1)
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    by_row = np.argsort(first)
    rank = np.empty_like(by_row)
    rank[by_row] = np.arange(len(first))
    inverse = rank[inverse]
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(first) + 1))
    return refs[wanted[first[by_row]]], wanted[first[by_row]], _Standing(wanted[order], bounds)


def _ranges(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return ascending numbers as half-open ranges."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1)
    starts = rows[np.concatenate(([0], breaks + 1))]
    stops = rows[np.concatenate((breaks, [len(rows) - 1]))] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
