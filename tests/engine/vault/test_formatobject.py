from __future__ import annotations

from collections.abc import Callable

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import FormatTooNew, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.vault.formatobject import FormatObject, StoreKind, Use, new_store, parse_format, read_format
from tests.engine.vault.fakes_vault import flips, run
from tests.fakes import MemoryStore

STORE = bytes(range(16))


def rehashed(body: bytes) -> bytes:
    return body + blake3(body).digest(16)


def test_the_bytes_are_those_of_the_format() -> None:
    encoded = FormatObject("cache", STORE, 0, 0, 0).encode()
    assert encoded[:40] == b"FOREBAY\n" + b"\1\0" + b"\2\0" + STORE + bytes(12)
    assert encoded == rehashed(encoded[:40])
    assert len(encoded) == 56


@pytest.mark.parametrize("kind", ["vault", "cache", "spool"])
def test_what_is_encoded_parses_to_the_same(kind: StoreKind) -> None:
    made = new_store(kind)
    assert parse_format(made.encode()) == made
    assert new_store(kind).store != made.store


def test_every_flipped_bit_and_every_cut_is_damage_and_names_the_object() -> None:
    encoded = new_store("vault").encode()
    for damaged in [*flips(encoded), *(encoded[:length] for length in range(len(encoded))), encoded + b"\0"]:
        with pytest.raises(StoreCorrupt) as caught:
            parse_format(damaged)
        assert caught.value.name == "format"


@given(st.binary(max_size=80))
def test_any_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        parse_format(data)
    with pytest.raises(StoreCorrupt):
        parse_format(b"FOREBAY\n" + data)


def test_a_newer_version_of_any_length_is_told_from_damage() -> None:
    body = new_store("vault").encode()[:40]
    newer = body[:8] + b"\2\0" + body[10:] + b"something longer"
    with pytest.raises(FormatTooNew, match="version 2"):
        parse_format(rehashed(newer))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda body: body[:8] + b"\0\0" + body[10:], "version 0"),
        (lambda body: body[:10] + b"\7" + body[11:], "kind 7"),
        (lambda body: body[:11] + b"\1" + body[12:], "kind"),
        (lambda body: body + b"\0", "57 bytes"),
    ],
)
def test_what_no_version_writes_is_damage(edit: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(StoreCorrupt, match=reason):
        parse_format(rehashed(edit(new_store("vault").encode()[:40])))


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ({"flags_read": 1}, ["read", "write", "collect"]),
        ({"flags_read": 1 << 31}, ["read", "write", "collect"]),
        ({"flags_write": 2}, ["write", "collect"]),
        ({"flags_collect": 4}, ["collect"]),
    ],
)
def test_an_unknown_flag_forbids_what_it_is_mandatory_for(flags: dict[str, int], refused: list[Use]) -> None:
    encoded = FormatObject("vault", STORE, **flags).encode()
    uses: tuple[Use, ...] = ("read", "write", "collect")
    for use in uses:
        if use in refused:
            with pytest.raises(FormatTooNew, match="install a newer forebay"):
                parse_format(encoded, use)
        else:
            parse_format(encoded, use)


def test_a_store_without_its_marker_is_away_and_not_empty() -> None:
    with pytest.raises(StoreUnavailable, match="mount it"):
        run(lambda: read_format(MemoryStore(), "vault"))


def test_a_store_of_another_kind_is_refused() -> None:
    store = MemoryStore()
    store.objects["format"] = new_store("cache").encode()
    with pytest.raises(StoreRejected, match="is a cache, not a vault"):
        run(lambda: read_format(store, "vault"))
    assert run(lambda: read_format(store, "cache")).kind == "cache"
