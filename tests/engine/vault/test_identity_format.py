from __future__ import annotations

import io

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from engine.errors import ConfigError, StoreCorrupt
from engine.vault.identity import decode_identity, encode_identity
from tests.engine.vault.fakes_vault import LISTING_KEY, certify, domain, flips, identity, shows, signing_key

WHERE = "/var/lib/forebay/identity"


def rehashed(identity_fields: dict[str, object]) -> bytes:
    body = msgspec.msgpack.encode(identity_fields)
    framed = b"FBIDENT\x01" + len(body).to_bytes(4, "little") + body
    return framed + blake3(framed).digest()


def fields() -> dict[str, object]:
    found: dict[str, object] = msgspec.msgpack.decode(encode_identity(identity())[12:-32])
    return found


def test_what_is_encoded_decodes_to_the_same() -> None:
    assert decode_identity(encode_identity(identity()), WHERE) == identity()
    with_cache = msgspec.structs.replace(identity(), cache=bytes(range(16)))
    assert decode_identity(encode_identity(with_cache), WHERE) == with_cache


def test_the_spool_and_a_vault_to_be_made_are_kept_and_absent_from_older_files() -> None:
    offline = msgspec.structs.replace(identity(), spool=bytes(range(16)), vault_pending=True)
    assert decode_identity(encode_identity(offline), WHERE) == offline
    older = {name: value for name, value in fields().items() if name not in ("spool", "vault_pending")}
    assert len(older) == len(fields()) - 2
    read = decode_identity(rehashed(older), WHERE)
    assert (read.spool, read.vault_pending) == (None, False)


def test_every_flipped_bit_and_every_cut_is_damage_and_names_the_file() -> None:
    encoded = encode_identity(identity())
    for damaged in [*flips(encoded, 3), *(encoded[:n] for n in range(0, len(encoded), 31)), encoded + b"\0"]:
        with pytest.raises(ConfigError, match=f"identity file {WHERE} is damaged") as caught:
            decode_identity(damaged, WHERE)
        assert "--replace" in str(caught.value)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_damage(data: bytes) -> None:
    framed = b"FBIDENT\x01" + len(data).to_bytes(4, "little") + data
    for bytes_ in (data, framed + blake3(framed).digest()):
        with pytest.raises(ConfigError, match="is damaged"):
            decode_identity(bytes_, WHERE)


def test_a_newer_version_is_told_from_damage_and_unknown_fields_are_ignored() -> None:
    with pytest.raises(ConfigError, match="install a newer forebay"):
        decode_identity(rehashed(fields() | {"version": 2, "name": 5}), WHERE)
    assert decode_identity(rehashed(fields() | {"later": 1}), WHERE) == identity()


@pytest.mark.parametrize(
    "change",
    [
        {"domain_secret": bytes(31)},
        {"name": ""},
        {"certificate_number": 2},
        {"certificate": b""},
        {"signing_private": bytes(32)},
        {"vault_public": bytes(32)},
        {"system": bytes(16)},
        {"slots": [("elsewhere/file", b"")]},
        {"spool": bytes(15)},
        {"vault_pending": 1},
    ],
)
def test_keys_that_do_not_belong_together_are_damage(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is damaged"):
        decode_identity(rehashed(fields() | change), WHERE)


def test_its_own_certificate_is_checked_against_the_pinned_vault_key() -> None:
    assert identity().certified().data == identity().certificate
    stolen = msgspec.structs.replace(identity(), signing_private=Ed25519PrivateKey.generate().private_bytes_raw())
    with pytest.raises(StoreCorrupt, match="other keys"):
        stolen.certified()


def test_it_signs_as_the_certified_system() -> None:
    signature = identity().signer(b"message")
    signing_key().public_key().verify(signature, b"message")
    assert certify().verify(b"message", signature)


def test_it_holds_no_key_that_opens_history_or_enrols_others() -> None:
    encoded = encode_identity(identity())
    for key in (domain().recovery_private, domain().vault_private, domain().enrol_private):
        assert key is not None
        assert key not in encoded
        assert key[:32] not in encoded


def test_nothing_secret_is_in_a_repr_however_it_is_printed() -> None:
    rich = Console(file=io.StringIO(), width=10_000)
    rich.print(identity())
    assert isinstance(rich.file, io.StringIO)
    texts = [repr(identity()), str(identity()), f"{identity()}", rich.file.getvalue(), repr([identity()])]
    for text in texts:
        for secret in (domain().domain_secret, LISTING_KEY, signing_key().private_bytes_raw()):
            assert not shows(text, secret)
    assert "web-01" in texts[0]
