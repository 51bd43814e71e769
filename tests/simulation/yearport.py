"""A system's way to the cache it shares for a year: what it asks is counted, and what it does is told."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio
from anyio.lowlevel import checkpoint

from engine.block import Bytes
from engine.names import StampName
from engine.ports import ObjectInfo
from tests.simulation.stores import Broken, Port, Weather
from tests.simulation.yearcache import CacheDisk, Facts


@dataclass
class Asked:
    """What was asked of the cache: calls by kind, and the objects that were read, with how many bytes."""

    calls: int = 0
    read: list[tuple[str, int]] = field(default_factory=list)
    put: list[str] = field(default_factory=list)


class CachePort(Port):
    """The way of one system. `look`, `look_at_pins`: when it last did, among all that is told; `trimming`: it trims.

    `freed_bytes`: of the packs it deleted, less those it put.
    """

    def __init__(
        self,
        disk: CacheDisk,
        facts: Facts,
        weather: Weather,
        chance: random.Random,
        event: Callable[[str], None],
        may: Callable[[str, str], bool],
        slow_s: float,
    ) -> None:
        super().__init__(disk, weather, chance, event, may, lambda name, data: None)
        self._disk, self._facts, self._slow_s = disk, facts, slow_s
        self.trimming, self.look, self.look_at_pins, self._announced = False, 0, 0, 0
        self.asked, self.freed_bytes = Asked(), 0

    async def _enter(self, what: str) -> None:
        self.asked.calls += 1
        if self.weather.calm:
            self._event(what)
            await checkpoint()
        else:
            await super()._enter(what)
        if self._slow_s and self._chance.random() < 0.1:
            await anyio.sleep(self._chance.uniform(0.0, self._slow_s))

    async def put(self, name: str, data: Bytes) -> None:
        before = self._disk.objects.get(name)
        try:
            await super().put(name, data)
        finally:
            self._told(name, before)

    def _arrive(self, name: str, content: bytes) -> None:
        before = self._disk.objects.get(name)
        super()._arrive(name, content)
        self._told(name, before)

    def _told(self, name: str, before: bytes | None) -> None:
        """Tell what is there now, if it was put whole."""
        there = self._disk.objects.get(name)
        if there is None or there is before or self._disk.written.get(name) != there:
            return
        self.asked.put.append(name)
        if name.startswith("data/"):
            self.freed_bytes -= len(there) - len(before or b"")
        if name.startswith("gc/"):
            if self._facts.announce(name, there, self.look, self.look_at_pins):
                if min(self.look, self.look_at_pins) <= self._announced:
                    raise Broken(f"{name}: more packs go, and nobody looked again what is needed")
                self._announced = self._facts.look()
        else:
            self._facts.put(name, there, trimming=self.trimming)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        self.asked.read.append((name, len(data)))
        return data

    async def delete(self, name: str) -> None:
        if name.startswith("stamp/") and self._disk.objects.get(name) != self._disk.written.get(name):
            stamp = StampName.parse(name)  # as long as it was there, it counted as if it said something
            assert stamp is not None
            self._facts.stamp_hurt(stamp.writer, gone=True)
        pack, size = self._facts.packs.get(name), len(self._disk.objects.get(name, b""))
        try:
            await super().delete(name)
        finally:
            if name not in self._disk.objects:
                if pack is not None and pack.there:  # nobody else was faster
                    self.freed_bytes += size
                self._facts.removed(name, self.look, self.look_at_pins)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        if prefix == "stamp/":
            self.look = self._facts.look()
        elif prefix == "pin/":
            self.look_at_pins = self._facts.look()
        if self.weather.calm:
            await self._enter(f"list {prefix}")
            there = self._disk.objects
            for name, size in [(name, len(there[name])) for name in there if name.startswith(prefix) and name > after]:
                yield ObjectInfo(name, size)
            return
        async for info in super().list(prefix, after):
            yield info
