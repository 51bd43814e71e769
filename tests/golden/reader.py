"""A reader of vaults written from docs/FORMAT.md alone: nothing of the product is imported.

It is small rather than fast, and strict where the document says "refuse". `Vault(objects, passphrase)` takes the
objects of a store by name; `volume` gives the content of a volume at a restore point.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import lz4.block  # type: ignore[import-untyped]
import msgspec
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

BLOCK: Final = 65536
PART: Final = 4096
DELTA: Final = 1 << 31


class Damaged(Exception):
    """An object is not what the document says; the message names it."""


def refuse_unless(good: bool, name: str, reason: str) -> None:
    if not good:
        raise Damaged(f"{name}: {reason}")


def derive(use: str, secret: bytes, length: int = 32) -> bytes:
    return blake3(secret, derive_key_context="forebay 2026 v1 " + use).digest(length)


def keyed(key: bytes, data: bytes, length: int = 32) -> bytes:
    return blake3(data, key=key).digest(length)


def opened(key: bytes, nonce: bytes, data: bytes, associated: bytes, name: str) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, data, associated)
    except InvalidTag:
        raise Damaged(f"{name}: a seal does not open") from None


def verified(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def decoded(data: bytes, name: str) -> dict[str, Any]:
    try:
        body = msgspec.msgpack.decode(data)
    except msgspec.MsgspecError:
        raise Damaged(f"{name}: its body is no map") from None
    refuse_unless(isinstance(body, dict), name, "its body is no map")
    return cast("dict[str, Any]", body)


def hmac(key: bytes, data: bytes) -> bytes:
    mac = HMAC(key, SHA256())
    mac.update(data)
    return mac.finalize()


def hpke_open(private: bytes, sealed: bytes, info: bytes, name: str) -> bytes:
    """Open what was sealed to a hybrid key: RFC 9180, base mode, KEM 0x647a, KDF 1, AEAD 2."""
    ciphertext, ephemeral, box = sealed[:1088], sealed[1088:1120], sealed[1120:]
    own = X25519PrivateKey.from_private_bytes(private[64:])
    first = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(ciphertext)
    second = own.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    digest = hashes.Hash(hashes.SHA3_256())
    digest.update(first + second + ephemeral + own.public_key().public_bytes_raw() + bytes.fromhex("5c2e2f2f5e5c"))
    shared = digest.finalize()
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac(salt or bytes(32), b"HPKE-v1" + suite + label + material)

    def expand(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        # One round of HKDF-Expand: nothing here is longer than a hash.
        return hmac(key, struct.pack(">H", length) + b"HPKE-v1" + suite + label + context + b"\1")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return opened(expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12), box, b"", name)


@dataclass(frozen=True)
class Place:
    pack: int
    offset: int
    length: int
    delta: bool

    @classmethod
    def parse(cls, data: bytes) -> Place:
        pack, offset, length = struct.unpack("<QII", data)
        return cls(pack, offset, length & ~DELTA, bool(length & DELTA))


@dataclass(frozen=True)
class Record:
    """A record's header and body; `frame` is the whole of it."""

    frame: bytes
    id: bytes
    kind: int
    codec: int
    plain_length: int
    body_length: int
    nonce: bytes

    @classmethod
    def parse(cls, data: bytes, name: str) -> Record:
        refuse_unless(57 <= len(data) <= 65906, name, "no record is so long")
        ident, kind, codec, flags, plain, body, nonce = struct.unpack_from("<16sBBHII12s", data)
        refuse_unless(kind <= 1 and codec <= 2 and flags == 0, name, "an unknown kind, codec or flag")
        refuse_unless(40 + body == len(data), name, "the record is not as long as it says")
        return cls(data, ident, kind, codec, plain, body, nonce)

    def decompressed(self, data: bytes, name: str) -> bytes:
        if self.codec == 1:
            plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=self.plain_length)
        elif self.codec == 2:
            plain = lz4.block.decompress(data, uncompressed_size=self.plain_length)
        else:
            plain = data
        refuse_unless(len(plain) == self.plain_length, name, "a content has another length than it says")
        return plain

    def parts(self, parts_key: bytes, name: str) -> dict[int, bytes]:
        """Return the parts that lie literally here, by number; all of a whole record."""
        if self.kind == 0:
            content = self.whole(parts_key, name)
            return {number: content[number * PART : (number + 1) * PART] for number in range(-(-len(content) // PART))}
        delta = Delta.parse(self, name)
        sealed = self.frame[delta.frame_length + delta.links_length :]
        plain = self.decompressed(opened(parts_key, self.nonce, sealed, self.frame[: delta.frame_length], name), name)
        (bitmap,) = struct.unpack_from("<H", plain)
        found, position = {}, 2
        for number in range(16):
            if bitmap >> number & 1:
                length = min(PART, delta.block_length - number * PART)
                refuse_unless(length > 0, name, "a part beyond the end of its block")
                found[number] = plain[position : position + length]
                position += length
        refuse_unless(position == len(plain), name, "the parts are not as long as they say")
        return found

    def whole(self, parts_key: bytes, name: str) -> bytes:
        return self.decompressed(opened(parts_key, self.nonce, self.frame[40:], self.frame[:40], name), name)


@dataclass(frozen=True)
class Delta:
    """What a delta record has after its header."""

    block_length: int
    ids: list[bytes]
    links_nonce: bytes
    links_length: int
    frame_length: int

    @classmethod
    def parse(cls, record: Record, name: str) -> Delta:
        length, count, zeros = struct.unpack_from("<IB3s", record.frame, 40)
        refuse_unless(1 <= length <= BLOCK and 1 <= count <= 4 and zeros == bytes(3), name, "an impossible delta")
        ids = [record.frame[48 + 16 * row : 64 + 16 * row] for row in range(count)]
        nonce, links = struct.unpack_from("<12sI", record.frame, 48 + 16 * count)
        refuse_unless(links == 48 * count + 32, name, "links of an impossible length")
        return cls(length, ids, nonce, links, 64 + 16 * count)


class Packs:
    """Records of the packs of a store: at a place, or, from an index, by id."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects
        self._names: dict[int, str] = {}
        self._by_id: dict[bytes, list[Place]] | None = None

    def learn(self, rows: bytes) -> None:
        """Take the names of packs from table rows."""
        for at in range(0, len(rows), 56):
            writer, digest, size, kind = struct.unpack_from("<16s32sII", rows, at)
            name = f"{('data', 'page')[kind]}/{writer.hex()}/{digest.hex()}-{size}"
            self._names[int.from_bytes(digest[:8], "little")] = name

    def at(self, place: Place) -> Record | None:
        name = self._names.get(place.pack, "")
        data = self._objects.get(name)
        if data is None or len(data) != int(name.rpartition("-")[2]):
            return None
        try:
            return Record.parse(data[place.offset : place.offset + place.length], name)
        except Damaged:
            return None

    def of_id(self, ident: bytes, place: Place) -> Iterator[Record]:
        """Yield the records that may be of this id, the one at `place` first."""
        record = self.at(place)
        if record is not None and record.id == ident:
            yield record
        for known in self._index().get(ident, []):
            record = self.at(known)
            if record is not None and record.id == ident:
                yield record

    def _index(self) -> dict[bytes, list[Place]]:
        if self._by_id is None:
            self._by_id = {}
            for name in sorted(name for name in self._objects if name.startswith("index/")):
                self._read_fragment(name, self._objects[name], self._by_id)
        return self._by_id

    def _read_fragment(self, name: str, data: bytes, by_id: dict[bytes, list[Place]]) -> None:
        magic, version, _, n, _, _, _, _, p, c, s, zero = struct.unpack_from("<8sHHI16s16s8sIIIIQ", data)
        refuse_unless((magic, version, zero) == (b"FBINDEX\1", 1, 0), name, "it is no fragment of version 1")
        table = 80 + 28 * n + 4 * (n % 2)
        refuse_unless(len(data) == table + 56 * p + 16 * c + 8 * s + 128, name, "its counts do not give its length")
        rows = [data[table + 56 * row :][:56] for row in range(p)]
        self.learn(b"".join(rows))
        columns = [
            struct.unpack_from(f"<{n}{kind}", data, 80 + at * n)
            for kind, at in zip("QQIII", (0, 8, 16, 20, 24), strict=True)
        ]
        for lo, hi, pack, offset, length in zip(*columns, strict=True):
            key = int.from_bytes(rows[pack][16:24], "little")
            place = Place(key, offset, length & ~DELTA, bool(length & DELTA))
            by_id.setdefault(struct.pack("<QQ", lo, hi), []).append(place)


@dataclass(frozen=True)
class Leaf:
    """What an id leaf names: blocks with ids and places, and extents of zeros."""

    first: int
    blocks: list[int]
    ids: list[bytes]
    places: list[Place]
    zeros: list[tuple[int, int]]


class Domain:
    """The keys of one domain and what they open."""

    def __init__(self, vault: Vault, domain: bytes, body: dict[str, Any]) -> None:
        self.vault, self.domain = vault, domain
        self.recovery_private: bytes = body["recovery_private"]
        self.vault_public: bytes = body["vault_public"]
        secret = body["domain_secret"]
        self.blocks, self.pages, self.names = (derive(use, secret) for use in ("blocks", "pages", "names"))
        recovery_public = body["recovery_public"]
        self.recovery_key_id = blake3(recovery_public).digest(8)
        own = Ed25519PrivateKey.from_private_bytes(body["vault_private"]).public_key().public_bytes_raw()
        refuse_unless(own == self.vault_public, "key slot", "its vault keys do not match")
        self.certificates = dict(self._certificates())

    def _certificates(self) -> Iterator[tuple[tuple[bytes, int], dict[str, Any]]]:
        for name, data in self.vault.under(f"cert/{self.domain.hex()}/"):
            refuse_unless(data[:8] == b"FBCERT\0\1", name, "it is no certificate")
            (length,) = struct.unpack_from("<I", data, 8)
            body, signature = decoded(data[12 : 12 + length], name), data[12 + length :]
            system, _, number = name.rpartition("/")[2].partition("-")
            stated = (body["domain"], body["system"], body["number"])
            refuse_unless(stated == (self.domain, bytes.fromhex(system), int(number, 16)), name, "another name")
            signer = self.vault_public
            if body["signer"] == "enrol":
                signer = body["enrol_public"]
                message = b"forebay enrol v1\0" + self.domain + signer
                refuse_unless(body["number"] == 1, name, "an enrolment key may not replace a key")
                refuse_unless(verified(self.vault_public, body["enrol_certificate"], message), name, "not certified")
            message = b"forebay cert v1\0" + data[: 12 + length]
            refuse_unless(verified(signer, signature, message), name, "its signature is wrong")
            yield (body["system"], body["number"]), body

    def systems(self) -> dict[str, bytes]:
        """Return the ids of the systems by their names."""
        found = {}
        for (system, _), body in sorted(self.certificates.items()):
            sealed = body["name_sealed"]
            name = opened(self.names, sealed[:12], sealed[12:], self.domain + system, "a certificate's name")
            found[name.decode()] = system
        return found

    def listing_key(self, system: bytes) -> bytes:
        number = max(number for known, number in self.certificates if known == system)
        sealed = self.certificates[system, number]["listing_sealed"]
        return hpke_open(self.recovery_private, sealed, b"forebay listing v1\0" + self.domain + system, "a listing key")

    def signed_body(self, name: str, data: bytes, kind: str, system: bytes) -> tuple[dict[str, Any], bytes]:
        """Return the body of a root or note, and its recovery key id (none in a note)."""
        key_id = b""
        magic, version, flags, length, domain, of, order, incarnation = struct.unpack_from("<8sHHI16s16sQ8s", data)
        position = 64
        if kind == "root":
            key_id, position = data[64:72], 72
        number, nonce = struct.unpack_from("<I12s", data, position)
        position += 16
        refuse_unless(magic == f"FB{kind.upper()}\0\1".encode(), name, f"it is no {kind}")
        refuse_unless((version, flags, domain, of) == (1, 0, self.domain, system), name, "its header is another's")
        refuse_unless(f"{kind}/{of.hex()}/{order:016x}-{incarnation.hex()}" in name, name, "it has another name")
        refuse_unless(len(data) == position + length + 64, name, "it is not as long as it says")
        signer = self.certificates[system, number]["signing_public"]
        message = f"forebay {kind} v1\0".encode() + data[:-64]
        refuse_unless(verified(signer, data[-64:], message), name, "its signature is wrong")
        key = derive("roots", self.listing_key(system))
        return decoded(opened(key, nonce, data[position:-64], data[:position], name), name), key_id


class Vault:
    """A vault, or a cache, opened with the recovery passphrase; `objects` are its objects by name."""

    def __init__(self, objects: Mapping[str, bytes], passphrase: str) -> None:
        self.objects = objects
        self.packs = Packs(objects)
        self._check_format()
        self.domain = self._open_slot(unicodedata.normalize("NFC", passphrase).encode())

    def under(self, prefix: str) -> list[tuple[str, bytes]]:
        return [(name, self.objects[name]) for name in sorted(self.objects) if name.startswith(prefix)]

    def _check_format(self) -> None:
        data = self.objects["format"]
        refuse_unless(data[:8] == b"FOREBAY\n" and data[-16:] == blake3(data[:-16]).digest(16), "format", "damaged")
        version, kind, zero, _, reading, _, _ = struct.unpack_from("<HBB16sIII", data, 8)
        refuse_unless((version, reading, zero) == (1, 0, 0) and kind in (1, 2, 3), "format", "too new")

    def _open_slot(self, passphrase: bytes) -> Domain:
        for name, data in self.under("key/"):
            refuse_unless(data[:8] == b"FBSLOT\0\1" and data[-16:] == blake3(data[:-16]).digest(16), name, "damaged")
            (length,) = struct.unpack_from("<I", data, 8)
            header = decoded(data[12 : 12 + length], name)
            refuse_unless(header["version"] == 1 and 8192 <= header["memory_kib"] <= 1 << 20, name, "too dear")
            refuse_unless(1 <= header["iterations"] <= 16 and 1 <= header["lanes"] <= 16, name, "too dear")
            kdf = Argon2id(
                salt=header["salt"], length=32, iterations=header["iterations"], lanes=header["lanes"],
                memory_cost=header["memory_kib"],
            )  # fmt: skip
            key = derive("slot", kdf.derive(passphrase))
            frame = data[: 12 + length]
            try:
                body = opened(key, data[len(frame) : len(frame) + 12], data[len(frame) + 12 : -16], frame, name)
            except Damaged:
                continue
            if header["kind"] == 2:
                return Domain(self, header["domain"], decoded(body, name))
        raise Damaged("no key slot opens with this passphrase")

    def points(self, system: str) -> dict[str, dict[str, Any]]:
        """Return the root bodies of a system by point, oldest first; `notes` in each: the kinds of its notes."""
        ident = self.domain.systems()[system]
        found = {}
        for name, data in self.under(f"root/{ident.hex()}/"):
            body, key_id = self.domain.signed_body(name, data, "root", ident)
            refuse_unless(key_id == self.domain.recovery_key_id, name, "it is sealed to another key")
            point = name.rpartition("/")[2]
            notes = self.under(f"note/{ident.hex()}/{point}-")
            for note, content in notes:
                refuse_unless(note.endswith(blake3(content).hexdigest(8)), note, "its hash is another")
            kinds = [self.domain.signed_body(note, content, "note", ident)[0]["kind"] for note, content in notes]
            found[point] = {**body, "notes": kinds, "system": ident}
        return found

    def volume(self, system: str, point: str, name: str) -> bytes:
        """Return the content of a volume at a point."""
        body = self.points(system)[point]
        volume = next(volume for volume in body["volumes"] if volume["name"] == name)
        state: dict[int, tuple[bytes, Place] | None] = {}
        for run in volume["runs"]:
            info = b"forebay run v1\0" + self.domain.domain + body["system"] + run["run"]
            key_tree = hpke_open(self.domain.recovery_private, run["envelope"], info, point)
            self.packs.learn(run["table_packs"])
            if run["id_tree"]:
                self._learn_table(run["table"])
                self._overlay(run, key_tree, state)
        content = bytearray(volume["bytes"])
        for block, found in state.items():
            length = min(BLOCK, volume["bytes"] - block * BLOCK)
            if found is not None and length > 0:
                data = self.block(*found)
                refuse_unless(len(data) == length, point, f"block {block} has {len(data)} bytes")
                content[block * BLOCK : block * BLOCK + length] = data
        return bytes(content)

    def _overlay(self, run: dict[str, Any], key_tree: bytes, state: dict[int, tuple[bytes, Place] | None]) -> None:
        leaves = [parse_id_leaf(page) for page in self._leaves(run["id_tree"], None, 1)]
        keys = [parse_key_leaf(page) for page in self._leaves(key_tree, None, 2)]
        refuse_unless(len(leaves) == len(keys) == run["leaves"], "a run", "its trees are not of one shape")
        refuse_unless(sum(len(leaf.ids) for leaf in leaves) == run["entries"], "a run", "it counts other blocks")
        for leaf, (first, of_leaf) in zip(leaves, keys, strict=True):
            refuse_unless(first == leaf.first and len(of_leaf) == len(leaf.ids), "a run", "keys do not fit ids")
            for start, count in leaf.zeros:
                state.update(dict.fromkeys(range(start, start + count)))
            for block, ident, key, place in zip(leaf.blocks, leaf.ids, of_leaf, leaf.places, strict=True):
                state[block] = (ident + key, place)

    def _learn_table(self, address: bytes) -> None:
        for page in self._leaves(address, None, 4):
            (count,) = struct.unpack_from("<I", page, 4)
            refuse_unless(len(page) == 16 + 56 * count, "a pack table", "a page is not as long as it says")
            self.packs.learn(page[16:])

    def _leaves(self, address: bytes, above: int | None, leaf_type: int) -> Iterator[bytes]:
        """Yield the leaves of a tree, in order; `above`: the key of the pack of the page that names it."""
        place = Place.parse(address[48:64])
        if place.pack == 0:
            refuse_unless(above is not None, "a page address", "it names no pack")
            place = Place(cast(int, above), place.offset, place.length, place.delta)
        page = self.page(address[:48], place)
        kind, level, zero, count, _ = struct.unpack_from("<BBHIQ", page)
        refuse_unless(zero == 0 and kind == (3 if level else leaf_type), "a page", "of another type than it should be")
        if not level:
            yield page
            return
        refuse_unless(len(page) == 16 + 80 * count and 1 <= count <= 512, "a page", "it is not as long as it says")
        for child in range(count):
            yield from self._leaves(page[16 + 80 * child + 16 :][:64], place.pack, leaf_type)

    def page(self, ref: bytes, place: Place) -> bytes:
        parts_key = derive("record", ref[16:], 64)[:32]
        for record in self.packs.of_id(ref[:16], place):
            content = record.whole(parts_key, "a page")
            if keyed(self.domain.pages, content, 48) == ref:
                return content
        raise Damaged(f"page {ref[:16].hex()} opens nowhere")

    def block(self, ref: bytes, place: Place) -> bytes:
        keys = derive("record", ref[16:], 64)
        for record in self.packs.of_id(ref[:16], place):
            content = record.whole(keys[:32], "a block") if record.kind == 0 else self._from_delta(record, keys)
            if keyed(self.domain.blocks, content, 48) == ref:
                return content
        raise Damaged(f"block {ref[:16].hex()} opens nowhere")

    def _from_delta(self, record: Record, keys: bytes) -> bytes:
        delta = Delta.parse(record, "a delta")
        own = record.parts(keys[:32], "a delta")
        sealed = record.frame[delta.frame_length : delta.frame_length + delta.links_length]
        links = opened(keys[32:], delta.links_nonce, sealed, record.frame[: delta.frame_length], "a delta")
        origins = links[-16:]
        refuse_unless({n for n in range(16) if origins[n] == 255} == set(own), "a delta", "map and bitmap differ")
        parts = dict(own)
        for row, ident in enumerate(delta.ids):
            wanted = [number for number in range(16) if origins[number] == row]
            parts_key, place = links[48 * row : 48 * row + 32], Place.parse(links[48 * row + 32 : 48 * row + 48])
            for source in self.packs.of_id(ident, place):
                found = source.parts(parts_key, "a source")
                if all(len(found.get(n, b"")) == min(PART, delta.block_length - n * PART) for n in wanted):
                    parts |= {number: found[number] for number in wanted}
                    break
        return b"".join(parts[number] for number in range(-(-delta.block_length // PART)))


def parse_id_leaf(page: bytes) -> Leaf:
    count, first, zeros = struct.unpack_from("<4xIQI4x", page)
    refuse_unless(len(page) == 24 + 16 * zeros + 40 * count, "an id leaf", "it is not as long as it says")
    extents = [struct.unpack_from("<QQ", page, 24 + 16 * row) for row in range(zeros)]
    at = 24 + 16 * zeros
    steps = struct.unpack_from(f"<{count}Q", page, at)
    ids = [page[at + 8 * count + 16 * row :][:16] for row in range(count)]
    packs = struct.unpack_from(f"<{count}Q", page, at + 24 * count)
    gaps = struct.unpack_from(f"<{count}I", page, at + 32 * count)
    lengths = struct.unpack_from(f"<{count}I", page, at + 36 * count)
    blocks, places = [], []
    block, end = first, 0
    for step, pack, gap, length in zip(steps, packs, gaps, lengths, strict=True):
        block += step
        offset = (end + gap) % (1 << 32)
        end = offset + (length & ~DELTA)
        blocks.append(block)
        places.append(Place(pack, offset, length & ~DELTA, bool(length & DELTA)))
    return Leaf(first, blocks, ids, places, [(start, length) for start, length in extents])


def parse_key_leaf(page: bytes) -> tuple[int, list[bytes]]:
    count, first = struct.unpack_from("<4xIQ", page)
    refuse_unless(len(page) == 16 + 32 * count, "a key leaf", "it is not as long as it says")
    return first, [page[16 + 32 * row :][:32] for row in range(count)]
