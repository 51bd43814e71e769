"""Relying on others (DESIGN.md §5): a session vouches only for packs that are there and hold what they claim.

- Every pack staged blocks rely on is checked for presence and size before the root is put, and those this session did
  not write once more after it.
- When this system first relies on a foreign pack, one of the records it relies on is read and opened: all such
  packs up to 1,000 of a writer, then a random 1,000, and at most 256 MiB of reading a session.
- Of the sources of new deltas a random 32, of as many packs, are read and must hold what was taken from them.
- A pack that fails is barred, and named. What relied on it is sent again, whole: with this session what its volumes
  have there, with later ones what other volumes have. That is remembered, and the pack is never relied on again.
- Another system whose pack holds other things than it claims is barred, and so is one whose packs were found gone in
  two rounds of a session; after a third round that failed nobody else is relied on. So a session always ends, whatever
  neighbours offer.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt

from engine.errors import ObjectMissing, StateCorrupt, StoreCorrupt
from engine.names import PackName
from engine.packstore import PackStore
from engine.pipeline.resolve import samples
from engine.pipeline.shaping import SourceSample
from engine.seal import open_whole
from engine.state import History, VolumeState
from engine.workers import run_workers

PACKS_OF_WRITER_MAX: Final = 1000
READ_BYTES_MAX: Final = 256 << 20
NAMES_AT_ONCE: Final = 65536
READS_AT_ONCE: Final = 8
SOURCES_READ_MAX: Final = 32
OTHERS_TRUSTED_ROUNDS: Final = 3


class Reliance(msgspec.Struct):
    """The checks of one session over the store its point goes to.

    `beside`: the id of the vault where the store stands in for it: what was found bad there is not relied on either.
    """

    store: PackStore
    history: History
    blocks_subkey: bytes
    chance: random.Random
    beside: bytes | None = None
    trust_history: bool = True
    problems: list[str] = []
    _known_bad: set[int] = set()  # by earlier sessions, and some volume is not healed of it yet
    _suspects: set[bytes] = set()  # other systems of which a pack was found gone
    _rounds_failed: int = 0
    _read_bytes: int = 0
    _gone: set[int] = set()
    _bad: set[int] = set()  # all that ever were in `_gone`
    _sound: set[int] = set()  # keys of the packs of which a source was read
    _held: list[Callable[[], None]] | None = None  # what the index is to be told at the end of `holding`

    def recall(self, volumes: Sequence[str]) -> None:
        """Rely on nothing that earlier sessions found to be bad (*sync*); `volumes` are those of this session.

        What they have there still counts as gone now.
        """
        try:
            known = self.history.bad_packs(self.store.store_id)
            if self.beside is not None and self.beside != self.store.store_id:
                known = {**self.history.bad_packs(self.beside), **known}
        except StateCorrupt as error:
            self.problems.append(f"{error}; packs that turned out to be bad may be relied on again")
            return
        self.store.index.bar(known)
        self._known_bad = {key for key, healed in known.items() if not healed.issuperset(volumes)}
        self._gone |= self._known_bad

    def healed(self, volumes: Sequence[str]) -> None:
        """Remember that `volumes` lean on nothing bad any more: a point of them was committed (*sync*)."""
        if keys := sorted(self._known_bad | self._bad):
            self._note_bad(keys, volumes)

    @property
    def doubts_pages(self) -> bool:
        """Whether pages of older runs may lie in packs that earlier sessions, or a verification, found to be bad."""
        return bool(self._known_bad)

    def bad_pages(self, names: Iterable[PackName]) -> bool:
        """Tell whether any of these packs is one of pages and was found to be bad before."""
        return any(name.kind == "page" and name.key in self._known_bad for name in names)

    def tell(self, problem: str) -> None:
        """Take a sentence for the user, once: what is written again would tell it again."""
        if problem not in self.problems:
            self.problems.append(problem)

    def take_gone(self) -> npt.NDArray[np.uint64]:
        """Return the keys of the packs that turned out to be bad since this was last asked."""
        gone, self._gone = self._gone, set()
        return np.array(sorted(gone), dtype=np.uint64)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Leave the index as it is as long as this lasts: what is found to be bad meanwhile is barred at its end."""
        held: list[Callable[[], None]] = []
        self._held = held
        try:
            yield
        finally:
            self._held = None
            for tell in held:
                tell()

    async def present(self, keys: npt.NDArray[np.uint64], written: frozenset[int]) -> bool:
        """Tell whether all packs of `keys` but those of `written` are there; bar those that are not.

        Raises: StoreUnavailable, StoreRejected.
        """
        absent: list[PackName] = []
        for start in range(0, len(keys), NAMES_AT_ONCE):
            absent += sorted(await self.store.absent(self._names(keys[start : start + NAMES_AT_ONCE], written)))
        for name in absent:
            again = "blocks are sent" if name.kind == "data" else "pages are written"
            self.problems.append(f"object {name} is gone from the vault or has a wrong size; its {again} again")
        if absent:
            await anyio.to_thread.run_sync(self._give_up, absent)
            self._distrust({name.writer for name in absent} - {self.store.writer})
        return not absent

    async def honest(
        self, volumes: Iterable[VolumeState], keys: npt.NDArray[np.uint64], written: frozenset[int]
    ) -> bool:
        """Open one record of each foreign pack relied on for the first time; bar packs and writers that cheat.

        Raises: StoreUnavailable, StoreRejected, StateCorrupt.
        """
        foreign = await anyio.to_thread.run_sync(self._unchecked, keys, written)
        if not foreign:
            return True
        wanted = np.array(sorted(foreign), dtype=np.uint64)
        chosen: dict[int, tuple[bytes, npt.NDArray[np.void]]] = {}
        for state in volumes:
            chosen |= await anyio.to_thread.run_sync(samples, state, wanted, self.chance)
        opened: list[bytes] = []
        failed: list[PackName] = []
        slots = anyio.CapacityLimiter(READS_AT_ONCE)

        async def check(name: PackName, ref: bytes, place: npt.NDArray[np.void]) -> None:
            async with slots:
                length = int(place["length"])
                if self._read_bytes + length > READ_BYTES_MAX:
                    return
                self._read_bytes += length
                if await self._opens(name, ref, int(place["offset"]), length):
                    opened.append(name.hash)
                else:
                    failed.append(name)

        async with anyio.create_task_group() as group:
            for key, (ref, place) in chosen.items():
                group.start_soon(check, foreign[key], ref, place)
        if failed:
            await anyio.to_thread.run_sync(self._give_up, failed)
            self._bar(writers={name.writer for name in failed})
        if opened:
            await anyio.to_thread.run_sync(self._remember, opened)
        return not failed

    async def sound(self, samples: Mapping[int, SourceSample], written: frozenset[int]) -> bool:
        """Read some sources of new deltas, by pack key, and bar the packs of those that do not hold what they must.

        Raises: StoreUnavailable, StoreRejected.
        """
        rest = sorted(set(samples) - self._sound - self._bad)
        count = min(len(rest), SOURCES_READ_MAX - len(self._sound))
        wanted = np.array(self.chance.sample(rest, count), dtype=np.uint64)
        failed: list[PackName] = []
        names = iter(self._names(wanted, written))

        async def check() -> None:
            for name in names:
                sample = samples[name.key]
                self._sound.add(name.key)
                try:
                    (record,) = await self.store.read_records(name, [sample.range()])
                    await anyio.to_thread.run_sync(sample.check, record, str(name))
                except (StoreCorrupt, ObjectMissing) as error:
                    failed.append(name)
                    self.problems.append(f"{error}; what is in this pack is sent again")

        await run_workers(check, READS_AT_ONCE)
        if failed:
            await anyio.to_thread.run_sync(self._give_up, failed)
        return not failed

    async def _opens(self, name: PackName, ref: bytes, offset: int, length: int) -> bool:
        """Read and open one record; a problem names the pack and its writer."""
        try:
            (record,) = await self.store.read_records(name, [(offset, length)])
            open_whole(ref, record, self.blocks_subkey, str(name))
        except (StoreCorrupt, ObjectMissing) as error:
            self.problems.append(
                f"system {name.writer.hex()} offers blocks it does not have: {error}; nothing of its packs is relied "
                "on in this session, the blocks are sent again"
            )
            return False
        return True

    def _give_up(self, names: Sequence[PackName]) -> None:
        keys = [name.key for name in names]
        self._gone.update(keys)
        self._bad.update(keys)
        self._bar(keys)
        self._note_bad(keys, ())

    def _note_bad(self, keys: Sequence[int], healed: Sequence[str]) -> None:
        try:
            self.history.add_bad_packs(self.store.store_id, keys, healed)
        except StateCorrupt as error:
            self.problems.append(f"{error}; packs that turned out to be bad may be relied on again")

    def _distrust(self, writers: set[bytes]) -> None:
        """Bar who fails again: each ghost of one id would otherwise cost a round of its own."""
        self._rounds_failed += 1
        self._bar(writers=writers & self._suspects)
        self._suspects |= writers
        if self._rounds_failed >= OTHERS_TRUSTED_ROUNDS:
            self._to_index(self.store.index.distrust_others)

    def _bar(self, keys: Sequence[int] = (), writers: Iterable[bytes] = ()) -> None:
        self._to_index(partial(self.store.index.bar, keys, writers))

    def _to_index(self, tell: Callable[[], None]) -> None:
        if self._held is None:
            tell()
        else:
            self._held.append(tell)

    def _names(self, keys: npt.NDArray[np.uint64], written: frozenset[int]) -> list[PackName]:
        """Return the packs to be checked: what lies beside the store is relied on for the last point's sake."""
        names = self.store.index.pack_names(keys[~self.store.lies_beside(keys)])
        return [name for name in names if name is not None and name.key not in written]

    def _unchecked(self, keys: npt.NDArray[np.uint64], written: frozenset[int]) -> dict[int, PackName]:
        """Return the foreign packs of which a record is to be opened now, by pack key."""
        foreign = [name for name in self._names(keys, written) if name.writer != self.store.writer]
        # What was opened once may be a million hashes: they are read only if there is something to look up.
        known = self._checked() if foreign and self.trust_history else set()
        by_writer: dict[bytes, list[PackName]] = defaultdict(list)
        for name in foreign:
            if name.hash not in known:
                by_writer[name.writer].append(name)
        picked: dict[int, PackName] = {}
        for names in by_writer.values():
            if len(names) > PACKS_OF_WRITER_MAX:
                names = self.chance.sample(names, PACKS_OF_WRITER_MAX)
            picked.update((name.key, name) for name in names)
        return picked

    def _checked(self) -> set[bytes]:
        try:
            return self.history.checked_packs(self.store.store_id)
        except StateCorrupt as error:
            # Opening a record too many costs a read; ending here would cost every backup from now on.
            self.problems.append(f"{error}; records of other systems are opened again")
            return set()

    def _remember(self, opened: list[bytes]) -> None:
        try:
            self.history.add_checked_packs(self.store.store_id, opened)
        except StateCorrupt as error:
            self.problems.append(f"{error}; records of other systems are opened again in the next session")
