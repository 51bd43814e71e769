"""A simulated year of twenty systems that share one cache, from one seed.

python -m tests.simulation.year --seeds 20 --from 1     as many as one likes
python -m tests.simulation.year --show 7                one, with all that happens
python -m tests.simulation.year --mutation all          mistakes made on purpose: is each found? (yearmutations.py)
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

import engine.cache.verification
import engine.indexmerge
from engine.cache.health import health_of
from engine.names import FORMAT, FragmentName, PackName, PinName, RemovalName, StampName
from engine.policy import DAY_MINUTES, HOUR_S, BusinessHours, TrimPolicy, VerifyPolicy
from engine.ports import ObjectStore
from engine.vault.adoption import adopt_cache
from engine.vault.certificate import Certificate, Certificates
from engine.vault.formatobject import new_store
from engine.vault.founding import enrol
from engine.vault.identity import Identity
from engine.vault.slots import KdfCost
from tests.simulation import clockwork, yearmember
from tests.simulation.clockwork import EPOCH_MS, VirtualClock, put_in
from tests.simulation.founding import PASSPHRASE
from tests.simulation.inchild import answer_of
from tests.simulation.stores import Broken, Port, SimStore, Weather, any_weather, away
from tests.simulation.yearcache import DAY_MS, CacheDisk, Facts
from tests.simulation.yearmember import HOUR_MS, ZERO, Contents, Habits, Member, Trouble, pack_names, true_ms, wall
from tests.simulation.yearmutations import YEAR_MUTATIONS

T = TypeVar("T")
SYSTEMS: Final = 20
DAYS: Final = 365
CALM_DAYS: Final = 40  # at the end, without faults
BLOCKS: Final = (30, 90)  # of a volume
COMMON: Final = 120  # blocks that many systems have
CAPACITY_BYTES: Final = 6 << 20
CADENCES_H: Final = (48, 168, 168, 240, 168, 336, 336, 720, 96, 168, 240, 336, 168, 336, 720, 240, 168, 336, 336, 240)
FRAGMENTS_MAX: Final = 12  # of one system, before it merges them
OBJECTS_MAX: Final = {"stamp": 40, "gc": 12, "pin": 4, "index": 24, "checked": 4}  # of one system
# What a system keeps of the cache on its own disk: files of its mirror besides removal lists, days of the cache's size.
MIRROR_FILES_MAX: Final = 12
GROWN_DAYS_MAX: Final = 60
MIRROR_BYTES_MAX: Final = 2  # for each byte of the index
GROWTH_MAX: Final = 2.5
AROUND: Final = 3  # of five systems, this one has business hours that last from Monday to Friday
LATE_MS: Final = HOUR_MS // 5  # a verification that begins later than that after it had to, is late
SMALL_BYTES: Final = 200  # of stamps or lists, a pack
READ_AGAIN_MAX: Final = 2  # bytes of an index that are read, for each that is new


@dataclass(frozen=True)
class Founded:
    """What every year begins with: a cache that all systems have adopted."""

    cache: dict[str, bytes]
    identities: list[Identity]


async def found() -> Founded:
    """Enrol the systems of all years."""
    clockwork.begin(7)
    vault = SimStore("vault", {FORMAT: new_store("vault").encode()})
    near = SimStore("cache", {FORMAT: new_store("cache").encode()})
    identities = []
    for number in range(SYSTEMS):
        enrolled = await enrol(
            _open(vault), f"system-{number:02}", PASSPHRASE, None, KdfCost.cheapest(), VirtualClock()
        )
        identities.append((await adopt_cache(_open(near), enrolled.identity)).identity)
    members = await Certificates.load(_open(near), identities[0].domain, identities[0].vault_public)

    async def loaded(objects: ObjectStore, domain: bytes, vault_public: bytes) -> Certificates:
        return members

    put_in(Certificates, load=loaded)  # nobody is enrolled during the year
    return Founded(near.objects, identities)


def _open(store: SimStore) -> Port:
    return Port(store, Weather(), random.Random(0), lambda what: None, lambda op, name: True, lambda name, data: None)


class Year:
    """One simulated year. `told`: what happened, a line each."""

    def __init__(self, seed: int, founded: Founded, days: int = DAYS) -> None:
        clockwork.begin(seed)
        self.days = days
        self.chance = random.Random(f"year {seed}")
        self.told = [f"seed {seed}"]
        self.disk = CacheDisk(founded.cache, CAPACITY_BYTES)
        self.facts = Facts(true_ms)
        keys = founded.identities[0].keys
        self.contents = Contents(keys.blocks)
        self._next = COMMON  # numbers of contents
        self.common = list(range(1, COMMON))
        self.calm = False
        self.members = [
            Member(identity.name, identity, self._habits(number), self.disk, self.facts, self.contents, self._tell)
            for number, identity in enumerate(founded.identities)
        ]
        self.samples: list[tuple[int, int, int, int]] = []  # each day: packs, bytes of stamps, of lists, of fragments

    def _tell(self, what: str) -> None:
        ms = true_ms()
        self.told.append(f"day {(ms - EPOCH_MS) // DAY_MS:3} {ms // HOUR_MS % 24:02}h {what}")

    def _habits(self, number: int) -> Habits:
        chance = self.chance
        joins = 0 if number < SYSTEMS // 3 else chance.randrange(self.days * 2 // 3)
        stays = number % 3 or chance.random() < 0.3
        retires = None if stays else joins + chance.randrange(20, 150)
        if retires is not None and retires > self.days - CALM_DAYS - 20:
            retires = None
        every_h = CADENCES_H[number % len(CADENCES_H)]
        return Habits(
            every_h,
            EPOCH_MS + joins * DAY_MS,
            None if retires is None else EPOCH_MS + retires * DAY_MS,
            VerifyPolicy(max(24, every_h) * HOUR_S, in_business_hours=chance.random() < 0.6),
            TrimPolicy(chance.choice((0.15, 0.15, 0.3)), age_days_max=chance.choice((None, None, None, 30))),
            BusinessHours(start_minute=0, end_minute=DAY_MINUTES) if number % 5 == AROUND else BusinessHours(),
            chance.choice((UTC, UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"))),
        )

    async def run(self) -> None:
        """Live through the year, let all faults stop, and check that everything comes right."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._days, group)
            for member in self.members:
                group.start_soon(self._live, member)
        await self.converge()
        self._check_growth()
        for member in self.members:
            self._check_refreshes(member)
            self._check_kept(member)

    async def _days(self, group: object) -> None:
        """What happens to the world, day by day."""
        for number in range(self.days):
            await anyio.sleep(max(0.0, number * 86_400 - anyio.current_time()))
            self.calm = number >= self.days - CALM_DAYS
            self._other_data()
            self._patch()
            self._check_bounds()
            if not self.calm:
                self._clocks()
                if self.chance.random() < 0.15:
                    self._fault()

    def _check_bounds(self) -> None:
        """See that what is no pack stays little, whatever the day. Raises: Broken."""
        counts: dict[tuple[str, str], int] = {}
        sizes: dict[str, int] = {}
        for name, data in self.disk.objects.items():
            folder, _, rest = name.partition("/")
            counts[folder, rest[:32]] = counts.get((folder, rest[:32]), 0) + 1
            sizes[folder] = sizes.get(folder, 0) + len(data)
        for (folder, system), count in counts.items():
            if count > OBJECTS_MAX.get(folder, count):
                raise Broken(f"system {system} has {count} objects in {folder}/")
        self.facts.check_unlisted()
        packs = sum(name.startswith("data/") for name in self.disk.objects)
        self.samples.append((packs, sizes.get("stamp", 0), sizes.get("gc", 0), sizes.get("index", 0)))

    def _check_growth(self) -> None:
        """See that the last quarter is no worse than the second one, but for more packs. Raises: Broken."""
        second, last = self.samples[self.days // 4 : self.days // 2], self.samples[self.days * 3 // 4 :]
        if not second or not last:
            return
        for at, what in ((1, "stamps"), (2, "removal lists")):
            then, now = (max(sample[at] / (sample[0] + 20) for sample in part) for part in (second, last))
            if now > GROWTH_MAX * max(then, SMALL_BYTES):
                raise Broken(f"{what} take {now:.0f} bytes a pack in the last quarter, {then:.0f} in the second one")

    def _check_refreshes(self, member: Member) -> None:
        """See that refreshing costs what is new. Raises: Broken."""
        for changed, _, read, _ in member.refreshes:
            if read and not changed:
                raise Broken(f"{member.name}: nothing is new in the index, and {read} objects of it are read")
        new_bytes, read_bytes = (sum(each[at] for each in member.refreshes) for at in (1, 3))
        if read_bytes > READ_AGAIN_MAX * new_bytes:
            raise Broken(f"{member.name}: {new_bytes} bytes were new in the index, and {read_bytes} were read")

    def _check_kept(self, member: Member) -> None:
        """See that what a system keeps of the cache on its own disk does not pile up. Raises: Broken."""
        if member.habits.retires_ms is not None or not member.sessions:
            return
        state, store = member.state, member.store
        upkeep, trim = state.upkeep(store), state.trim_notes(store).last()
        mirror = {name: len(data) for name, data in state.mirror(store).files.items()}
        index = {name: len(data) for name, data in self.disk.objects.items() if name.startswith(("index/", "gc/"))}
        there = len(pack_names(self.disk))
        kept = {
            "acknowledgements": (len(state.acks(store).read()), 1),
            "files of the index": (len([name for name in mirror if not name.startswith("gc/")]), MIRROR_FILES_MAX),
            "bytes of the index": (sum(mirror.values()), MIRROR_BYTES_MAX * sum(index.values())),
            "sizes of the cache": (len(trim.grown) if trim is not None else 0, GROWN_DAYS_MAX),
            "packs it has read": (len(upkeep.checked_packs().keys), there),
            "damaged packs": (len(upkeep.lost_packs().damaged), there),
        }
        for what, (count, most) in kept.items():
            if count > most:
                raise Broken(f"{member.name}: it keeps {count} {what}, and {most} are enough")

    def _other_data(self) -> None:
        disk, chance = self.disk, self.chance
        share = chance.choice((0.0, 0.05, 0.1, 0.2, 0.3, 0.5)) if chance.random() < 0.1 and not self.calm else None
        if share is not None:
            disk.other_bytes = round(min(share * disk.capacity_bytes, disk.capacity_bytes - disk.used_bytes))
            self._tell(f"other data takes {disk.other_bytes} bytes, {disk.free_bytes} are free")

    def _patch(self) -> None:
        """Replace some blocks that all systems have, as updates do."""
        if self.chance.random() < 0.15:
            for _ in range(self.chance.randrange(1, 8)):
                self.common[self.chance.randrange(len(self.common))] = self._new()

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _clocks(self) -> None:
        for member in self.members:
            if member.clock.skew_ms and self.chance.random() < 0.1:
                member.clock.skew_ms = 0
                member.forget_times()
                member.tell("its clock is set right")
            elif self.chance.random() < 0.001:
                member.clock.skew_ms = self.chance.choice(yearmember.SKEWS_MS)
                member.forget_times()
                member.tell(f"its clock is wrong by {member.clock.skew_ms / DAY_MS:.2f} days")

    def _fault(self) -> None:
        """Let objects of the cache vanish, rot or lose their end."""
        disk, chance = self.disk, self.chance
        folder = chance.choice(("data/", "data/", "data/", "stamp/"))
        names = [name for name in sorted(disk.objects) if name.startswith(folder)]
        names = [name for name in names if disk.objects[name] == disk.written.get(name)]
        for name in chance.sample(names, min(len(names), chance.choice((1, 1, 2, 5)))):
            how = chance.choice(("vanished", "rotted", "short"))
            data = disk.objects[name]
            content = None if how == "vanished" else data[: chance.randrange(len(data))]
            if how == "rotted":
                at = chance.randrange(len(data))
                content = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
            disk.hurt(name, content)
            self._tell(f"fault: {name} {how}")
            if (stamp := StampName.parse(name)) is not None:
                self.facts.stamp_hurt(stamp.writer, gone=content is None)
            else:
                self.facts.lost(name, how)

    async def _live(self, member: Member) -> None:
        """Live the life of one system."""
        habits = member.habits
        await self._until(habits.joins_ms)
        self._buy(member)
        session_ms = free_ms = true_ms()
        while (now := true_ms()) < EPOCH_MS + self.days * DAY_MS:
            if habits.retires_ms is not None and now >= habits.retires_ms:
                self.facts.lapsed.update(self.facts.pinned.pop(member.identity.system, {}))
                member.tell("is retired" if self.chance.random() < 0.5 else "vanishes in the middle of a session")
                if "vanishes" in self.told[-1]:
                    await member.session(Trouble(dies_at=member.chance.randrange(1, 60)))
                return
            if not self.calm and member.chance.random() < 0.01:
                until = now + member.chance.randrange(2, 60) * DAY_MS
                member.tell(f"is switched off for {(until - now) / DAY_MS:.0f} days")
                await self._until(min(until, EPOCH_MS + (self.days - CALM_DAYS) * DAY_MS))
                free_ms = true_ms()
                continue
            verify_ms = member.next_verification_ms()
            if now >= session_ms:
                self._change(member)
                await member.session(self._trouble(member))
                await self._pins(member)
                session_ms, free_ms = self._following(member, now), true_ms()
            elif verify_ms is not None and verify_ms <= now:
                self._check_start(member, free_ms)
                if await member.verify(self._trouble(member), 0.1) is not True:
                    await anyio.sleep(3600)
                free_ms = true_ms()
            else:
                self._check_not_late(member, free_ms)
                await self._until(min(session_ms, verify_ms or session_ms, now + DAY_MS))

    async def _pins(self, member: Member) -> None:
        """Pin some blocks, or none any more."""
        if not member.sound or self.calm:
            return
        if member.identity.system in self.facts.pinned:
            if member.chance.random() < 0.1:
                await member.pin([])
        elif member.chance.random() < 0.03:
            present = sorted(self.facts.present)
            await member.pin(member.chance.sample(present, min(len(present), 5)))

    def _following(self, member: Member, now: int) -> int:
        """Return when the next session begins: mostly at night, on the hour, when others do so, too."""
        after = now + member.habits.every_h * HOUR_MS
        night = after // DAY_MS * DAY_MS + 2 * HOUR_MS
        return night if member.chance.random() < 0.8 and night > now else after

    def _check_not_late(self, member: Member, free_ms: int) -> None:
        """See that none is late, on a machine that does nothing else since `free_ms`. Raises: Broken."""
        if member.due_ms is None or member.state.upkeep(member.store).checkpoint() is not None:
            return
        policy, at_ms = member.habits.verify, max(member.due_ms, free_ms)
        forced_ms = member.due_ms + round(policy.force_after_s * 1000)
        while not policy.in_business_hours and at_ms < forced_ms and member.works_at(at_ms):
            at_ms += LATE_MS // 2
        if true_ms() > at_ms + LATE_MS:
            late_h = (true_ms() - at_ms) / HOUR_MS
            raise Broken(f"{member.name}: a verification is {late_h:.1f} h late, at {wall(member)}")

    def _check_start(self, member: Member, free_ms: int) -> None:
        """See that a verification begins neither too early nor too late. Raises: Broken."""
        self._check_not_late(member, free_ms)
        policy, now = member.habits.verify, true_ms()
        if not member.sound or not member.started or member.state.upkeep(member.store).checkpoint() is not None:
            return
        gap_h = (now - member.started[-1]) / HOUR_MS
        every_h, force_h = policy.every_s / HOUR_S, policy.force_after_s / HOUR_S
        working = member.works_at(now)
        if gap_h < every_h - 0.1 or (working and not policy.in_business_hours and gap_h < every_h + force_h - 0.1):
            raise Broken(f"{member.name}: a verification begins {gap_h:.1f} h after the last one, at {wall(member)}")

    def _trouble(self, member: Member) -> Trouble:
        chance = member.chance
        slow_s = chance.choice((0.0, 0.0, 0.0, 30.0, 600.0))
        if self.calm or chance.random() < 0.85:
            return Trouble(slow_s=slow_s)
        trouble = Trouble(slow_s=slow_s)
        what = chance.random()
        if what < 0.2:
            trouble.dies_unlisted = True
        elif what < 0.4:
            trouble.dies_at = round(2 ** chance.uniform(0, 7))
        elif what < 0.6:
            trouble.gives_way_at = round(2 ** chance.uniform(0, 7))
        elif what < 0.7:
            trouble.weather = away()
        else:
            trouble.weather = any_weather(chance)
            trouble.weather.flips = 0.0
        return trouble

    def _buy(self, member: Member) -> None:
        """Fill the volumes of a new system."""
        for name in ("system", "data"):
            count = member.chance.randrange(*BLOCKS)
            common = self.common if name == "system" else self.common[:10]
            member.volumes[name] = [
                member.chance.choice(common) if member.chance.random() < 0.7 else self._new() for _ in range(count)
            ]
        member.tell(f"joins, {sum(map(len, member.volumes.values()))} blocks")

    def _change(self, member: Member) -> None:
        """Change what the volumes hold: new blocks, some that others have, some as they were, zeros."""
        chance = member.chance
        for volume in member.volumes.values():
            for _ in range(chance.choice((0, 1, 2, 4, 8))):
                at, kind = chance.randrange(len(volume)), chance.random()
                if kind < 0.55:
                    volume[at] = self._new()
                elif kind < 0.8:
                    volume[at] = chance.choice(self.common)
                elif kind < 0.95:
                    volume[at] = chance.randrange(1, self._next)
                else:
                    volume[at] = ZERO

    async def _until(self, ms: int) -> None:
        await anyio.sleep(max(0.0, (ms - true_ms()) / 1000))

    async def converge(self) -> None:
        """Verify all, heal all, and see that nothing is missing. Raises: Broken."""
        left = [member for member in self.members if member.volumes and member.habits.retires_ms is None]
        self.disk.other_bytes = 0
        for member in left:
            member.clock.skew_ms = 0
        for _ in range(2):
            for member in left:
                for _ in range(4):
                    if await member.verify(Trouble(), 1.0):
                        break
                await member.session(Trouble())
        for member in left:
            if not await member.verify(Trouble(), 1.0):
                raise Broken(f"{member.name}: nothing is in the way, and the verification is not completed")
            history, store = member.state.history, member.store
            found = health_of(
                enabled=True,
                every_s=member.habits.verify.every_s,
                now_ms=member.clock.now_ms(),
                first_session_ms=history.first_session_ms(store),
                last_completed=history.last_completed(store),
                last_passed=history.last_passed(store),
            )
            if found.score != 100 or found.colour != "green":
                raise Broken(f"{member.name}: healed, and its cache is {found}")
            if lacking := member.idents() - self.facts.present:
                raise Broken(f"{member.name}: healed, and {len(lacking)} of its blocks are not in the cache")
            self._check_garbage(member)

    def _check_garbage(self, member: Member) -> None:
        """See that a system leaves nothing of its own that is damaged, but for the newest. Raises: Broken."""
        garbage = self.disk.garbage()
        for folder in ("index", "gc", "stamp", "checked"):
            prefix = f"{folder}/{member.identity.system.hex()}/"
            newest = max((name for name in self.disk.objects if name.startswith(prefix)), default="")
            if left := [name for name in sorted(garbage) if name.startswith(prefix) and name < newest]:
                raise Broken(f"{member.name}: what is damaged of its own stays: {left}")

    def figures(self) -> str:
        """Return what it came to."""
        folders: dict[str, int] = {}
        for name in self.disk.objects:
            folder = name.partition("/")[0]
            folders[folder] = folders.get(folder, 0) + 1
        sums = {
            kind: sum(getattr(member, kind) for member in self.members) for kind in ("sessions", "verified", "trims")
        }
        return f"{sums}, {self.facts.trimmed} packs trimmed, {folders}, {self.disk.used_bytes} bytes"


def install() -> None:
    """Make this process one for simulated years."""
    clockwork.install()
    put_in(anyio.to_thread, run_sync=_hop)
    put_in(engine.cache.verification, LOOK_S=60.0)
    put_in(engine.indexmerge, FRAGMENTS_MAX=FRAGMENTS_MAX)
    # All check the same signatures, again and again.
    plain = Certificate.verify
    verdicts: dict[tuple[bytes, bytes, bytes], bool] = {}

    def verify(certificate: Certificate, message: bytes, signature: bytes) -> bool:
        asked = certificate.signing_public, bytes(message), bytes(signature)
        if asked not in verdicts:
            verdicts[asked] = plain(certificate, message, signature)
        return verdicts[asked]

    put_in(Certificate, verify=verify)
    # As in other simulations, hashes of names are the same every time.
    put_in(PackName, __hash__=lambda name: hash(name.hash))
    put_in(StampName, __hash__=lambda name: hash((name.writer, name.day, name.sequence)))
    for numbered in (FragmentName, RemovalName, PinName):
        put_in(numbered, __hash__=lambda name: hash((name.writer, name.sequence)))


async def _hop(function: Callable[..., T], *arguments: Any, **_: Any) -> T:
    """Stand in for `anyio.to_thread.run_sync`: others get a turn now and then, but `function` runs here."""
    if clockwork.chance.random() < 0.2:
        await checkpoint()
    return function(*arguments)


def simulate(seed: int, founded: Founded, days: int = DAYS) -> tuple[Year, str | None]:
    """Run one year; return it, and what broke."""
    years: list[Year] = []

    async def main() -> None:
        years.append(Year(seed, founded, days))
        await years[0].run()

    try:
        clockwork.run(main)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a simulation ends with is what came of it
        return years[0], "".join(traceback.format_exception(error))
    return years[0], None


def promise(failure: str) -> str:
    """Return what was broken, in a line."""
    lines = failure.strip().splitlines()
    return next((line.strip("| ") for line in reversed(lines) if Broken.__name__ in line), lines[-1])


def caught(founded: Founded, mutation: str, seeds: Iterable[int], days: int) -> str:
    """Make a mistake, in a child process, and return the first seed that finds it, and how; "": none of them does."""

    def first_found() -> str:
        first, mutate = YEAR_MUTATIONS[mutation]
        mutate()
        for seed in dict.fromkeys((first, *seeds)):
            _, failure = simulate(seed, founded, days)
            if failure is not None:
                return f"seed {seed}: {promise(failure)[:200]}"
        return ""

    return answer_of(first_found)


def run_mutations(founded: Founded, names: Iterable[str], seeds: Sequence[int], days: int) -> int:
    """Run mutations; print what finds them, and return how many nothing does."""
    missed = 0
    for name in names:
        found = caught(founded, name, seeds, days)
        missed += not found
        print(f"{name}: {found or f'NOT FOUND by {len(seeds)} seeds'}", flush=True)
    return missed


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="tests.simulation.year")
    parser.add_argument("--seeds", type=int, default=1, metavar="COUNT")
    parser.add_argument("--from", dest="first", type=int, default=1, metavar="SEED")
    parser.add_argument("--show", type=int, metavar="SEED")
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--mutation", choices=[*YEAR_MUTATIONS, "all"], nargs="+")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of names and bytes
        again = [sys.executable, "-m", "tests.simulation.year", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    install()
    founded = clockwork.run(found)
    if given.mutation:
        names = YEAR_MUTATIONS if "all" in given.mutation else given.mutation
        return run_mutations(founded, names, range(given.first, given.first + given.seeds), given.days)
    seeds = [given.show] if given.show is not None else range(given.first, given.first + given.seeds)
    failed = 0
    for seed in seeds:
        started = time.process_time()
        year, failure = simulate(seed, founded, given.days)
        if failure is not None or given.show is not None:
            print("\n".join(year.told), failure or "", sep="\n")
        failed += failure is not None
        print(
            f"seed {seed}: {'FAILED' if failure else 'ok'}, {year.figures()}, {time.process_time() - started:.1f} s",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
