from __future__ import annotations

import unicodedata
from dataclasses import replace

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError, FormatTooNew, StoreCorrupt
from engine.vault import hpke
from engine.vault.framing import SLOTS_MAX
from engine.vault.slots import (
    KdfCost,
    OpenedDomain,
    found,
    open_slots,
    parse_slot_object,
    seal_slot,
)
from tests.engine.vault.fakes_vault import (
    CHEAP,
    OTHER_PASSPHRASE,
    PASSPHRASE,
    domain,
    flips,
    other_domain,
    rechecked,
    run,
    secrets_of,
    shows,
)
from tests.fakes import MemoryStore


def store_of(*slots: tuple[str, bytes]) -> MemoryStore:
    store = MemoryStore()
    store.objects.update(slots)
    return store


def opened(store: MemoryStore, passphrase: str = PASSPHRASE, key_file: bytes | None = None) -> list[OpenedDomain]:
    return run(lambda: open_slots(store, passphrase, key_file))


def with_header(slot: bytes, **changes: object) -> bytes:
    """Return a slot with other header fields and a right checksum."""
    length = int.from_bytes(slot[8:12], "little")
    fields = msgspec.msgpack.decode(slot[12 : 12 + length])
    header = msgspec.msgpack.encode(fields | changes)
    return rechecked(slot[:8] + len(header).to_bytes(4, "little") + header + slot[12 + length :])


def test_the_passphrase_opens_what_the_founder_made() -> None:
    assert opened(store_of(*domain().slots)) == [domain()]


def test_a_stranger_opens_a_slot_with_primitives_only() -> None:
    [(name, slot)] = domain().slots
    assert slot[:8] == b"FBSLOT\x00\x01"
    end = 12 + int.from_bytes(slot[8:12], "little")
    header = msgspec.msgpack.decode(slot[12:end])
    assert name == f"key/{header['domain'].hex()}/{header['slot'].hex()}"
    argon = Argon2id(
        salt=header["salt"],
        length=32,
        iterations=header["iterations"],
        lanes=header["lanes"],
        memory_cost=header["memory_kib"],
    ).derive(unicodedata.normalize("NFC", PASSPHRASE).encode())
    kek = blake3(argon, derive_key_context="forebay 2026 v1 slot").digest()
    body = msgspec.msgpack.decode(AESGCM(kek).decrypt(slot[end : end + 12], slot[end + 12 : -16], slot[:end]))
    assert body["domain_secret"] == domain().domain_secret
    assert body["recovery_private"] == domain().recovery_private
    assert slot[-16:] == blake3(slot[:-16]).digest()[:16]
    assert header["kind"] == 2
    assert header["version"] == 1


def test_an_enrol_slot_opens_no_history() -> None:
    slot = seal_slot(domain(), "enrol", OTHER_PASSPHRASE, CHEAP, None)
    [one] = opened(store_of(*domain().slots, slot), OTHER_PASSPHRASE)
    assert one.recovery_private is None
    assert one.vault_private is None
    assert one.keys == domain().keys
    assert one.recovery_public == domain().recovery_public
    assert len(one.slots) == 2  # all travel, also those this passphrase does not open
    with pytest.raises(ConfigError, match="recovery passphrase"):
        seal_slot(one, "recovery", PASSPHRASE, CHEAP, None)


def test_a_second_recovery_slot_opens_the_same_domain_with_another_passphrase() -> None:
    slot = seal_slot(domain(), "recovery", OTHER_PASSPHRASE, CHEAP, None)
    [one] = opened(store_of(*domain().slots, slot), OTHER_PASSPHRASE)
    assert secrets_of(one) == secrets_of(domain())


def test_enrol_and_recovery_slot_under_one_passphrase_give_the_recovery_key() -> None:
    slots = [seal_slot(domain(), "enrol", PASSPHRASE, CHEAP, None) for _ in range(3)]
    [one] = opened(store_of(*slots, *domain().slots))
    assert one.recovery_private == domain().recovery_private


