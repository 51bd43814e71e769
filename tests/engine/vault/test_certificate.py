from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ObjectMissing, StoreCorrupt, StoreUnavailable
from engine.names import certificate_name
from engine.vault import hpke
from engine.vault.certificate import Certificate, Certificates, parse_certificate_object
from engine.vault.slots import OpenedDomain
from tests.engine.vault.fakes_vault import (
    LISTING_KEY,
    SYSTEM,
    certify,
    domain,
    flips,
    other_domain,
    run,
    signing_key,
)
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

LABEL = b"forebay cert v1\0"
OTHER_SYSTEM = bytes(range(50, 66))


def enroller(opened: OpenedDomain | None = None) -> OpenedDomain:
    """Return what an enrol slot gives: no vault key, no recovery key."""
    return replace(opened or domain(), vault_private=None, recovery_private=None)


def store_of(certificates: Iterable[Certificate]) -> MemoryStore:
    store = MemoryStore()
    store.objects.update({one.object_name: one.data for one in certificates})
    return store


def load(store: MemoryStore | FaultyStore) -> Certificates:
    return run(lambda: Certificates.load(store, domain().domain, domain().vault_public))


def forge(data: bytes, key: Ed25519PrivateKey, **changes: object) -> bytes:
    """Return a certificate with other fields, signed by `key`."""
    end = 12 + int.from_bytes(data[8:12], "little")
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(data[12:end]) | changes)
    head = data[:8] + len(body).to_bytes(4, "little") + body
    return head + key.sign(LABEL + head)


def enrol_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(domain().enrol_private)


@pytest.mark.parametrize("opened", [domain(), enroller()], ids=["vault key", "enrolment key"])
def test_a_certified_system_is_believed_and_no_other_message_or_key_is(opened: OpenedDomain) -> None:
    loaded = load(store_of([certify(opened)]))
    signature = signing_key().sign(b"message")
    assert loaded.problems == []
    assert loaded.systems() == [SYSTEM]
    assert loaded.verify(SYSTEM, b"message", signature)
    assert loaded.verify_number(SYSTEM, 1, b"message", signature)
    assert not loaded.verify(SYSTEM, b"other", signature)
    assert not loaded.verify(OTHER_SYSTEM, b"message", signature)
    assert not loaded.verify(SYSTEM, b"message", Ed25519PrivateKey.generate().sign(b"message"))
    assert not loaded.verify_number(SYSTEM, 2, b"message", signature)
    for wrong in (b"", signature[:-1], signature + b"\0"):
        assert not loaded.verify(SYSTEM, b"message", wrong)


def test_a_stranger_reads_a_certificate_with_primitives_only() -> None:
    data = certify().data
    end = 12 + int.from_bytes(data[8:12], "little")
    assert data[:8] == b"FBCERT\x00\x01"
    Ed25519PublicKey.from_public_bytes(domain().vault_public).verify(data[end:], LABEL + data[:end])
    body = msgspec.msgpack.decode(data[12:end])
    binding = body["domain"] + body["system"]
    sealed = body["name_sealed"]
    assert AESGCM(domain().keys.names).decrypt(sealed[:12], sealed[12:], binding) == b"web-01"
    assert domain().recovery_private is not None
    info = b"forebay listing v1\0" + binding
    assert hpke.open(domain().recovery_private or b"", body["listing_sealed"], info) == LISTING_KEY
    assert (body["number"], body["signer"], body["issued"]) == (1, "vault", 1_790_000_000_000)


def test_all_numbers_of_a_system_count_and_the_greatest_is_the_newest() -> None:
    second = Ed25519PrivateKey.generate()
    loaded = load(store_of([certify(), certify(number=2, key=second), certify(number=7, name="renamed", key=second)]))
    newest = loaded.newest(SYSTEM)
    assert newest is not None
    assert newest.number == 7
    assert loaded.names(domain().keys) == {SYSTEM: "renamed"}
    assert loaded.verify(SYSTEM, b"m", signing_key().sign(b"m"))
    assert loaded.verify(SYSTEM, b"m", second.sign(b"m"))
    assert loaded.verify_number(SYSTEM, 2, b"m", second.sign(b"m"))
    assert not loaded.verify_number(SYSTEM, 1, b"m", second.sign(b"m"))
    assert loaded.get(SYSTEM, 3) is None
    assert loaded.newest(OTHER_SYSTEM) is None


