"""One of the systems that share a cache for a year: its machine, and what the agent does on it.

Sessions are thin: the real classes look blocks up, seal, pack, list, stamp and settle what is missing, but nothing is
read from a volume and no restore point is written; that is simulated elsewhere (machines.py).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

import anyio
import numpy as np
from anyio.lowlevel import checkpoint
from blake3 import blake3

from engine.block import BATCH_BLOCKS, ids_from_bytes, ref_of
from engine.cache.due import next_chance
from engine.cache.pins import Pinning
from engine.cache.recheck import count_healed
from engine.cache.trimjob import TrimSetup, trim_side
from engine.cache.trimplan import needed_bytes
from engine.cache.verification import Verification, VerifySetup
from engine.errors import StoreError, StoreUnavailable
from engine.names import PackName, StampName
from engine.pack import PackBuilder
from engine.pipeline.commit import CacheSide, Committer
from engine.pipeline.retry import RetryingStore
from engine.pipeline.stores import Side, open_side
from engine.policy import BusinessHours, CacheErrorPolicy, TrimPolicy, VerifyPolicy
from engine.ports import ObjectStore, Room
from engine.seal import Codec, Sealer
from engine.state import ENTRY, Head, Intent
from engine.vault.certificate import Certificates
from engine.vault.enrolment import find_cache
from engine.vault.identity import Identity
from tests.simulation.clockwork import EPOCH_MS, chance
from tests.simulation.disk import Died
from tests.simulation.memorystate import MemoryState
from tests.simulation.stores import Broken, Weather
from tests.simulation.yearcache import DAY_MS, CacheDisk, Facts
from tests.simulation.yearport import CachePort

T = TypeVar("T")
SOUND_MS: Final = 60_000  # a clock that is wrong by no more is right
HOUR_MS: Final = 3_600_000
PACK_BYTES: Final = 64 << 10
ERRORS: Final = CacheErrorPolicy(retries_max=4)
# How wrong a clock may be.
SKEWS_MS: Final = tuple(
    sign * ms for ms in (HOUR_MS, DAY_MS, 4 * DAY_MS, 40 * DAY_MS, 500 * DAY_MS) for sign in (1, -1)
)
OWN: Final = ("data", "index", "gc", "stamp", "pin", "checked")  # folders of a cache in which each has its own objects
FIRST_DAY: Final = 18_262  # days of stamps count from 2020
ZERO: Final = 0  # instead of a content's number: a zero block


class MemberClock:
    """The clock of a machine, which may be wrong by `skew_ms`."""

    def __init__(self) -> None:
        self.skew_ms = 0

    def now_ms(self) -> int:
        return true_ms() + self.skew_ms

    def monotonic(self) -> float:
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def true_ms() -> int:
    """Return what time it is, ms since 1970."""
    return EPOCH_MS + round(anyio.current_time() * 1000)


@dataclass
class Habits:
    """How a system is used. `every_h` hours between its sessions; times in ms of the year."""

    every_h: int
    joins_ms: int
    retires_ms: int | None
    verify: VerifyPolicy
    trim: TrimPolicy
    hours: BusinessHours
    zone: tzinfo


@dataclass
class Trouble:
    """What happens while a system does something. `dies_at`: at which of its calls to the cache.

    `dies_unlisted`: when it has put packs and not listed them.
    """

    weather: Weather = field(default_factory=Weather)
    slow_s: float = 0.0
    dies_at: int | None = None
    dies_unlisted: bool = False
    gives_way_at: int | None = None

    @property
    def calm(self) -> bool:
        """Whether there is none."""
        return self.weather.calm and self.dies_at is None and not self.dies_unlisted and self.gives_way_at is None


@dataclass(frozen=True)
class _Device:
    """A Device that is asked as often as one likes."""

    measured: Callable[[], Room]

    async def room(self) -> Room:
        await checkpoint()
        return self.measured()


class Contents:
    """Blocks by numbers: what they hold, and their refs in a domain; the same number, the same block."""

    def __init__(self, subkey: bytes) -> None:
        self._subkey = subkey
        self._refs: dict[int, bytes] = {}
        self.numbers: dict[bytes, int] = {}  # by id

    def data(self, number: int) -> bytes:
        """Return 1 to 4 KiB that do not compress."""
        return blake3(number.to_bytes(8, "little")).digest(1000 + number * 7919 % 3000)

    def ref(self, number: int) -> bytes:
        """Return the ref of a block; of a zero block, zeros."""
        if number == ZERO:
            return bytes(48)
        if number not in self._refs:
            self._refs[number] = ref = ref_of(self._subkey, self.data(number))
            self.numbers[ref[:16]] = number
        return self._refs[number]


class Member:
    """One system. `volumes`: what they hold now, `committed`: what its local state says they do."""

    def __init__(
        self,
        name: str,
        identity: Identity,
        habits: Habits,
        disk: CacheDisk,
        facts: Facts,
        contents: Contents,
        told: Callable[[str], None],
    ) -> None:
        self.name, self.identity, self.habits, self._told = name, identity, habits, told
        self.disk, self.facts, self.contents = disk, facts, contents
        self.chance = random.Random(f"member {name} {chance.getrandbits(64)}")
        self.clock, self.state = MemberClock(), MemoryState()
        self.keys = identity.keys
        self.volumes: dict[str, list[int]] = {}
        self.committed: dict[str, list[int]] = {}
        self.started: list[int] = []  # when its verifications began, true time
        self.due_ms: int | None = None  # since when, or from when on, the next one is due; None: its clock was wrong
        self._ran = False  # a session has ended
        self._set_aside: set[int] = set()  # keys of packs it found damaged
        self.refreshes: list[
            tuple[int, int, int, int]
        ] = []  # objects that came or went, new bytes, read objects and bytes
        self._known: set[str] = set()
        self._window: int | None = None  # since which event a verification that is paused looks at the cache
        self.sessions = self.verified = self.trims = 0
        self._calls, self._dies_at, self.dead = 0, cast("int | None", None), False

    @property
    def store(self) -> bytes:
        """The id of the cache."""
        assert self.identity.cache is not None
        return self.identity.cache

    @property
    def sound(self) -> bool:
        """Whether its clock is right."""
        return abs(self.clock.skew_ms) <= SOUND_MS

    def tell(self, what: str) -> None:
        """Tell what this system does."""
        self._told(f"{self.name}: {what}")

    def forget_times(self) -> None:
        """Learn that its clock was put forward or back: by it nothing is known to be due."""
        self.started.clear()
        self.due_ms = None

    def works_at(self, ms: int) -> bool:
        """Tell whether a true time lies in its business hours, if its clock is right."""
        at, hours = wall(self, ms), self.habits.hours
        return at.weekday() < 5 and hours.start_minute <= at.hour * 60 < hours.end_minute

    def used(self) -> set[int]:
        """Return the numbers of all blocks its local state knows."""
        return {number for volume in self.committed.values() for number in volume} - {ZERO}

    def idents(self) -> set[bytes]:
        """Return the ids of all blocks its local state knows."""
        return {self.contents.ref(number)[:16] for number in self.used()}

    def _event(self, what: str) -> None:
        if self.dead:
            raise Died(False)
        self._calls += 1
        if self._calls == self._dies_at:
            self.dead = True
            raise Died(True)

    def _may(self, op: str, name: str) -> bool:
        folder, _, rest = name.partition("/")
        own = rest.startswith(self.identity.system.hex()) and folder in OWN
        return own or (op == "delete" and folder in ("data", "gc"))

    def port(self, trouble: Trouble) -> CachePort:
        """Return a way to the cache."""
        return CachePort(self.disk, self.facts, trouble.weather, self.chance, self._event, self._may, trouble.slow_s)

    def _stage(self, port: CachePort) -> ObjectStore:
        """Return what asks again where calls fail."""
        if port.weather.calm:
            return port
        return RetryingStore(port, ERRORS.retry(), self.clock, random.Random(self.chance.getrandbits(32)))

    def _saw(self, idents: set[bytes], ms: int) -> None:
        """Tell that it stamped blocks it saw at `ms`, true time; what it saw where nobody else looks, is its own."""
        if self.sound:
            self.facts.see(self.identity.system, idents - self._unlisted(), ms)
        elif self.clock.skew_ms > 0:
            self.facts.said_of_days_to_come(self.identity.system, idents)

    async def _until_death(self, trouble: Trouble, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do something on this machine; None: it died in it."""
        self._calls, self._dies_at, self.dead = 0, trouble.dies_at, False
        try:
            return await work()
        except BaseException:
            if not self.dead:
                raise
            self.tell(f"dies at call {self._calls}")
            if random.Random(f"{self.name} {self._calls} {self.sessions}").random() < 0.5:
                self.tell("and forgets what it had put")
                self.state.acks(self.store).clear()
            for state in self.state.volumes.values():
                state.discard_staged()
            self.state.clear_intent()
            return None
        finally:
            self._dies_at, self.dead = None, False

    async def open(self, port: CachePort) -> Side:
        """Open the cache as a session does, and see what that costs. Raises: StoreError, Broken."""
        objects = self._stage(port)
        found = await find_cache(objects, self.identity)
        there = self._listing()
        members = await Certificates.load(objects, self.identity.domain, self.identity.vault_public)
        before = len(port.asked.read)
        side, _ = await open_side(found, objects, self.identity, self.state, members, own_only=False)
        after = self._listing()
        whole = there | after
        read = [(name, size) for name, size in port.asked.read[before:] if name in whole]
        new, gone = whole - self._known, self._known - after
        sizes = self.disk.written
        self.refreshes.append(
            (
                len(new) + len(gone),
                sum(len(sizes.get(name, b"")) for name in new),
                len(read),
                sum(size for _, size in read),
            )
        )
        self._known = there
        return side

    def _listing(self) -> set[str]:
        """Return what of the index is there and whole: what is damaged may be read again and again."""
        disk = self.disk
        return {
            name
            for name, data in disk.objects.items()
            if name.startswith(("index/", "gc/")) and disk.written.get(name) == data
        }

    async def session(self, trouble: Trouble) -> bool | None:
        """Back up; True: nothing is missing in the cache of what it looked at. None: the machine died."""
        return await self._until_death(trouble, lambda: self._session(trouble))

    async def _session(self, trouble: Trouble) -> bool:
        started_true, started_ms = true_ms(), self.clock.now_ms()
        self.sessions += 1
        port, near = self.port(trouble), CacheSide()
        try:
            near.side = await self.open(port)
        except StoreError as error:
            near.gave_up = error
        changed = self._stage_changes(near)
        if (side := near.good) is not None:
            try:
                await self._send(side, changed, trouble)
            except StoreError as error:
                near.gave_up = error
        told = {self.contents.ref(number)[:16] for number in changed}
        self.facts.touch(self.idents() | told, max(started_ms, started_true))
        committer = self._committer(near, started_ms)
        self._write_intent(near)
        await committer._check_healed()
        stamps = len([name for name in port.asked.put if name.startswith("stamp/")])
        await committer._stamp()
        stamped = len([name for name in port.asked.put if name.startswith("stamp/")]) > stamps
        committer._apply()
        self.committed = {name: list(volume) for name, volume in self.volumes.items()}
        if near.good is not None:
            count_healed(self.state.history, self.store, committer.healed)
            if stamped:
                # The index does not tell a session which of two copies is gone: maybe it saw that one.
                self._saw(told - self.facts.in_ghosts(), started_true)
        self.state.history.note_session(self.store, self.clock.now_ms())
        if not self._ran:
            self._ran, self.due_ms = True, true_ms() if self.sound else None
        if near.side is not None and not isinstance(near.gave_up, StoreUnavailable):
            port.trimming = True
            try:
                await self._trim(near.side, port, trouble)
            except StoreError as error:
                self.tell(f"its trimming fails: {error}")
        return near.good is not None

    async def _trim(self, side: Side, port: CachePort, trouble: Trouble) -> None:
        """Trim the cache, and see that the thresholds are met, or why not. Raises: StoreError, Broken."""
        self.trims += 1
        policy, disk, facts = self.habits.trim, self.disk, self.facts
        before, since, asked = facts.trimmed, facts.events, list[tuple[int, int, int]]()
        small, counted, pinned = disk.small_bytes, self._counted(), facts.pinned_now()
        renewed = facts.renewed_by_others(self.identity.system)

        def measured() -> Room:
            asked.append((facts.events, disk.free_bytes, port.freed_bytes))
            return Room(disk.capacity_bytes, disk.free_bytes)

        now_ms, members = self.clock.now_ms(), cast(Certificates, side.packs.members)
        setup = TrimSetup(
            identity=self.identity, state=self.state, clock=self.clock, policy=policy, device=_Device(measured),
            pack_bytes=PACK_BYTES,
        )  # fmt: skip
        report = await trim_side(setup, side, members)
        if report.looked:
            # By a clock that runs behind it stamps what day it is for the others.
            facts.trimmed_by(max(now_ms, true_ms()))
        if report.refused is not None:
            self.tell(f"does not trim: {report.refused}")
        elif report.deleted or report.rewritten or not report.met:
            self.tell(
                f"trims {facts.trimmed - before} packs, {report.rewritten} of them anew, "
                f"{report.lacking_bytes} bytes short, {disk.free_bytes} free"
            )
        # By the room there was when it asked last: what others put since, they look after when they trim.
        lacking = needed_bytes(policy, report.size_bytes, Room(disk.capacity_bytes, asked[-1][1]))
        now = facts.events, disk.free_bytes
        if (report.refused is None or asked[-1][:2] == now) and max(0, lacking) != report.lacking_bytes:
            raise Broken(f"{self.name}: its trimming tells {report.lacking_bytes} bytes are to go, and {lacking} are")
        if report.refused is not None or not self.sound or not trouble.calm or lacking <= 0:
            return
        if not report.looked:
            raise Broken(f"{self.name}: {lacking} bytes are to go, and nothing was looked at")
        if any("others filled it meanwhile" in problem for problem in report.problems):
            return
        if facts.renewed_by_others(self.identity.system) > renewed:
            # Between its head and its details a stamp gave way to a newer one: all it named counted as new.
            return
        # It plans by what is free then: nor need it know what others put or removed since.
        planned_bytes = asked[1][1] + port.freed_bytes - asked[1][2]
        lacking = min(lacking, needed_bytes(policy, report.size_bytes, Room(disk.capacity_bytes, planned_bytes)))
        free_bytes = min(disk.free_bytes, report.free_bytes or 0, planned_bytes)
        left = facts.left_behind(self.identity.system, counted, free_bytes, since, pinned)
        if left and lacking > max(0, disk.small_bytes - small):
            raise Broken(f"{self.name}: {lacking} bytes are to go, and {left[0].name} is left, which is old; {report}")

    def _counted(self) -> int:
        """Return from which day (since 1970) what is old is counted: one that half of the live others have reached."""
        today, newest = day(self.clock.now_ms()), dict[bytes, int]()
        for name in filter(None, map(StampName.parse, self.disk.objects)):
            newest[name.writer] = max(newest.get(name.writer, 0), name.day + FIRST_DAY)
        newest.pop(self.identity.system, None)
        live = sorted(each for each in newest.values() if today - 14 <= each <= today + 1)
        return min(today, live[len(live) // 2]) if live else today

    def _stage_changes(self, near: CacheSide) -> set[int]:
        """Stage what changed, and what the cache is known to lack; return the contents of both."""
        candidates: set[int] = set()
        for name, volume in self.volumes.items():
            state, known = self.state.volume(name), self.committed.get(name, [])
            every = state.head is None or not state.head.missing_known
            for page in range(-(-len(volume) // BATCH_BLOCKS)):
                lacking = int(state.missing(np.array([page]))[0])
                mask, entries = 0, np.zeros(BATCH_BLOCKS, ENTRY)
                for row, number in enumerate(volume[page * BATCH_BLOCKS : (page + 1) * BATCH_BLOCKS]):
                    at = page * BATCH_BLOCKS + row
                    before = known[at] if at < len(known) else None
                    if every or lacking >> row & 1 or number != before:
                        mask |= 1 << row
                        entries["ref"][row] = np.frombuffer(self.contents.ref(number), np.uint8)
                        candidates.add(number)
                if mask:
                    state.stage(page, mask, entries)
        return candidates - {ZERO}

    async def _send(self, side: Side, numbers: set[int], trouble: Trouble) -> None:
        """Put what the cache lacks there. Raises: StoreError."""
        packs, keys = side.packs, self.keys
        wanted = sorted(numbers)
        refs = [self.contents.ref(number) for number in wanted]
        there = packs.index.lookup(ids_from_bytes(b"".join(ref[:16] for ref in refs)))["length"] > 0
        sealer, session = Sealer(Codec.LZ4, keys.blocks), chance.randbytes(16)
        builder = PackBuilder("data", keys, self.identity.system, session, self.identity.signer, PACK_BYTES)
        for number, ref, known in zip(wanted, refs, there.tolist(), strict=True):
            if known:
                continue
            record = sealer.seal(ref, self.contents.data(number))
            if not builder.room(len(record)):
                await packs.put_pack(builder.finish())
                builder = PackBuilder("data", keys, self.identity.system, session, self.identity.signer, PACK_BYTES)
            builder.add(record)
        if builder.count:
            await packs.put_pack(builder.finish())
        await packs.flush()
        if trouble.dies_unlisted and not all(there.tolist()):
            self.dead = True
            raise Died(True)
        await packs.publish_index()

    def _committer(self, near: CacheSide, started_ms: int) -> Committer:
        """Return what commits, as far as it has to do with the cache."""
        runs = [
            SimpleNamespace(
                name=name,
                state=state,
                head=state.head,
                missing_unknown=state.head is None or not state.head.missing_known,
            )
            for name, state in ((name, self.state.volume(name)) for name in self.volumes)
        ]
        nothing = cast(Any, None)
        return Committer(
            self.identity, self.state, nothing, near, nothing, cast(Any, runs), chance.randbytes(16), "1", Codec.LZ4,
            PACK_BYTES, started_ms, nothing, self.identity.vault, share_pages=True,
        )  # fmt: skip

    def _write_intent(self, near: CacheSide) -> None:
        store = near.side.store_id if near.side is not None else self.store
        heads = {
            name: Head(
                order=self.sessions, incarnation=self.state.incarnation, root_hash=bytes(32), vault=self.identity.vault,
                cache=store, domain=self.identity.domain, volume_bytes=len(volume) * 65_536, generation=None, point=b"",
                missing_known=True,
            )
            for name, volume in self.volumes.items()
        }  # fmt: skip
        root = f"root/{self.identity.system.hex()}/{self.sessions:016x}-{self.state.incarnation.hex()}"
        self.state.write_intent(Intent(root=root, root_hash=bytes(32), vault=self.identity.vault, heads=heads))

    def next_verification_ms(self) -> int | None:
        """Return at which true time the next verification may begin, by this machine's clock; None: not yet known."""
        if self.state.upkeep(self.store).checkpoint() is not None:
            return true_ms()  # it goes on
        now_ms, history = self.clock.now_ms(), self.state.history
        found = next_chance(
            self.habits.verify,
            self.habits.hours,
            now_ms=now_ms,
            zone=self.habits.zone,
            first_session_ms=history.first_session_ms(self.store),
            last=next(iter(history.attempts(self.store, 1)), None),
        )
        if found.may_start:
            return true_ms()
        return None if found.next_ms is None else true_ms() + max(found.next_ms - now_ms, 1)

    async def verify(self, trouble: Trouble, read_share: float) -> bool | None:
        """Verify, or go on with it; True: it is done and right. None: the machine died. Raises: Broken."""
        return await self._until_death(trouble, lambda: self._verify(trouble, read_share))

    async def _verify(self, trouble: Trouble, read_share: float) -> bool:
        port, began_ms = self.port(trouble), true_ms()
        if self.state.upkeep(self.store).checkpoint() is None:
            self._window = None
            self.started.append(began_ms)
            self.due_ms = began_ms + round(self.habits.verify.every_s * 1000) if self.sound else None
        if self._window is None:
            self._window = self.facts.events
        self.facts.touch(self.idents(), max(self.clock.now_ms(), began_ms))
        calls = trouble.gives_way_at
        verification = Verification(
            VerifySetup(
                identity=self.identity,
                state=self.state,
                history=self.state.history,
                clock=self.clock,
                cache=self._stage(port),
                volumes=list(self.volumes),
                read_share=read_share,
                wanted=lambda: calls is not None and port.asked.calls >= calls,
            )
        )
        try:
            if not await verification.run():
                self.tell("its verification gives way")
                return False
        except StoreError as error:
            self.tell(f"its verification fails: {error}")
            return False
        attempt = verification.attempt
        assert attempt is not None
        self.verified += 1
        window, self._window = self._window, None
        missing = self._check_missing(window)
        self.tell(f"verified {attempt.blocks} blocks, {attempt.missing} missing")
        if attempt.missing_now != missing:
            raise Broken(f"{self.name}: {attempt.missing_now} blocks are told missing, and {missing} are marked")
        marked = self.missing()
        idents = {
            self.contents.ref(number)[:16]
            for name, volume in self.committed.items()
            for at, number in enumerate(volume)
            if number != ZERO and (name, at) not in marked
        }
        self._saw(idents, began_ms)
        self.facts.touch(idents, max(self.clock.now_ms(), began_ms))
        return True

    async def pin(self, idents: Sequence[bytes]) -> None:
        """Pin blocks of the cache, whoever's they are, as what the vault lost; none: let go of all pins."""
        pinning = Pinning(self.port(Trouble()), self.identity, self.state.incarnation, self.clock.now_ms())
        if idents:
            try:
                await pinning.pin(ids_from_bytes(b"".join(idents)))
            except StoreError as error:
                self.tell(f"cannot pin: {error}")
                return
            self.facts.pin(self.identity.system, idents)
        else:
            self.facts.pinned.pop(self.identity.system, None)
            await pinning.drop()
        self.tell(f"pins {len(idents)} blocks" if idents else "pins nothing any more")

    def missing(self) -> set[tuple[str, int]]:
        """Return the blocks local state counts as missing: volume and number."""
        found = set()
        for name, state in self.state.volumes.items():
            for page in state.missing_pages(0, 1 << 40).tolist():
                mask = int(state.missing(np.array([page]))[0])
                found |= {(name, page * BATCH_BLOCKS + row) for row in range(BATCH_BLOCKS) if mask >> row & 1}
        return found

    def _unlisted(self) -> set[bytes]:
        """Return the blocks of its packs that it did not list yet."""
        return {
            ident
            for pack in self.facts.packs.values()
            if pack.writer == self.identity.system and pack.there and pack.whole and not pack.listed
            for ident in pack.ids
        }

    def _check_missing(self, since: int) -> int:
        """Compare what was found missing with what is; return how many. Raises: Broken."""
        marked = self.missing()
        damaged = set(self.state.upkeep(self.store).lost_packs().damaged.tolist())
        for key in damaged:
            pack = self.facts.by_key[key]
            if pack.there and pack.whole and not pack.rotten:
                raise Broken(f"{self.name}: {pack.name} counts as damaged, and is not")
        for key in self._set_aside - damaged:
            pack = self.facts.by_key[key]
            if pack.good and pack.rotten:
                raise Broken(f"{self.name}: {pack.name} was found damaged, and counts as sound again")
        self._set_aside = damaged
        own = self._unlisted()
        for name, volume in self.committed.items():
            for at, number in enumerate(volume):
                ident, here = self.contents.ref(number)[:16], f"{self.name}: block {at} of {name}"
                if number == ZERO:
                    if (name, at) in marked:
                        raise Broken(f"{here} is zero, and counts as missing")
                elif (name, at) in marked and self.facts.present_throughout(ident, since, damaged):
                    raise Broken(f"{here} counts as missing, and was there all the time ({ident.hex()})")
                elif (
                    (name, at) not in marked
                    and self.facts.absent_throughout(ident, since, damaged)
                    and ident not in own
                ):
                    raise Broken(f"{here} was not there all the time, and does not count as missing ({ident.hex()})")
        return len(marked)


def wall(member: Member, ms: int | None = None) -> datetime:
    """Return what the clock on a system's wall shows, now, or at a true time if it is right."""
    shown = timedelta(milliseconds=member.clock.now_ms() if ms is None else ms)
    return (datetime(1970, 1, 1, tzinfo=UTC) + shown).astimezone(member.habits.zone)


def day(ms: int) -> int:
    """Return the day of a time, since 1970."""
    return ms // DAY_MS


def pack_names(disk: CacheDisk) -> list[PackName]:
    """Return the packs that lie on a disk."""
    return [pack for pack in map(PackName.parse, disk.objects) if pack is not None]
