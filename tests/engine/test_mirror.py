"""The local mirror of an index: merges, what leaves it, what a crash leaves in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import mirror as mirror_module
from engine.acks import PackAck
from engine.fragment import encode_fragment, open_fragment
from engine.mirror import VIEWS_MAX, Mirror
from engine.names import FragmentName
from engine.subkeys import DomainKeys
from engine.view import View
from tests.engine.fakes_packs import ALICE, BOB, MemoryMirror, Team, ack, random_ids

TEAM = Team(members=[b"a" * 16, b"b" * 16, b"c" * 16])
CAROL = b"c" * 16
GENERATOR = np.random.default_rng(7)


def name(writer: bytes, sequence: int) -> FragmentName:
    return FragmentName(writer, b"i" * 8, sequence)


class Shelf:
    """A mirror and what went into it."""

    def __init__(self) -> None:
        self.files: MemoryMirror = MemoryMirror()
        self.mirror = self.reopened()
        self.packs: dict[FragmentName, list[PackAck]] = {}

    def reopened(self) -> Mirror:
        self.mirror = Mirror(self.files, TEAM.keys, ALICE)
        self.mirror.load()
        return self.mirror

    def add(self, fragment: FragmentName, entries: int = 5, covers: tuple[FragmentName, ...] = ()) -> None:
        seed = len(self.packs) + 1000 * fragment.sequence
        packs = [ack(fragment.writer, seed, random_ids(GENERATOR, entries))]
        data = encode_fragment(fragment, packs, TEAM.keys, TEAM.signer(fragment.writer), covers)
        self.mirror.add(data, open_fragment(fragment, data, TEAM.keys, TEAM))
        self.packs[fragment] = packs

    def check(self, expected: set[FragmentName]) -> None:
        """Every entry of the expected fragments is there once, and nothing else."""
        assert set(self.mirror.held()) == expected
        own, foreign = self.mirror.views()
        assert all(view.own for view in own)
        for views, mine in ((own, True), (foreign, False)):
            wanted = Counter(
                (*row, pack.name.key)
                for each in expected
                if (each.writer == ALICE) == mine
                for pack in self.packs[each]
                for row in pack.ids.tolist()
            )
            assert Counter(entry for view in views for entry in entries(view)) == wanted


def entries(view: View) -> list[tuple[int, int, int]]:
    columns = view.columns
    listed = list(zip(columns.lo.tolist(), columns.hi.tolist(), view.keys[columns.pack].tolist(), strict=True))
    assert [each[:2] for each in listed] == sorted(each[:2] for each in listed)
    return listed


def filled(writers: tuple[bytes, ...] = (ALICE, BOB, CAROL), fragments: int = 12) -> tuple[Shelf, set[FragmentName]]:
    shelf = Shelf()
    names = [name(writer, sequence) for writer in writers for sequence in range(1, fragments + 1)]
    for each in names:
        shelf.add(each)
    return shelf, set(names)


def test_compaction_leaves_few_views_with_every_entry() -> None:
    shelf, names = filled()
    shelf.mirror.compact()
    own, foreign = shelf.mirror.views()
    assert len(own) <= VIEWS_MAX
    assert len(foreign) <= VIEWS_MAX
    shelf.check(names)
    shelf.reopened()
    shelf.check(names)


def test_hundreds_of_fragments_are_merged_in_several_turns() -> None:
    shelf, names = filled((ALICE,), 100)
    shelf.mirror.compact()
    shelf.check(names)
    assert len(shelf.files.files) <= VIEWS_MAX


def test_a_large_fragment_is_not_rewritten_with_every_small_one() -> None:
    shelf = Shelf()
    shelf.add(name(ALICE, 1), entries=5000)
    for sequence in range(2, 30):
        shelf.add(name(ALICE, sequence))
        shelf.mirror.compact()
    assert str(name(ALICE, 1)) in shelf.files.files


class CountingMirror(MemoryMirror):
    """Counts the bytes of merges."""

    merged_bytes = 0

    def create(self, name: str, size: int) -> memoryview:
        self.merged_bytes += size
        return super().create(name, size)


def test_over_hundreds_of_sessions_an_entry_is_merged_a_few_times() -> None:
    shelf, files = Shelf(), CountingMirror()
    shelf.files = files
    shelf.reopened()
    for sequence in range(1, 301):
        shelf.add(name(ALICE, sequence), entries=50)
        shelf.mirror.compact()
        assert len(shelf.mirror.views()[0]) <= VIEWS_MAX
    shelf.check({name(ALICE, sequence) for sequence in range(1, 301)})
    assert files.merged_bytes < 5 * sum(map(len, files.files.values()))


def test_what_is_no_longer_listed_leaves_and_takes_its_writers_merged_fragments_along() -> None:
    shelf, names = filled()
    shelf.mirror.compact()
    gone = name(BOB, 1)
    assert str(gone) not in shelf.files.files
    writers = [ALICE, BOB, CAROL]
    shelf.mirror.reconcile(names - {gone}, writers)
    held = set(shelf.mirror.held())
    assert gone not in held
    assert {each for each in names if each.writer != BOB} <= held
    shelf.check(held)
    shelf.mirror.reconcile(names - {gone}, [ALICE, BOB])
    shelf.check({each for each in held if each.writer != CAROL})
    shelf.mirror.reconcile(set(), writers)
    shelf.check(set())
    assert shelf.files.files == {}


def test_fragments_that_a_merged_one_stands_for_leave_and_are_remembered() -> None:
    shelf, names = filled((ALICE,), 3)
    merged = name(ALICE, 9)
    shelf.add(merged, covers=(name(ALICE, 1), name(ALICE, 2)))
    listed = names | {merged}
    shelf.mirror.reconcile(listed, [ALICE])
    shelf.check({name(ALICE, 3), merged})
    for sequence in range(20, 40):
        shelf.add(name(ALICE, sequence))
    shelf.mirror.compact()
    assert shelf.mirror.superseded() == {name(ALICE, 1), name(ALICE, 2)}
    shelf.reopened()
    assert shelf.mirror.superseded() == {name(ALICE, 1), name(ALICE, 2)}
    shelf.mirror.reconcile({*listed, *(name(ALICE, sequence) for sequence in range(20, 40))}, [ALICE])
    shelf.check({name(ALICE, 3), merged, *(name(ALICE, sequence) for sequence in range(20, 40))})


class Crash(Exception):
    """The machine stops here."""


class CrashingMirror(MemoryMirror):
    """Stops before the n-th change of the folder."""

    def __init__(self, files: dict[str, bytes], changes: int) -> None:
        super().__init__()
        self.files, self.changes = dict(files), changes

    def _change(self) -> None:
        self.changes -= 1
        if self.changes < 0:
            raise Crash

    def publish(self, name: str, data: memoryview | bytes) -> None:
        self._change()
        super().publish(name, data)

    def remove(self, name: str) -> None:
        self._change()
        super().remove(name)


@pytest.mark.parametrize("changes", range(30))
def test_a_crash_during_a_merge_leaves_no_entry_twice_and_no_ghost(changes: int) -> None:
    shelf, names = filled((BOB, CAROL), 10)
    shelf.mirror.compact()
    for sequence in range(50, 60):
        shelf.add(name(BOB, sequence))
    files = CrashingMirror(shelf.files.files, changes)
    crashed = Mirror(files, TEAM.keys, ALICE)
    try:
        crashed.load()
        crashed.reconcile(names - {name(BOB, 1)}, [ALICE, BOB, CAROL])
        crashed.compact()
    except Crash:
        pass
    shelf.files.files = files.files
    shelf.reopened()
    held = set(shelf.mirror.held())
    shelf.check(held)
    assert {each for each in names if each.writer == CAROL} <= held


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_removed_or_right(data: st.DataObject) -> None:
    shelf, _ = filled((ALICE, BOB), 9)
    shelf.mirror.compact()
    for file in data.draw(st.sets(st.sampled_from(sorted(shelf.files.files)), min_size=1)):
        content = bytearray(shelf.files.files[file])
        kind = data.draw(st.sampled_from(["flip", "cut", "empty", "grow"]))
        if kind == "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "grow":
            content += b"more"
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) if kind == "cut" else 0 :]
        shelf.files.files[file] = bytes(content)
    shelf.reopened()
    shelf.check(set(shelf.mirror.held()))


def test_large_files_are_not_hashed_but_their_structure_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, names = filled((ALICE, BOB), 9)
    shelf.mirror.compact()
    monkeypatch.setattr(mirror_module, "CHECKED_BYTES_MAX", 0)
    shelf.reopened()
    shelf.check(names)
    for file, content in list(shelf.files.files.items()):
        shelf.files.files[file] = content[:-100]
    shelf.reopened()
    shelf.check(set())


def test_the_mirror_of_another_domain_or_system_is_thrown_away() -> None:
    shelf, names = filled((ALICE,), 12)
    shelf.mirror.compact()
    other = Mirror(shelf.files, DomainKeys.of(b"e" * 16, b"secret" * 6), ALICE)
    other.load()
    assert other.held() == {}
    assert shelf.files.files == {}
    assert len(names) == 12


def test_files_that_are_none_of_ours_are_removed() -> None:
    shelf, names = filled((ALICE,), 2)
    shelf.files.files |= {"rubbish": b"x", "merged/own-zz": b"", "merged/odd-00000001": b"y" * 500}
    shelf.reopened()
    shelf.check(names)
    assert len(shelf.files.files) == 2


@pytest.mark.parametrize("column", [0, 1])
def test_a_damaged_file_is_not_merged_but_goes(column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "CHECKED_BYTES_MAX", 0)
    shelf, names = filled((ALICE,), 12)
    damaged = str(name(ALICE, 3))
    content = bytearray(shelf.files.files[damaged])
    # The first id, or all that share its first half, now comes after the others.
    content[80 + 7] = 0xFF
    if column:
        content[80:120] = bytes(40)
        content[120 + 7] = 0xFF
    shelf.files.files[damaged] = bytes(content)
    shelf.reopened()
    shelf.mirror.compact()
    assert len(shelf.mirror.views()[0]) <= VIEWS_MAX
    shelf.check(names - {name(ALICE, 3)})