def test_every_flipped_bit_is_damage_and_names_the_object() -> None:
    certificate = certify()
    for damaged in flips(certificate.data, 3):
        with pytest.raises(StoreCorrupt) as caught:
            parse_certificate_object(certificate.object_name, damaged, domain().vault_public)
        assert caught.value.name == certificate.object_name


def test_every_cut_and_any_addition_is_damage() -> None:
    certificate = certify()
    data = certificate.data
    for damaged in [*(data[:length] for length in range(0, len(data), 11)), data + b"\0", data + bytes(20000)]:
        with pytest.raises(StoreCorrupt):
            parse_certificate_object(certificate.object_name, damaged, domain().vault_public)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_damage(data: bytes) -> None:
    name = certificate_name(domain().domain, SYSTEM, 1)
    for bytes_ in (data, b"FBCERT\x00\x01" + len(data).to_bytes(4, "little") + data + bytes(64)):
        with pytest.raises(StoreCorrupt):
            parse_certificate_object(name, bytes_, domain().vault_public)


def test_deeply_nested_fields_are_damage_and_no_crash() -> None:
    body = b"\x81\xa1x" + b"\x91" * 10000
    data = b"FBCERT\x00\x01" + len(body).to_bytes(4, "little") + body + bytes(64)
    with pytest.raises(StoreCorrupt):
        parse_certificate_object(certificate_name(domain().domain, SYSTEM, 1), data, domain().vault_public)


def test_a_damaged_certificate_is_named_and_never_trusted_and_the_others_still_count() -> None:
    good, bad = certify(), certify(system=OTHER_SYSTEM, name="web-02")
    store = store_of([good, bad])
    store.objects[bad.object_name] = bad.data[:-1] + bytes([bad.data[-1] ^ 1])
    loaded = load(store)
    assert loaded.systems() == [SYSTEM]
    assert len(loaded.problems) == 1
    assert bad.object_name in loaded.problems[0]
    assert not loaded.verify(OTHER_SYSTEM, b"m", signing_key().sign(b"m"))


@pytest.mark.parametrize(
    ("system", "number", "of"),
    [(OTHER_SYSTEM, 1, "domain"), (SYSTEM, 2, "domain"), (SYSTEM, 1, "other domain")],
    ids=["as another system", "as a newer number", "in another domain"],
)
def test_a_certificate_replayed_under_another_name_is_refused(system: bytes, number: int, of: str) -> None:
    certificate = certify()
    where = domain() if of == "domain" else other_domain()
    name = certificate_name(where.domain, system, number)
    store = MemoryStore()
    store.objects[name] = certificate.data
    loaded = run(lambda: Certificates.load(store, where.domain, domain().vault_public))
    assert loaded.systems() == []
    assert name in loaded.problems[0]
    assert "another certificate's name" in loaded.problems[0]


def test_a_certificate_of_a_foreign_vault_key_is_refused() -> None:
    foreign = replace(other_domain(), domain=domain().domain)
    loaded = load(store_of([certify(foreign)]))
    assert loaded.systems() == []
    assert "not signed by this vault's key" in loaded.problems[0]


def test_an_enrolment_key_that_the_vault_key_did_not_certify_is_refused() -> None:
    attacker = Ed25519PrivateKey.generate()
    data = forge(
        certify(enroller()).data,
        attacker,
        enrol_public=attacker.public_key().public_bytes_raw(),
        signing_public=attacker.public_key().public_bytes_raw(),
    )
    name = certificate_name(domain().domain, SYSTEM, 1)
    with pytest.raises(StoreCorrupt, match="not certified by this vault's key"):
        parse_certificate_object(name, data, domain().vault_public)