def test_two_domains_in_one_store_are_told_apart() -> None:
    both = found(PASSPHRASE, CHEAP, None)[0]
    store = store_of(*domain().slots, *both.slots, *other_domain().slots)
    assert [one.domain for one in opened(store)] == sorted([domain().domain, both.domain])
    assert [one.domain for one in opened(store, OTHER_PASSPHRASE)] == [other_domain().domain]


def test_a_wrong_passphrase_is_one_sentence_that_does_not_repeat_it() -> None:
    with pytest.raises(
        ConfigError, match=r"passphrase is wrong: it opens no key slot of the store \(1 tried\)"
    ) as caught:
        opened(store_of(*domain().slots), "wrong horse entirely")
    assert "horse" not in str(caught.value)


def test_a_store_without_slots_says_so() -> None:
    with pytest.raises(ConfigError, match="no key slots"):
        opened(MemoryStore())


def test_the_passphrase_is_compared_in_one_unicode_form() -> None:
    made, _ = found("Ka\u0308fer fallen vom Dach", CHEAP, None)
    assert opened(store_of(*made.slots), "K\u00e4fer fallen vom Dach") == [made]


def test_a_key_file_is_a_second_factor() -> None:
    made, _ = found(PASSPHRASE, CHEAP, b"key file content")
    store = store_of(*made.slots)
    assert opened(store, key_file=b"key file content") == [made]
    with pytest.raises(ConfigError, match="--key-file"):
        opened(store)
    with pytest.raises(ConfigError, match="passphrase or the key file is wrong"):
        opened(store, key_file=b"other content")


def test_a_key_file_does_no_harm_where_none_is_needed() -> None:
    assert opened(store_of(*domain().slots), key_file=b"whatever") == [domain()]


def test_every_flipped_bit_is_damage_and_names_the_slot() -> None:
    [(name, slot)] = domain().slots
    for damaged in flips(slot):
        with pytest.raises(StoreCorrupt) as caught:
            parse_slot_object(name, damaged)
        assert caught.value.name == name
    with pytest.raises(StoreCorrupt, match="checksum") as caught:
        opened(store_of((name, slot[:-1] + bytes([slot[-1] ^ 1]))))
    assert caught.value.name == name


def test_every_cut_and_any_addition_is_damage() -> None:
    [(name, slot)] = domain().slots
    for damaged in [*(slot[:length] for length in range(0, len(slot), 7)), slot + b"\0", slot + bytes(20000)]:
        with pytest.raises(StoreCorrupt):
            parse_slot_object(name, damaged)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_damage(data: bytes) -> None:
    name = domain().slots[0][0]
    for bytes_ in (data, rechecked(b"FBSLOT\x00\x01" + data + bytes(16))):
        with pytest.raises(StoreCorrupt):
            parse_slot_object(name, bytes_)


@pytest.mark.parametrize(
    "hostile",
    [
        {"memory_kib": 4 << 30},
        {"memory_kib": 1024 * 1024 + 1},
        {"memory_kib": 8191},
        {"memory_kib": -1},
        {"memory_kib": (1 << 64) - 1},
        {"iterations": 0},
        {"iterations": 17},
        {"lanes": 0},
        {"lanes": 17},
        {"salt": b"short"},
        {"salt": bytes(17)},
        {"kind": 3},
        {"version": 0},
        {"key_file": "yes"},
        {"domain": b""},
    ],
)
def test_hostile_parameters_are_refused_before_anything_is_computed(hostile: dict[str, object]) -> None:
    [(name, slot)] = domain().slots
    with pytest.raises(StoreCorrupt) as caught:
        parse_slot_object(name, with_header(slot, **hostile))
    assert caught.value.name == name


def test_lowering_the_cost_of_a_slot_does_not_open_it() -> None:
    made, (name, slot) = found(PASSPHRASE, KdfCost(8192, 2, 1), None)
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        opened(store_of((name, with_header(slot, iterations=1))))
    assert opened(store_of((name, slot))) == [made]


