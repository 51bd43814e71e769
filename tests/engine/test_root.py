from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FormatTooNew, SessionAborted, StoreCorrupt
from engine.names import PackName, PointId
from engine.packtable import rows_of
from engine.page import PageAddress
from engine.root import (
    KIND,
    PreviousRoot,
    RootBody,
    RunDescriptor,
    VolumePoint,
    decode_volume,
    encode_volume,
    open_root,
    root_header,
    seal_root,
)
from engine.signed import Header, Kind
from tests.engine.fakes_signed import COMMON, DOMAIN, KEY, LISTING, NAME, POINT, SYSTEM, verify


def address(seed: int) -> bytes:
    return bytes(PageAddress(np.random.default_rng(seed).bytes(48), seed + 1, 64, 99))


def run(base: bool = True, **changes: Any) -> RunDescriptor:
    pack = PackName("page", SYSTEM, b"h" * 32, 1000)
    whole = RunDescriptor(
        run=b"n" * 16,
        base=base,
        entries=7,
        zeros=2,
        leaves=1,
        id_tree=address(1),
        table=address(2),
        table_packs=rows_of([pack]).tobytes(),
        envelope=b"e" * 1200,
    )
    return msgspec.structs.replace(whole, **changes)


def volume(**changes: Any) -> VolumePoint:
    whole = VolumePoint(
        name="data",
        bytes=100_000,
        blocks=2,
        unreadable=[(0, 512)],
        runs=[run(), run(base=False)],
        figures={"changed": 7},
    )
    return msgspec.structs.replace(whole, **changes)


def body(*volumes: VolumePoint, **changes: Any) -> RootBody:
    previous = PreviousRoot(order=5, incarnation=b"p" * 8, hash=b"h" * 32)
    whole = RootBody(
        time=9, version="0.1.0", session=b"x" * 16, ended=[b"y" * 16], previous=previous, volumes=list(volumes)
    )
    return msgspec.structs.replace(whole, **changes)


ROOT = seal_root(body(volume()), **COMMON)


def sealed(plain: object) -> bytes:
    """Return a root of whatever body, with the right seal and signature."""
    header = Header(DOMAIN, SYSTEM, POINT, b"r" * 8, 3)
    return KIND.seal(header, msgspec.msgpack.encode(plain), LISTING, KEY.sign)


def test_a_root_comes_back_with_its_point_and_its_hash() -> None:
    root = open_root(NAME, ROOT, LISTING, verify)
    assert root.body == body(volume())
    assert (root.domain, root.system, root.point, root.recovery_key_id, root.certificate) == (
        DOMAIN,
        SYSTEM,
        POINT,
        b"r" * 8,
        3,
    )
    assert root.hash == blake3(ROOT).digest()
    assert root.body.volume("data") == volume()
    assert root.body.volume("other") is None


def test_without_any_key_a_root_says_whose_it_is_and_nothing_else() -> None:
    header = root_header(NAME, ROOT)
    assert (header.system, header.point, header.fields, header.certificate) == (SYSTEM, POINT, b"r" * 8, 3)
    assert b"data" not in ROOT


def test_the_bytes_are_those_of_the_format() -> None:
    assert ROOT[:16] == b"FBROOT\x00\x01" + bytes([1, 0, 0, 0]) + (len(ROOT) - 88 - 64).to_bytes(4, "little")
    assert ROOT[16:48] == DOMAIN + SYSTEM
    assert ROOT[48:76] == POINT.order.to_bytes(8, "little") + b"i" * 8 + b"r" * 8 + (3).to_bytes(4, "little")
    KEY.public_key().verify(ROOT[-64:], b"forebay root v1\0" + ROOT[:-64])


def test_a_root_under_the_name_of_another_is_refused_and_named() -> None:
    other = PointId(POINT.order + 1, POINT.incarnation)
    for name in (other.root(SYSTEM), POINT.root(b"t" * 16), PointId(POINT.order, b"j" * 8).root(SYSTEM), "root/x"):
        with pytest.raises(StoreCorrupt, match="another name") as caught:
            open_root(name, ROOT, LISTING, verify)
        assert caught.value.name == name


def test_a_root_that_the_system_did_not_sign_is_refused() -> None:
    forger = Ed25519PrivateKey.from_private_bytes(b"f" * 32)
    forged = seal_root(body(), **COMMON | {"signer": forger.sign})
    revoked = seal_root(body(), **COMMON | {"certificate": 2})
    # The label keeps a signature over something else from being taken for one over a root.
    relabelled = Kind("root", KIND.magic, b"forebay note v1\0", 8).seal(
        Header(DOMAIN, SYSTEM, POINT, b"r" * 8, 3), msgspec.msgpack.encode(body()), LISTING, KEY.sign
    )
    for data in (forged, revoked, relabelled):
        with pytest.raises(StoreCorrupt, match="signature"):
            open_root(NAME, data, LISTING, verify)


def test_another_listing_key_opens_nothing() -> None:
    with pytest.raises(StoreCorrupt, match="listing key"):
        open_root(NAME, ROOT, b"m" * 32, verify)


