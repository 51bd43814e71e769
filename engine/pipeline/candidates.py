"""Candidates: which blocks of a volume a session looks at, page by page, and which of them it has to read.

A candidate lies in a hole (it is zero and is not read) or has data (it is read, hashed and compared). Without
hints every block is a candidate, but a range that is a hole now and zero in the map costs nothing: only pages
with data and pages the map has something for are visited, so that a sparse volume of 1 TiB takes the time of
what is in it. With hints, candidates are: the hinted extents ∪ blocks the cache is known to lack ∪ blocks that
were unreadable ∪ whatever a change of size touches. A sample of the others is looked at along with them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along, masks_of, rows_of
from engine.block import BATCH_BLOCKS, BLOCK_BYTES, Mask, blocks_in
from engine.ports import VolumeReader
from engine.state import Masks, Pages, VolumeState

WINDOW_PAGES = 4096  # 16 GiB of volume: 256 Ki booleans a window, whatever the volume's size
WORK_PAGES_MAX = 64

_NO_PAGES: Pages = np.empty(0, dtype=np.int64)


class Work(msgspec.Struct, frozen=True):
    """What one hop to a worker thread does: up to 64 pages, at most 64 blocks to read unless it is one page.

    `read`, `zero`: what has data, what lies in holes; `force`: of `read`, those the vault is asked about again although
    nothing changed (their pack turned out to be unusable); `sample`: of both, those no candidates, only looked at to
    see whether the hints tell the truth. One mask a page.
    """

    pages: Pages
    read: Masks
    zero: Masks
    force: Masks
    sample: Masks


class CandidatePlan(msgspec.Struct, frozen=True):
    """Where to look: `extents` None means everywhere (full compare), else merged (offset, length) pairs in bytes.

    `volume_bytes` is the size now, `parent_bytes` that of the map; `missing_unknown`: nothing is known of what
    the cache holds, so that every block of the map is a candidate for it; `sample`: blocks to look at besides, int64,
    ascending.
    """

    volume_bytes: int
    parent_bytes: int
    extents: list[tuple[int, int]] | None
    missing_unknown: bool = False
    heal: bool = False
    unreadable: list[int] = []
    sample: npt.NDArray[np.int64] = _NO_PAGES


def candidates(reader: VolumeReader, state: VolumeState, plan: CandidatePlan) -> Iterator[Work]:
    """Yield the work of a whole volume, ascending (*sync*, in a worker thread). Raises: SourceError, StateCorrupt."""
    blocks = max(blocks_in(plan.volume_bytes), blocks_in(plan.parent_bytes))
    pages_total = -(-blocks // BATCH_BLOCKS)
    extents = None if plan.extents is None else _with_edges(plan)
    cursor = 0
    for first in range(0, pages_total, WINDOW_PAGES):
        stop = min(first + WINDOW_PAGES, pages_total)
        wanted = sample = None
        if extents is not None:
            wanted, cursor = _wanted(extents, cursor, plan, state, first, stop)
            sample = _sampled(plan, first, stop) & ~wanted
            wanted |= sample
            if not wanted.any():
                continue
        yield from _window(reader, state, plan, first, stop, wanted, sample)


def forced(pages: Pages, masks: Masks) -> Iterator[Work]:
    """Yield the work that sends given blocks again: they are read, and the vault is asked about each."""
    zero = np.zeros(len(pages), dtype=np.uint64)
    yield from _grouped(pages, masks, zero, masks, zero)


def _with_edges(plan: CandidatePlan) -> list[tuple[int, int]]:
    """Return the hinted extents and what a change of size touches: the short last block before and after it."""
    extents = list(plan.extents or ())
    if plan.parent_bytes != plan.volume_bytes:
        low = min(plan.parent_bytes, plan.volume_bytes) // BLOCK_BYTES * BLOCK_BYTES
        high = max(plan.parent_bytes, plan.volume_bytes)
        extents.append((low, high - low))
        extents.sort()
    return extents


def _wanted(
    extents: list[tuple[int, int]], cursor: int, plan: CandidatePlan, state: VolumeState, first: int, stop: int
) -> tuple[Mask, int]:
    """Return the candidates of a window as `bool[pages, 64]`, and where in `extents` the next window starts."""
    low, high = first * BATCH_BLOCKS, stop * BATCH_BLOCKS
    wanted = np.zeros(high - low, dtype=np.bool_)
    position = cursor
    while position < len(extents) and extents[position][0] < high * BLOCK_BYTES:
        offset, length = extents[position]
        begin, end = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        wanted[max(begin - low, 0) : max(min(end, high) - low, 0)] = True
        # An extent that reaches into the next window, and all after it, are looked at again there.
        if end <= high and position == cursor:
            cursor += 1
        position += 1
    for block in plan.unreadable:
        if low <= block < high:
            wanted[block - low] = True
    rows = wanted.reshape(-1, BATCH_BLOCKS)
    if plan.heal:
        if plan.missing_unknown:
            rows[state.used_pages(first, stop) - first] = True
        else:
            lacking = state.missing_pages(first, stop)
            rows[lacking - first] |= rows_of(state.missing(lacking))
    return rows, cursor


def _sampled(plan: CandidatePlan, first: int, stop: int) -> Mask:
    """Return the sample in a window as `bool[pages, 64]`."""
    rows = np.zeros((stop - first) * BATCH_BLOCKS, dtype=np.bool_)
    low, high = np.searchsorted(plan.sample, (first * BATCH_BLOCKS, stop * BATCH_BLOCKS)).tolist()
    rows[plan.sample[low:high] - first * BATCH_BLOCKS] = True
    return rows.reshape(-1, BATCH_BLOCKS)


def _window(
    reader: VolumeReader,
    state: VolumeState,
    plan: CandidatePlan,
    first: int,
    stop: int,
    wanted: Mask | None,
    sample: Mask | None,
) -> Iterator[Work]:
    low, high = first * BATCH_BLOCKS, stop * BATCH_BLOCKS
    data = np.zeros(high - low, dtype=np.bool_)
    begin, end = low * BLOCK_BYTES, min(high * BLOCK_BYTES, plan.volume_bytes)
    if begin < end:
        for offset, length in reader.data_extents(begin, end):
            data[offset // BLOCK_BYTES - low : -(-(offset + length) // BLOCK_BYTES) - low] = True
    has_data = data.reshape(-1, BATCH_BLOCKS)
    visit = any_along(has_data if wanted is None else has_data & wanted)
    used = state.used_pages(first, stop)
    visit[used - first] |= True if wanted is None else any_along(wanted[used - first])
    rows = np.flatnonzero(visit)
    if not rows.size:
        return
    # The last page's entries beyond the end, of the volume as it is and was, are nobody's blocks.
    blocks = max(blocks_in(plan.volume_bytes), blocks_in(plan.parent_bytes))
    exists = (rows[:, None] + first) * BATCH_BLOCKS + np.arange(BATCH_BLOCKS) < blocks
    read, zero = has_data[rows], ~has_data[rows] & exists
    if wanted is not None:
        read, zero = read & wanted[rows], zero & wanted[rows]
    pages: Pages = rows.astype(np.int64) + first
    none = np.zeros(len(pages), dtype=np.uint64)
    drawn = none if sample is None else masks_of(sample[rows])
    yield from _grouped(pages, masks_of(read), masks_of(zero), none, drawn)


def _grouped(pages: Pages, read: Masks, zero: Masks, force: Masks, sample: Masks) -> Iterator[Work]:
    """Cut pages into hops: a page that is read whole is one hop, scattered blocks share one."""
    counts = np.bitwise_count(read).astype(np.int64)
    start = 0
    held = 0
    for position, count in enumerate(counts.tolist()):
        if position > start and (held + count > BATCH_BLOCKS or position - start >= WORK_PAGES_MAX):
            cut = slice(start, position)
            yield Work(pages[cut], read[cut], zero[cut], force[cut], sample[cut])
            start, held = position, 0
        held += count
    if start < len(pages):
        cut = slice(start, len(pages))
        yield Work(pages[cut], read[cut], zero[cut], force[cut], sample[cut])