def test_unknown_header_fields_are_ignored_and_newer_versions_named() -> None:
    [(name, slot)] = domain().slots
    parse_slot_object(name, with_header(slot, hint="added later"))
    with pytest.raises(FormatTooNew, match="install a newer forebay"):
        parse_slot_object(name, with_header(slot, version=2))


def test_a_slot_under_another_slots_name_is_refused() -> None:
    [(name, _)], [(_, other)] = domain().slots, other_domain().slots
    with pytest.raises(StoreCorrupt, match="another slot's name") as caught:
        opened(store_of((name, other)), OTHER_PASSPHRASE)
    assert caught.value.name == name


def test_a_damaged_slot_beside_a_good_one_is_named_and_does_not_stop_anyone() -> None:
    name, slot = seal_slot(domain(), "recovery", PASSPHRASE, CHEAP, None)
    problems: list[str] = []
    store = store_of(*domain().slots, (name, slot[:-20]))
    [one] = run(lambda: open_slots(store, PASSPHRASE, None, problems))
    assert one.domain == domain().domain
    assert len(problems) == 1
    assert name in problems[0]
    with pytest.raises(StoreCorrupt, match=r"opens no other key slot \(1 tried\)") as caught:
        opened(store, "wrong horse entirely")
    assert caught.value.name == name


def test_more_slots_than_anyone_needs_are_refused_before_anything_is_computed() -> None:
    store = MemoryStore()
    for number in range(SLOTS_MAX + 1):
        store.objects[f"key/{bytes(16).hex()}/{number:032x}"] = b"x"
    with pytest.raises(ConfigError, match=f"{SLOTS_MAX + 1} key slots"):
        opened(store)


def test_foreign_objects_beside_slots_are_left_alone() -> None:
    store = store_of(*domain().slots, ("key/readme", b"?"), ("key/xyz/abc", b"?"))
    assert opened(store) == [domain()]


def test_slots_that_contradict_each_other_are_reported() -> None:
    # Whoever knows the passphrase could plant a slot with a vault key of their own.
    forged = replace(other_domain(), domain=domain().domain)
    assert forged.vault_private is not None
    enrol = Ed25519PrivateKey.from_private_bytes(forged.enrol_private).public_key().public_bytes_raw()
    vault = Ed25519PrivateKey.from_private_bytes(forged.vault_private)
    forged = replace(forged, enrol_certificate=vault.sign(b"forebay enrol v1\0" + forged.domain + enrol))
    slot = seal_slot(forged, "recovery", PASSPHRASE, CHEAP, None)
    with pytest.raises(StoreCorrupt, match="forged"):
        opened(store_of(*domain().slots, slot))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("enrol_certificate", bytes(64), "not certified"),
        ("enrol_private", bytes(32), "not certified"),
        ("recovery_private", hpke.generate()[0], "recovery key"),
        ("vault_private", bytes(32), "vault key"),
        ("domain_secret", bytes(31), "cannot be read"),
    ],
)
def test_keys_that_do_not_belong_together_are_damage(field: str, value: bytes, reason: str) -> None:
    made = replace(domain(), **{field: value})  # type: ignore[arg-type]
    name, slot = seal_slot(made, "recovery", PASSPHRASE, CHEAP, None)
    with pytest.raises(StoreCorrupt, match=reason) as caught:
        opened(store_of((name, slot)))
    assert caught.value.name == name


@pytest.mark.parametrize(
    "cost", [(8191, 1, 1), (1 << 21, 1, 1), (8192, 0, 1), (8192, 17, 1), (8192, 1, 0), (8192, 1, 17)]
)
def test_costs_out_of_bounds_cannot_be_made(cost: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        KdfCost(*cost)


def test_the_default_cost_is_that_of_the_design() -> None:
    assert KdfCost() == KdfCost(256 * 1024, 3, 4)


def test_nothing_secret_is_in_a_repr() -> None:
    for secret in secrets_of(domain()):
        assert not shows(repr(domain()), secret)
        assert not shows(str(domain()), secret)
