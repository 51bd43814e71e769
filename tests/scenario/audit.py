"""What a restore point in a vault is made of, read with the passphrase: its records, the packs its runs name."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import numpy as np

from engine.block import DELTA_FLAG, ID_BYTES, LENGTH_MASK
from engine.delta import has_all, open_links, open_source, parse_delta
from engine.names import PackName
from engine.recovery.catalogue import LATEST
from engine.recovery.pages import PlacesReader
from engine.recovery.sources import open_source as open_blocks
from engine.runs import RunReader, overlay
from engine.seal import WHOLE, parse_header
from engine.subkeys import record_keys
from tests.engine.recovery.build import MemoryMirror
from tests.scenario.machine import Machine
from tests.scenario.recover import Recoverer


@dataclass
class Audit:
    """Of one volume of a point: blocks by the kind of their record, and the most records a block needs."""

    whole: int = 0
    deltas: int = 0
    records_max: int = 0


def audit(machine: Machine, point: str = LATEST, volume: str = "data") -> Audit:
    """Follow every block to its records by pinned places and the packs its point's runs name; everything must fit."""
    return anyio.run(audited, Recoverer.of(machine), point, volume)


async def audited(recoverer: Recoverer, point: str, volume: str) -> Audit:
    """Follow every block, as `audit` does."""
    recoverer.cache = None
    places, _ = recoverer.places()
    catalogue, access = await recoverer.catalogue(places)
    found = await catalogue.find(await catalogue.names(access), point, volume)
    blocks = open_blocks(places, found, lambda name: MemoryMirror())
    root, described = found.require_root(), found.volume(volume)
    pages = PlacesReader(blocks, found.access.keys(root).pages)
    readers = [RunReader(pages, run, found.access.open_envelope(root, run)) for run in described.runs]
    tables = [await reader.table() for reader in readers]
    packs = {name.key: name for table in tables for name in table.names()}
    window = await overlay(readers, 0, described.blocks)
    result = Audit()
    data: dict[PackName, bytes] = {}

    assert recoverer.vault is not None
    vault = recoverer.vault

    async def record_at(place: np.void) -> bytes:
        name = packs[int(place["pack"])]
        if name not in data:
            data[name] = bytes(await vault.get(str(name)))
        start = int(place["offset"])
        return data[name][start : start + (int(place["length"]) & LENGTH_MASK)]

    for ref, place in zip(window.refs, window.places, strict=True):
        if not ref.any():
            continue
        record = await record_at(place)
        assert parse_header(record, "audit").id == ref[:ID_BYTES].tobytes()
        if parse_header(record, "audit").kind == WHOLE:
            assert not int(place["length"]) & DELTA_FLAG
            result.whole += 1
            continue
        assert int(place["length"]) & DELTA_FLAG
        delta = parse_delta(record, "audit")
        sources, part_map = open_links(delta, record_keys(ref[ID_BYTES:].tobytes())[1], "audit")
        for origin, source in enumerate(sources):
            held = open_source(source, await record_at(source.place), "audit")
            assert has_all(held, part_map, origin, delta.block_length), "a source holds what is taken from it"
        result.deltas += 1
        result.records_max = max(result.records_max, 1 + len(sources))
    return result
