"""A domain founded without a vault, and the vault it gets once, at first contact and nowhere else."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from engine.errors import ConfigError, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.vault.adoption import adopt_cache, adopt_spool
from engine.vault.enrolment import check_enrolment, check_spool
from engine.vault.formatobject import FormatObject, new_store, parse_format
from engine.vault.founding import enrol
from engine.vault.identity import Identity
from engine.vault.offline import create_pending, finish_pending, found_offline
from engine.vault.slots import open_slots
from tests.engine.vault.fakes_vault import CHEAP, PASSPHRASE, empty_cache, empty_vault, identity, run
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore, flip_a_bit


def founded() -> Identity:
    return run(lambda: found_offline("web-01", PASSPHRASE, None, CHEAP, FakeClock()))


def empty_spool() -> MemoryStore:
    store = MemoryStore()
    store.objects["format"] = new_store("spool").encode()
    return store


def created(vault: MemoryStore | FaultyStore, offline: Identity) -> Identity:
    return run(lambda: create_pending(vault, offline))


def test_a_domain_founded_offline_has_its_keys_and_the_id_of_a_vault_to_be_made() -> None:
    offline, other = founded(), founded()
    assert offline.vault_pending
    assert offline.vault != other.vault
    assert len(offline.slots) == 1
    assert offline.certified().number == 1
    assert (offline.spool, offline.cache) == (None, None)


def test_a_weak_passphrase_and_an_impossible_name_found_nothing() -> None:
    with pytest.raises(ConfigError, match="too weak"):
        run(lambda: found_offline("web-01", "hunter2hunter2", None, CHEAP, FakeClock()))
    with pytest.raises(ConfigError, match="name must have"):
        run(lambda: found_offline("", PASSPHRASE, None, CHEAP, FakeClock()))


def test_the_spool_it_adopts_opens_with_the_passphrase_alone() -> None:
    offline, spool = founded(), empty_spool()
    adopted = run(lambda: adopt_spool(spool, offline)).identity
    assert adopted.spool == parse_format(spool.objects["format"]).store
    check_spool(adopted, parse_format(spool.objects["format"]))
    (opened,) = run(lambda: open_slots(spool, PASSPHRASE, None, []))
    assert opened.recovery_private is not None
    assert spool.objects[offline.certificate_name] == offline.certificate


def test_first_contact_with_an_empty_store_makes_exactly_the_chosen_vault() -> None:
    offline, vault = founded(), MemoryStore()
    known = created(vault, offline)
    assert known == msgspec.structs.replace(offline, vault_pending=False)
    assert parse_format(vault.objects["format"]) == FormatObject("vault", offline.vault)
    assert set(vault.objects) == {"format", offline.certificate_name, offline.slots[0][0]}
    run(lambda: check_enrolment(vault, known))
    # The next system joins it like any other vault.
    joined = run(lambda: enrol(vault, "web-02", PASSPHRASE, None, CHEAP, FakeClock()))
    assert joined.identity.domain == offline.domain
    assert not joined.founded


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_first_contact_cut_off_anywhere_is_finished_by_the_next(call: int, lost: bool) -> None:
    offline, vault = founded(), MemoryStore()
    plan = FaultPlan().lose_acknowledgement("put", call) if lost else FaultPlan().fail("put", call)
    with pytest.raises(StoreUnavailable):
        created(FaultyStore(vault, plan), offline)
    assert not created(vault, offline).vault_pending
    assert set(vault.objects) == {"format", offline.certificate_name, offline.slots[0][0]}
    assert created(vault, offline) == msgspec.structs.replace(offline, vault_pending=False)


@pytest.mark.parametrize("cut", [0, 10, 55])
def test_a_format_object_that_a_share_left_cut_off_is_put_again(cut: int) -> None:
    offline, vault = founded(), MemoryStore()
    vault.objects["format"] = FormatObject("vault", offline.vault).encode()[:cut]
    created(vault, offline)
    assert parse_format(vault.objects["format"]).store == offline.vault


@pytest.mark.parametrize("prefix", ["key/", "cert/"])
@pytest.mark.parametrize("cut", [0, 20])
def test_a_slot_or_certificate_that_a_share_left_cut_off_is_put_again(prefix: str, cut: int) -> None:
    offline, vault = founded(), MemoryStore()
    created(vault, offline)
    whole = dict(vault.objects)
    (name,) = (name for name in whole if name.startswith(prefix))
    vault.objects[name] = whole[name][:cut]
    created(vault, offline)
    assert vault.objects == whole
    # What is no beginning of it is damaged, or somebody else's: that is told, not replaced.
    vault.objects[name] = flip_a_bit(whole[name])
    if prefix == "cert/":
        with pytest.raises(StoreCorrupt, match="it is not what this machine was enrolled with"):
            created(vault, offline)
    else:
        created(vault, offline)
    assert vault.objects[name] == flip_a_bit(whole[name])


@pytest.mark.parametrize("name", ["holiday.jpg", "root/x", "key/a"])
def test_a_place_with_anything_in_it_gets_no_vault(name: str) -> None:
    offline, vault = founded(), MemoryStore()
    vault.objects[name] = b"something"
    with pytest.raises(ConfigError, match=f"it holds '{name}'"):
        created(vault, offline)
    assert vault.objects == {name: b"something"}


def test_another_vault_is_never_joined_in_silence() -> None:
    offline, vault = founded(), empty_vault()
    run(lambda: enrol(vault, "web-01", PASSPHRASE, None, CHEAP, FakeClock()))
    before = dict(vault.objects)
    for contact in (create_pending, finish_pending):
        with pytest.raises(ConfigError, match=r"exists already .*founded a domain of its own offline.*--spool"):
            run(partial(contact, vault, offline))
    assert vault.objects == before


def test_a_vault_that_is_away_or_that_somebody_makes_at_the_same_moment_is_left_alone() -> None:
    offline = founded()
    away = MemoryStore()
    away.away = True
    with pytest.raises(StoreUnavailable):
        created(away, offline)

    class Raced(MemoryStore):
        async def put(self, name: str, data: object) -> None:
            self.objects.setdefault("format", new_store("vault").encode())
            await super().put(name, bytes(data))  # type: ignore[call-overload]

    raced = Raced()
    with pytest.raises(StoreRejected, match="exists with other content"):
        created(raced, offline)
    assert set(raced.objects) == {"format"}
    damaged = MemoryStore()
    damaged.objects["format"] = b"FOREBAY\n" + bytes(48)
    with pytest.raises(StoreCorrupt):
        created(damaged, offline)


def test_a_spool_with_points_of_another_system_is_not_adopted() -> None:
    spool, mine = empty_spool(), identity()
    own = f"root/{mine.system.hex()}/{7:016x}-{'ab' * 8}"
    spool.objects[own] = b"a root"
    assert run(lambda: adopt_spool(spool, mine)).identity.spool is not None
    before = dict(spool.objects)
    stranger = founded()
    with pytest.raises(ConfigError, match=rf"holds 1 restore points of another system \({mine.system.hex()}\)"):
        run(lambda: adopt_spool(spool, stranger))
    assert spool.objects == before


def test_a_store_of_another_kind_is_adopted_as_none() -> None:
    with pytest.raises(StoreRejected, match="is a cache, not a spool"):
        run(lambda: adopt_spool(empty_cache(), identity()))
    with pytest.raises(StoreRejected, match="is a spool, not a cache"):
        run(lambda: adopt_cache(empty_spool(), identity()))
