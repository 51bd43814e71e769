"""Simulated object stores: what lies in them, and the port through which one machine sees one, in any weather."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import anyio
from anyio.lowlevel import checkpoint

from engine.block import Bytes
from engine.errors import ContentDiffers, ObjectMissing, StoreRejected, StoreThrottled, StoreUnavailable
from engine.ports import ObjectInfo
from tests.fakes import flip_a_bit

Kind = Literal["vault", "cache", "spool", "elsewhere"]
HANG_S: Final = 86_400.0
PICKED: Final = (
    "put root",
    "put root",
    "put index",
    "put page",
    "put data",
    "put note",
    "get",
    "list",
    "stat",
    "flush",
)


class Broken(AssertionError):
    """A promise was broken: this is what a simulation looks for."""


@dataclass
class SimStore:
    """What a store holds. `written`: every object that was ever put whole, as it was put.

    A local one (`volatile` not None) holds what no flush made durable only until the machine's power is cut.
    """

    kind: Kind
    objects: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, bytes] = field(default_factory=dict)
    unsynced: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)  # what came when nobody waited for it any more
    volatile: bool = False

    def apply(self, name: str, data: bytes) -> None:
        """Store an object as `ObjectStore.put` says. Raises: StoreRejected."""
        existing = self.objects.get(name)
        if existing is not None and len(existing) == len(data):
            if existing != data:
                raise ContentDiffers(f"object {name} exists with other content")
            return
        if existing is not None and self.written.get(name) == existing:
            raise Broken(f"{self.kind}: {name} was whole, and is put with another size")
        self.objects[name] = self.written[name] = data
        if self.volatile:
            self.unsynced.add(name)

    def remove(self, name: str) -> None:
        """Remove an object because somebody who may said so."""
        self.objects.pop(name, None)
        self.written.pop(name, None)
        self.unsynced.discard(name)

    def damaged(self) -> set[str]:
        """Return the names of what was put whole and is not so any more."""
        return {name for name, data in self.written.items() if self.objects.get(name) != data}

    def garbage(self) -> set[str]:
        """Return the names under which something lies that is not what was ever put whole."""
        return {name for name, data in self.objects.items() if self.written.get(name) != data}

    def power_cut(self, chance: random.Random) -> None:
        """Let what was not flushed be there, be gone, or be there with fewer bytes that count."""
        for name in sorted(self.unsynced):
            data = self.objects.get(name, b"")
            if chance.random() < 0.4:
                continue
            self.remove(name)
            if chance.random() < 0.6:
                kept = data[: chance.randrange(len(data) + 1)]
                self.objects[name] = chance.choice((b"", kept, kept.ljust(len(data), b"\0")))
        self.unsynced.clear()


@dataclass
class Weather:
    """What happens to the calls of one machine to one store; shares are of all calls that begin with `only`.

    `away_after`: so many calls later the store is away, for `away_s`, and again after as many; `disconnects`: a put
    under way then leaves a short object. `refuses_after`, `full_after`: from then on it refuses all calls, or puts.
    `throttles`: asks to be asked less.
    """

    name: str = "calm"
    fails: float = 0.0
    loses_answers: float = 0.0
    hangs: float = 0.0
    slow: float = 0.0
    short_puts: float = 0.0
    late_puts: float = 0.0
    breaks_listings: float = 0.0
    flips: float = 0.0
    only: str = ""  # the calls that shares are of
    away_after: int | None = None
    away_s: float = 0.0
    disconnects: bool = False
    refuses_after: int | None = None
    full_after: int | None = None
    throttles: float = 0.0

    @property
    def calm(self) -> bool:
        return self.name == "calm"


def any_weather(chance: random.Random) -> Weather:
    """Choose a weather."""
    share = chance.choice((0.01, 0.05, 0.2, 0.5))
    after = round(2 ** chance.uniform(0, 6))
    away_s = 2 ** chance.uniform(0, 14)
    kinds: tuple[Callable[[], Weather], ...] = (
        lambda: Weather("drizzle", fails=share, slow=0.1, breaks_listings=share),
        lambda: Weather("lossy", fails=share / 3, loses_answers=share, late_puts=share / 3),
        lambda: Weather("hanging", hangs=share / 3, late_puts=share / 3, slow=0.2),
        lambda: Weather("away", away_after=after, away_s=away_s),
        lambda: Weather("gone", away_after=chance.choice((0, 0, after)), away_s=HANG_S),
        lambda: Weather("share lost", away_after=after, away_s=away_s, disconnects=True, short_puts=share / 5),
        lambda: Weather("refusing", refuses_after=chance.choice((0, after))),
        lambda: Weather("full", full_after=chance.choice((0, after))),
        lambda: Weather("bad memory", flips=share / 3),
        lambda: Weather("picky", fails=share, loses_answers=share, only=chance.choice(PICKED)),
        lambda: Weather("picky", fails=1.0, only=chance.choice(PICKED)),
        lambda: Weather("picky", loses_answers=1.0, only=chance.choice(PICKED)),
    )
    return chance.choice(kinds)()


def server_weather(chance: random.Random) -> Weather:
    """Choose a weather that servers taught: 503 to many calls or all, puts that hang and come through all the same."""
    share = chance.choice((0.1, 0.4, 0.8, 1.0))
    kinds = (
        Weather("throttling", throttles=share),
        Weather("throttling puts", throttles=share, only="put", loses_answers=0.1),
        Weather("overloaded", throttles=share / 2, hangs=0.05, late_puts=0.1, slow=0.3),
    )
    return chance.choice(kinds)


def away() -> Weather:
    """Return a weather in which the store is never there."""
    return Weather("gone", away_after=0, away_s=HANG_S)


class Port:
    """A machine's way to a store: an ObjectStore, and a Barrier. `event` hears of every call, and may raise.

    `may` tells whether the machine may "put" or "delete" an object of this name; `puts` is told of what it puts,
    `sees` of the names a whole listing gave.
    """

    def __init__(
        self,
        store: SimStore,
        weather: Weather,
        chance: random.Random,
        event: Callable[[str], None],
        may: Callable[[str, str], bool],
        puts: Callable[[str, bytes], None],
        sees: Callable[[set[str]], None] = lambda names: None,
    ) -> None:
        self._store, self.weather, self._chance = store, weather, chance
        self._event, self._may, self._puts, self._sees = event, may, puts, sees
        self._calls = self._puts_seen = 0
        self._away_until_s = -1.0
        self._call = ""
        self.faults = 0

    def _happens(self, share: float) -> bool:
        happens = share > 0 and self._call.startswith(self.weather.only) and self._chance.random() < share
        self.faults += happens
        return happens

    def _unavailable(self, why: str) -> StoreUnavailable:
        self.faults += 1
        return StoreUnavailable(f"the simulated {self._store.kind} {why}")

    async def _enter(self, what: str) -> None:
        self._event(f"{self._store.kind} {what}")
        weather, now_s = self.weather, asyncio.get_running_loop().time()
        self._calls += 1
        self._call = what
        if weather.slow and self._happens(weather.slow):
            await anyio.sleep(self._chance.uniform(0.0, 20.0))
        if weather.hangs and self._happens(weather.hangs):
            await anyio.sleep(HANG_S)
        if now_s < self._away_until_s:
            raise self._unavailable("is away")
        if weather.away_after is not None and self._calls > weather.away_after:
            self._calls, self._away_until_s = 0, now_s + weather.away_s
            raise self._unavailable("is away from now on")
        if weather.refuses_after is not None and self._calls > weather.refuses_after:
            self.faults += 1
            raise StoreRejected(f"the simulated {self._store.kind} refuses")
        self._call = what  # of several calls under way, the one this turn is of
        if self._happens(weather.fails):
            raise StoreUnavailable("a call failed")
        if self._happens(weather.throttles):
            raise StoreThrottled("asked to slow down")
        await checkpoint()
        self._call = what

    async def put(self, name: str, data: Bytes) -> None:
        if not self._may("put", name):
            raise Broken(f"{name} is put into the {self._store.kind} by a system that must not")
        content = bytes(data)
        self._puts(name, content)
        weather = self.weather
        try:
            await self._enter(f"put {name} {len(content)}")
        except StoreUnavailable:
            if weather.disconnects:
                self._leave_short(name, content)
            raise
        self._puts_seen += 1
        if weather.full_after is not None and self._puts_seen > weather.full_after:
            self.faults += 1
            raise StoreRejected(f"the simulated {self._store.kind} is full")
        if self._happens(weather.short_puts):
            self._leave_short(name, content)
            raise StoreUnavailable("the connection broke in the middle of a put")
        if self._happens(weather.late_puts):
            delay_s = self._chance.uniform(0.0, 120.0)
            asyncio.get_running_loop().call_later(delay_s, self._arrive, name, content)
            raise StoreUnavailable("no answer to a put, which arrives later")
        self._store.apply(name, content)
        if self._happens(weather.loses_answers):
            raise StoreUnavailable("the answer to a put was lost")

    def _leave_short(self, name: str, content: bytes) -> None:
        if name not in self._store.objects:
            self._store.objects[name] = content[: self._chance.choice((0, self._chance.randrange(len(content))))]

    def _arrive(self, name: str, content: bytes) -> None:
        if name not in self._store.objects:  # a put that nobody waits for any more replaces nothing
            self._store.apply(name, content)
            self._store.late.add(name)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        await self._enter(f"get {name} {offset} {length}")
        content = self._content(name)
        data = content[offset:] if length is None else content[offset : offset + length]
        return flip_a_bit(data) if self._happens(self.weather.flips) else data

    async def stat(self, name: str) -> int:
        await self._enter(f"stat {name}")
        return len(self._content(name))

    def _content(self, name: str) -> bytes:
        content = self._store.objects.get(name)
        if content is None:
            raise ObjectMissing(name)
        return content

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._enter(f"list {prefix}")
        names = sorted(name for name in self._store.objects if name.startswith(prefix) and name > after)
        self._chance.shuffle(names)
        stop = self._chance.randrange(len(names) + 1) if self._happens(self.weather.breaks_listings) else None
        for at, name in enumerate(names):
            if at == stop:
                raise StoreUnavailable("a listing broke off")
            if (content := self._store.objects.get(name)) is not None:
                yield ObjectInfo(name, len(content))
        if stop == len(names):
            raise StoreUnavailable("a listing broke off at its end")
        self._sees(set(names))

    async def delete(self, name: str) -> None:
        if not self._may("delete", name):
            raise Broken(f"{name} is deleted from the {self._store.kind} by a system that must not")
        await self._enter(f"delete {name}")
        self._store.remove(name)
        if self._happens(self.weather.loses_answers):
            raise StoreUnavailable("the answer to a delete was lost")

    async def probe(self) -> None:
        await self._enter("probe")

    async def flush(self) -> None:
        await self._enter("flush")
        self._store.unsynced.clear()

    async def sweep(self) -> int:
        """Remove no temporary files: there are none."""
        return 0


def calm_port(store: SimStore) -> Port:
    """Return a way to a store for whoever only looks, which is always open."""
    return Port(store, Weather(), random.Random(0), lambda what: None, lambda op, name: False, lambda name, data: None)