def test_an_enrolment_key_of_another_domain_is_refused() -> None:
    other = other_domain()
    data = forge(
        certify(enroller()).data,
        Ed25519PrivateKey.from_private_bytes(other.enrol_private),
        enrol_public=other.enrol_public,
        enrol_certificate=other.enrol_certificate,
    )
    with pytest.raises(StoreCorrupt, match="not certified by this vault's key"):
        parse_certificate_object(certificate_name(domain().domain, SYSTEM, 1), data, domain().vault_public)


def test_an_enrolment_key_cannot_put_another_key_in_a_systems_place() -> None:
    data = forge(certify(enroller()).data, enrol_key(), number=2)
    name = certificate_name(domain().domain, SYSTEM, 2)
    store = store_of([certify()])
    store.objects[name] = data
    loaded = load(store)
    newest = loaded.newest(SYSTEM)
    assert newest is not None
    assert newest.number == 1
    assert "may not certify another key" in loaded.problems[0]
    with pytest.raises(ValueError, match="only the vault key"):
        certify(enroller(), number=2)


def test_an_enrolment_key_cannot_pose_as_the_vault_key() -> None:
    data = forge(certify(enroller()).data, enrol_key(), signer="vault")
    with pytest.raises(StoreCorrupt, match="not signed by this vault's key"):
        parse_certificate_object(certificate_name(domain().domain, SYSTEM, 1), data, domain().vault_public)


def test_an_unknown_signer_is_damage() -> None:
    data = forge(certify().data, enrol_key(), signer="anyone")
    with pytest.raises(StoreCorrupt):
        parse_certificate_object(certificate_name(domain().domain, SYSTEM, 1), data, domain().vault_public)


def test_the_listing_key_opens_with_the_recovery_key_alone() -> None:
    loaded = load(store_of([certify()]))
    assert domain().recovery_private is not None
    assert loaded.open_listing_key(SYSTEM, domain().recovery_private or b"") == LISTING_KEY
    with pytest.raises(StoreCorrupt, match="listing key cannot be opened"):
        loaded.open_listing_key(SYSTEM, hpke.generate()[0])
    with pytest.raises(ObjectMissing, match="no valid certificate"):
        loaded.open_listing_key(OTHER_SYSTEM, domain().recovery_private or b"")


def test_names_are_readable_in_the_domain_only_and_a_swapped_one_is_a_problem() -> None:
    assert b"web-01" not in certify().data
    loaded = load(store_of([certify()]))
    assert loaded.names(other_domain().keys) == {}
    assert "name in it cannot be opened" in loaded.problems[0]
    assert len(loaded.problems) == 1
    loaded.names(other_domain().keys)
    assert len(loaded.problems) == 1


def test_only_what_is_new_is_read_again() -> None:
    store = FaultyStore(store_of([certify()]), FaultPlan())
    loaded = load(store)
    assert isinstance(store.inner, MemoryStore)
    new = certify(system=OTHER_SYSTEM, name="web-02")
    store.inner.objects[new.object_name] = new.data
    store.calls.clear()
    fresh = run(lambda: loaded.refresh(store))
    assert [name for operation, name in store.calls if operation == "get"] == [new.object_name]
    assert fresh.names(domain().keys) == {SYSTEM: "web-01", OTHER_SYSTEM: "web-02"}
    assert loaded.systems() == [SYSTEM]


def test_a_vault_that_goes_away_while_they_are_read_is_a_plain_error() -> None:
    certificates = [certify(system=bytes([number]) * 16, name=f"web-{number}") for number in range(40)]
    store = FaultyStore(store_of(certificates), FaultPlan().fail("get", 20, 40))
    with pytest.raises(StoreUnavailable):
        load(store)
    assert len(load(FaultyStore(store.inner, FaultPlan())).systems()) == 40


def test_certificates_of_other_domains_and_foreign_objects_are_not_even_read() -> None:
    store = store_of([certify(), certify(other_domain())])
    store.objects[f"cert/{domain().domain.hex()}/readme"] = b"?"
    counting = FaultyStore(store, FaultPlan())
    loaded = load(counting)
    assert [name for operation, name in counting.calls if operation == "get"] == [certify().object_name]
    assert loaded.problems == []


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_of_no_or_too_many_bytes_is_not_certified(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        certify(name=name)
    assert certify(name="x" * 255).name(domain().keys) == "x" * 255