@settings(max_examples=200)
@given(st.data())
def test_a_root_cut_lengthened_or_flipped_is_refused(data: st.DataObject) -> None:
    cut = ROOT[: data.draw(st.integers(0, len(ROOT) - 1))]
    longer = ROOT + data.draw(st.binary(min_size=1, max_size=9))
    flipped = bytearray(ROOT)
    bit = data.draw(st.integers(0, len(ROOT) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    for damaged in (cut, longer):
        with pytest.raises(StoreCorrupt):
            open_root(NAME, damaged, LISTING, verify)
    # A flipped version or flag cannot be told from a newer one before the signature, whose place it may move.
    with pytest.raises((StoreCorrupt, FormatTooNew), match=NAME):
        open_root(NAME, bytes(flipped), LISTING, verify)


@given(st.binary(max_size=300))
def test_random_bytes_are_no_root(data: bytes) -> None:
    for candidate in (data, ROOT[:88] + data, ROOT[:16] + data + ROOT[-64:]):
        with pytest.raises((StoreCorrupt, FormatTooNew)):
            open_root(NAME, candidate, LISTING, verify)


@pytest.mark.parametrize("place", [8, 10])
def test_a_newer_version_or_an_unknown_flag_is_named_and_not_called_damage(place: int) -> None:
    newer = bytearray(ROOT)
    newer[place] += 1
    with pytest.raises(FormatTooNew, match=NAME):
        open_root(NAME, bytes(newer), LISTING, verify)


def test_version_zero_is_damage() -> None:
    with pytest.raises(StoreCorrupt):
        open_root(NAME, ROOT[:8] + b"\0" + ROOT[9:], LISTING, verify)


@settings(max_examples=200)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(1 << 63), (1 << 64) - 1)
        | st.text(max_size=5)
        | st.binary(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["time", "version", "session", "ended", "previous", "volumes", "figures", "other"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_a_signed_body_of_the_wrong_shape_is_refused(plain: object) -> None:
    try:
        root = open_root(NAME, sealed(plain), LISTING, verify)
    except StoreCorrupt:
        return
    assert isinstance(root.body, RootBody)


@given(st.binary(max_size=60))
def test_a_signed_body_that_is_no_messagepack_is_refused(plain: bytes) -> None:
    data = KIND.seal(Header(DOMAIN, SYSTEM, POINT, b"r" * 8, 3), plain, LISTING, KEY.sign)
    with pytest.raises(StoreCorrupt):
        open_root(NAME, data, LISTING, verify)


def test_a_body_nested_beyond_reason_is_refused() -> None:
    data = KIND.seal(Header(DOMAIN, SYSTEM, POINT, b"r" * 8, 3), b"\x91" * 100_000, LISTING, KEY.sign)
    with pytest.raises(StoreCorrupt):
        open_root(NAME, data, LISTING, verify)


def test_fields_a_later_version_adds_are_ignored() -> None:
    plain = msgspec.to_builtins(body(volume()), builtin_types=(bytes,))
    plain["later"] = plain["volumes"][0]["later"] = {"a": [1]}
    assert open_root(NAME, sealed(plain), LISTING, verify).body == body(volume())


@pytest.mark.parametrize(
    "wrong",
    [
        volume(blocks=3),
        volume(block_bytes=4096),
        volume(bytes=(1 << 64) - 1, blocks=(1 << 48) + 1),
        volume(unreadable=[(99_999, 2)]),
        volume(runs=[run(base=False)]),
        volume(runs=[run(), run()]),
        volume(runs=[run(id_tree=b"")]),
        volume(runs=[run(id_tree=address(1)[:-1])]),
        volume(runs=[run(id_tree=bytes(64))]),
        volume(runs=[run(table=bytes(64))]),
        volume(runs=[run(table_packs=b"")]),
        volume(runs=[run(table_packs=bytes(55))]),
        volume(runs=[run(table_packs=bytes(56))]),
        volume(runs=[run(entries=0, zeros=0, leaves=0)]),
        volume(runs=[run(leaves=0)]),
        volume(runs=[run(leaves=10)]),
        volume(runs=[run(entries=1 << 49)]),
        volume(runs=[run(run=b"short")]),
        volume(runs=[run(position == 0) for position in range(17)]),
        volume(name=""),
        volume(bytes=-1),
        volume(unreadable=[(-1, 1)]),
    ],
)
def test_a_signed_volume_that_makes_no_sense_is_refused(wrong: VolumePoint) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        open_root(NAME, sealed(body(wrong)), LISTING, verify)
    assert caught.value.name == NAME
    with pytest.raises(StoreCorrupt, match="the head"):
        decode_volume(encode_volume(wrong), "the head")


def test_two_volumes_of_one_name_are_refused() -> None:
    with pytest.raises(StoreCorrupt, match="two volumes"):
        open_root(NAME, sealed(body(volume(), volume())), LISTING, verify)


def test_a_volume_comes_back_from_local_state() -> None:
    empty = VolumePoint(name="empty", bytes=0, blocks=0)
    for point in (volume(), empty):
        assert decode_volume(encode_volume(point), "the head") == point
    with pytest.raises(StoreCorrupt, match="the head"):
        decode_volume(b"\xff", "the head")


def test_sixteen_runs_fit_and_what_does_not_fit_is_refused_by_name() -> None:
    runs = [run(position == 0) for position in range(16)]
    assert len(seal_root(body(volume(runs=runs)), **COMMON)) < 32 << 10
    spoilt = volume(bytes=1 << 30, blocks=1 << 14, unreadable=[(512 * number, 512) for number in range(20_000)])
    with pytest.raises(SessionAborted, match="'data' has 20000 unreadable ranges"):
        seal_root(body(spoilt), **COMMON)
    assert seal_root(body(spoilt, *(volume(name=str(number)) for number in range(9))), **COMMON)
