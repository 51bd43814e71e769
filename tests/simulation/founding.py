"""The domains simulations begin with: one in a vault and a cache, and one that was founded before there was a vault."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from engine.names import FORMAT
from engine.recovery.access import Access, by_passphrase
from engine.recovery.places import Place, Places, Problems
from engine.vault.adoption import adopt_cache, adopt_spool
from engine.vault.formatobject import StoreKind, new_store
from engine.vault.founding import enrol
from engine.vault.identity import Identity
from engine.vault.offline import found_offline
from engine.vault.slots import KdfCost
from tests.simulation import clockwork
from tests.simulation.clockwork import VirtualClock
from tests.simulation.stores import Port, SimStore, Weather, calm_port

PASSPHRASE: Final = "correct horse battery staple wagon"
NAMES: Final = ("web-01", "db-02")
_FOUNDED_FROM: Final = 7  # the seed of all keys: identities are the same in every simulation


@dataclass(frozen=True)
class Founded:
    """Stores with a domain, and the systems enrolled in it, by name; simulations begin with copies of it.

    `spools`: what lies in the spools they have adopted.
    """

    vault: dict[str, bytes]
    cache: dict[str, bytes]
    spools: dict[str, dict[str, bytes]]
    identities: dict[str, Identity]
    access: Access


async def found() -> tuple[Founded, Founded]:
    """Found the domains simulations begin with; the second one has no vault yet, and one system."""
    clockwork.begin(_FOUNDED_FROM)
    vault, near = _empty("vault"), _empty("cache")
    identities: dict[str, Identity] = {}
    spools: dict[str, dict[str, bytes]] = {}
    for name in NAMES:
        enrolled = await enrol(_open(vault), name, PASSPHRASE, None, KdfCost.cheapest(), VirtualClock())
        identity = (await adopt_cache(_open(near), enrolled.identity)).identity
        identities[name], spools[name] = await _with_spool(identity)
    first = Founded(vault.objects, near.objects, spools, identities, await _access(vault))
    near = _empty("cache")
    alone = await found_offline(NAMES[0], PASSPHRASE, None, KdfCost.cheapest(), VirtualClock())
    alone, spool = await _with_spool((await adopt_cache(_open(near), alone)).identity)
    access = await _access(near)
    return first, Founded({}, near.objects, {NAMES[0]: spool}, {NAMES[0]: alone}, access)


async def _with_spool(identity: Identity) -> tuple[Identity, dict[str, bytes]]:
    spool = _empty("spool")
    return (await adopt_spool(_open(spool), identity)).identity, spool.objects


async def _access(store: SimStore) -> Access:
    place = Place(store.kind, store.kind, calm_port(store))
    return await by_passphrase(PASSPHRASE, None, Places([place], Problems()))


def _empty(kind: StoreKind) -> SimStore:
    return SimStore(kind, {FORMAT: new_store(kind).encode()})


def _open(store: SimStore) -> Port:
    return Port(store, Weather(), random.Random(0), lambda what: None, lambda op, name: True, lambda name, data: None)
