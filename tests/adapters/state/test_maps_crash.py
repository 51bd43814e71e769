"""A volume's map through crashes: at every change it makes, by kill and by power cut, again and again."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from adapters.state.directory import StateDirectory
from adapters.state.files import Disk
from adapters.state.maps import VolumeMap
from engine.errors import SessionAborted, StateCorrupt
from tests.adapters.state.fakes_disk import WHOLE, MachineDied, Model, PlannedDisk, die, entries_of, fill_up, head_of
from tests.adapters.state.killed_session import KILLED_PAGES, ORDERS, changes_of

PAGES = 12


def staged(volume: VolumeMap, model: Model, chance: random.Random, count: int) -> None:
    """Stage `count` random changes in both."""
    for _ in range(count):
        page, mask = chance.randrange(PAGES), chance.choice((WHOLE, chance.getrandbits(64), 1 << 63))
        entries = entries_of(chance.randrange(5))
        volume.stage(page, mask, entries)
        model.stage(page, mask, entries)


def scenario(folder: Path, disk: Disk, chance: random.Random) -> tuple[VolumeMap, Model]:
    """Return a map made by one commit with changes staged and sealed over it."""
    volume, model = VolumeMap(folder, disk, writable=True), Model()
    staged(volume, model, chance, 15)
    volume.sync_staged()
    volume.apply(head_of(1, 700))
    model = model.applied(head_of(1, 700), 700)
    staged(volume, model, chance, 10)
    volume.sync_staged()
    return volume, model


def died_in_apply(folder: Path, at: int, by_power: bool, blocks: int) -> tuple[bool, Model]:
    """Let the machine die at change `at` of an apply; return whether it did, and the model before the apply."""
    chance = random.Random(at)
    disk = PlannedDisk(folder)
    volume, model = scenario(folder, disk, chance)
    disk.at, disk.plan = disk.count + at, die
    try:
        volume.apply(head_of(2, blocks))
    except MachineDied:
        volume.close()
        if by_power:
            disk.power_cut(chance)
        return True, model
    return False, model


@pytest.mark.parametrize("by_power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("blocks", [700, 300, 3000])
def test_an_apply_cut_off_anywhere_is_completed_by_the_next(tmp_path: Path, by_power: bool, blocks: int) -> None:
    at, died = 0, True
    while died:
        at += 1
        died, model = died_in_apply(tmp_path / str(at), at, by_power, blocks)
        again = VolumeMap(tmp_path / str(at), Disk(), writable=True)
        again.apply(head_of(2, blocks))
        model.applied(head_of(2, blocks), blocks).check(again, PAGES)
        again.close()
    assert at > 15


@pytest.mark.parametrize("by_power", [False, True], ids=["kill", "power"])
def test_an_apply_cut_off_anywhere_leaves_the_old_map_or_the_new_one(tmp_path: Path, by_power: bool) -> None:
    at, died, seen = 0, True, set()
    while died:
        at += 1
        died, model = died_in_apply(tmp_path / str(at), at, by_power, 500)
        again = VolumeMap(tmp_path / str(at), Disk(), writable=True, keep_sealed=False)
        after = model if again.head == head_of(1, 700) else model.applied(head_of(2, 500), 500)
        after.staged = {}
        after.check(again, PAGES)
        seen.add(again.head.order if again.head else 0)
        again.close()
    assert seen == {1, 2}


@pytest.mark.parametrize("by_power", [False, True], ids=["kill", "power"])
def test_dying_while_sealing_leaves_the_old_map_and_a_whole_set_or_none(tmp_path: Path, by_power: bool) -> None:
    at, died, sealed = 0, True, set()
    while died:
        at += 1
        folder, chance = tmp_path / str(at), random.Random(at)
        disk = PlannedDisk(folder)
        volume, model = scenario(folder, disk, chance)
        volume.apply(head_of(2, 640))
        model = model.applied(head_of(2, 640), 640)
        staged(volume, model, chance, 10)
        disk.at, disk.plan = disk.count + at, die
        try:
            volume.sync_staged()
            died = False
        except MachineDied:
            if by_power:
                disk.power_cut(chance)
        volume.close()
        again = VolumeMap(folder, Disk(), writable=True)
        whole = again.staged_pages().size > 0
        if not whole:
            model.staged = {}
        model.check(again, PAGES)
        sealed.add(whole)
        again.close()
    assert sealed == {True, False}


@pytest.mark.parametrize("seed", range(20))
def test_a_seal_broken_by_staging_does_not_come_back_with_the_power(tmp_path: Path, seed: int) -> None:
    disk = PlannedDisk(tmp_path / "volume")
    volume, model = scenario(tmp_path / "volume", disk, random.Random(seed))
    staged(volume, model, random.Random(seed), 1 + seed % 2)
    volume.close()
    disk.power_cut(random.Random(seed))
    again = VolumeMap(tmp_path / "volume", Disk(), writable=True)
    with pytest.raises(StateCorrupt, match="no finished set"):
        again.apply(head_of(2, 640))
    model.staged = {}
    model.check(again, PAGES)


def test_an_apply_that_met_a_full_disk_can_be_given_up(tmp_path: Path) -> None:
    at, full, seen = 0, True, set()
    while full:
        at += 1
        disk = PlannedDisk(tmp_path / str(at))
        volume, model = scenario(tmp_path / str(at), disk, random.Random(at))
        disk.at, disk.plan = disk.count + at, fill_up
        try:
            volume.apply(head_of(2, 500))
            full = False
        except SessionAborted:
            volume.discard_staged()
        volume.close()
        again = VolumeMap(tmp_path / str(at), Disk(), writable=True)
        after = model if again.head == head_of(1, 700) else model.applied(head_of(2, 500), 500)
        after.staged = {}
        after.check(again, PAGES)
        seen.add(again.head.order if again.head else 0)
    assert seen == {1, 2}


@pytest.mark.parametrize("name", ["staged", "staged.masks", "staged.sums", "staged.seal", "head.next"])
def test_a_begun_apply_whose_changes_are_damaged_counts_as_a_lost_map(tmp_path: Path, name: str) -> None:
    disk = PlannedDisk(tmp_path)
    volume, model = scenario(tmp_path, disk, random.Random(1))
    disk.at, disk.plan = disk.count + 10, die
    with pytest.raises(MachineDied):
        volume.apply(head_of(2, 700))
    volume.close()
    raw = bytearray((tmp_path / name).read_bytes())
    raw[{"staged": min(model.staged) * 4096, "staged.masks": min(model.staged) * 8}.get(name, 0)] ^= 1
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    again = VolumeMap(tmp_path, Disk(), writable=True)
    with pytest.raises(StateCorrupt, match=str(tmp_path)):
        print(again.head)
    with pytest.raises(StateCorrupt):
        again.apply(head_of(2, 700))
    again.discard_staged()
    fresh = Model()
    staged(again, fresh, random.Random(2), 9)
    again.sync_staged()
    again.apply(head_of(3, 700))
    fresh.applied(head_of(3, 700), 700).check(again, PAGES)


class Sessions(RuleBasedStateMachine):
    """Sessions on one volume, with full disks, kills and power cuts at random changes."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="forebay-maps-"))
        self.folder = self.base / "volume"
        self.model, self.order = Model(), 0
        self.open()

    def open(self, keep_sealed: bool = False) -> None:
        self.disk = PlannedDisk(self.folder)
        self.disk.durable[self.folder] = {}
        for path in self.folder.glob("*"):
            self.disk.durable[self.folder][path.name] = path.stat().st_ino
            self.disk.content[path.stat().st_ino] = path.read_bytes()
        self.volume = VolumeMap(self.folder, self.disk, writable=True, keep_sealed=keep_sealed)

    def crash(self, by_power: bool, seed: int) -> None:
        self.volume.close()
        if by_power:
            self.disk.power_cut(random.Random(seed))

    @rule(
        page=st.integers(0, PAGES - 1),
        mask=st.one_of(st.just(WHOLE), st.integers(0, WHOLE), st.integers(0, 63).map(lambda bit: 1 << bit)),
        seed=st.integers(0, 5),
    )
    def stage(self, page: int, mask: int, seed: int) -> None:
        self.volume.stage(page, mask, entries_of(seed))
        self.model.stage(page, mask, entries_of(seed))

    @rule()
    def discard(self) -> None:
        self.volume.discard_staged()
        self.model.staged = {}

    @rule()
    def seal(self) -> None:
        self.volume.sync_staged()

    @rule()
    def forget(self) -> None:
        self.volume.forget()
        self.model = Model()

    @rule(by_power=st.booleans(), seed=st.integers(0, 99))
    def die_between(self, by_power: bool, seed: int) -> None:
        self.crash(by_power, seed)
        self.open()
        self.model.staged = {}

    @rule(
        blocks=st.integers(0, PAGES * 64),
        after=st.lists(st.integers(1, 40), max_size=4),
        by_power=st.booleans(),
        seed=st.integers(0, 99),
    )
    def commit(self, blocks: int, after: list[int], by_power: bool, seed: int) -> None:
        """Commit, with a crash after each of `after` changes, the first after the seal, later ones while redoing."""
        self.order += 1
        head = head_of(self.order, blocks)
        self.volume.sync_staged()
        for count in after:
            self.disk.at, self.disk.plan = self.disk.count + count, die
            try:
                self.volume.apply(head)
            except MachineDied:
                self.crash(by_power, seed)
                self.open(keep_sealed=True)
        self.disk.at = -1
        self.volume.apply(head)
        self.model = self.model.applied(head, blocks)

    @rule(blocks=st.integers(0, PAGES * 64), after=st.integers(1, 40))
    def commit_with_a_full_disk(self, blocks: int, after: int) -> None:
        self.order += 1
        head = head_of(self.order, blocks)
        self.disk.at, self.disk.plan = self.disk.count + after, fill_up
        try:
            self.volume.sync_staged()
            self.volume.apply(head)
        except SessionAborted:
            self.disk.at = -1
            self.volume.sync_staged()
            self.volume.apply(head)
        self.disk.at = -1
        self.model = self.model.applied(head, blocks)

    @invariant()
    def is_what_the_model_says(self) -> None:
        self.model.check(self.volume, PAGES)

    def teardown(self) -> None:
        self.volume.close()
        shutil.rmtree(self.base)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=35, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 11, 12, 13, 14, 15, 16, 18, 20])
def test_a_killed_process_is_continued_by_the_next(tmp_path: Path, at: int) -> None:
    command = [sys.executable, "-m", "tests.adapters.state.killed_session", str(tmp_path), str(at)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()
    with StateDirectory.open(tmp_path) as state:
        intent = state.intent()
        assert intent is not None
        volume = state.volume("data")
        volume.apply(intent.heads["data"])
        expected().check(volume, KILLED_PAGES)


def expected() -> Model:
    model = Model()
    for order in ORDERS:
        for page, mask, seed in changes_of(order):
            model.stage(page, mask, entries_of(seed))
        model = model.applied(head_of(order, KILLED_PAGES * 64), KILLED_PAGES * 64)
    return model
