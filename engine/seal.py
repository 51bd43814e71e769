"""Sealing: the content of a block or page ⇄ a record (DESIGN.md §5, Block; docs/FORMAT.md, Record).

A record is a 40-byte header and a body. The header is the associated data of the AES-256-GCM seal, so nothing in
it can be changed unnoticed. Every seal has a key of its own (it comes from the content's ref), so a random 96-bit
nonce never repeats under one key in practice, even when a block is sealed again by another system.
"""

from __future__ import annotations

import enum
import secrets
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import lz4.block  # type: ignore[import-untyped]
import numpy as np
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.block import BLOCK_BYTES, ID_BYTES, PARTS, SOURCES_MAX, Bytes, ref_of
from engine.errors import SessionAborted, StoreCorrupt
from engine.subkeys import parts_key

HEADER_BYTES: Final = 40
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
WHOLE: Final = 0
DELTA: Final = 1
# A delta's parts plaintext: the bitmap of the parts present, then the parts.
DELTA_PLAIN_MAX: Final = 2 + BLOCK_BYTES
DELTA_FRAME_MIN: Final = 8 + NONCE_BYTES + 4  # of a delta's body, before ids, links and parts
LINKS_PER_SOURCE: Final = 48
RECORD_BYTES_MIN: Final = HEADER_BYTES + TAG_BYTES + 1
RECORD_BYTES_MAX: Final = (
    HEADER_BYTES
    + DELTA_FRAME_MIN
    + SOURCES_MAX * (ID_BYTES + LINKS_PER_SOURCE)
    + PARTS
    + TAG_BYTES
    + DELTA_PLAIN_MAX
    + TAG_BYTES
)

ZSTD_LEVEL: Final = 1
# A zstd frame may ask its reader for a window; ours never need more than the content, others' get no more than this.
ZSTD_WINDOW_MAX: Final = 1 << 17
SAMPLE_BYTES: Final = 4096
# After this many blocks in a row that did not shrink, a block of the batch must first show it in a sample.
STUBBORN_BLOCKS: Final = 2
BROKEN_MEMORY: Final = (
    "a block that was just sealed does not open to the same bytes again: this machine's memory or processor corrupts "
    "data; test its memory, then run the backup again"
)

HEADER_FORMAT: Final = "<16sBBHII12s"
HEADER: Final = struct.Struct(HEADER_FORMAT)


class Codec(enum.IntEnum):
    """How content is compressed before it is sealed; the value stands in the record header."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2


class RecordHeader(NamedTuple):
    """The first 40 bytes of a record. `plain_length` and `body_length` in bytes."""

    id: bytes
    kind: int
    codec: Codec
    plain_length: int
    body_length: int
    nonce: bytes

    @property
    def record_bytes(self) -> int:
        """Length of the whole record."""
        return HEADER_BYTES + self.body_length


def parse_header(record: Bytes, where: str) -> RecordHeader:
    """Return the header `record` starts with, every field within its bounds.

    The body may be missing: whoever has it compares its length. `where` is the object named in errors.

    Raises: StoreCorrupt.
    """
    if len(record) < HEADER_BYTES:
        raise StoreCorrupt(where, f"a record of {len(record)} bytes is shorter than its header")
    ident, kind, codec, flags, plain, body, nonce = HEADER.unpack_from(record)
    if kind not in (WHOLE, DELTA) or codec not in (0, 1, 2) or flags:
        raise StoreCorrupt(where, f"unknown kind {kind}, codec {codec} or flags {flags} in a record header")
    if kind == WHOLE:
        fits = 1 <= plain <= BLOCK_BYTES and TAG_BYTES < body <= plain + TAG_BYTES
        fits = fits and (codec != Codec.NONE or body == plain + TAG_BYTES)
    else:
        fits = 2 <= plain <= DELTA_PLAIN_MAX and DELTA_FRAME_MIN < body <= RECORD_BYTES_MAX - HEADER_BYTES
    if not fits:
        raise StoreCorrupt(where, f"impossible lengths in a record header (plain {plain}, body {body})")
    return RecordHeader(ident, kind, Codec(codec), plain, body, nonce)


def build_header(ident: bytes, kind: int, codec: Codec, plain_length: int, body_length: int, nonce: bytes) -> bytes:
    """Return the 40 bytes of a record header."""
    return HEADER.pack(ident, kind, codec, 0, plain_length, body_length, nonce)


def decrypt(key: bytes, nonce: bytes, sealed: Bytes, aad: Bytes, where: str) -> bytes:
    """Return what was sealed under `key`. Raises: StoreCorrupt if the tag does not fit."""
    try:
        return AESGCM(key).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise StoreCorrupt(where, "a record's seal does not open: changed, or not the one looked for") from None


def decompress(codec: Codec, packed: bytes, plain_length: int, where: str) -> bytes:
    """Return exactly `plain_length` bytes, never making more than that. Raises: StoreCorrupt."""
    plain: bytes = packed
    try:
        if codec is Codec.NONE:
            pass
        elif codec is Codec.ZSTD:
            # The frame's own claim is looked at first: the library would allocate whatever it says.
            if zstandard.frame_content_size(packed) != plain_length:
                raise StoreCorrupt(where, "a compressed record claims another length than its header")
            plain = _TOOLS.zstd_open.decompress(packed, max_output_size=plain_length, allow_extra_data=False)
        elif codec is Codec.LZ4:
            plain = lz4.block.decompress(packed, uncompressed_size=plain_length)
    except (zstandard.ZstdError, lz4.block.LZ4BlockError) as error:
        raise StoreCorrupt(where, f"a record does not decompress: {error}") from None
    if len(plain) != plain_length:
        raise StoreCorrupt(where, f"a record holds {len(plain)} bytes where its header says {plain_length}")
    return plain


def open_content(key: bytes, record: Bytes, where: str) -> bytes:
    """Return the content of a whole record under its 32-byte *parts* key, bound to the id in its header only.

    Raises: StoreCorrupt.
    """
    header = parse_header(record, where)
    if header.kind != WHOLE or len(record) != header.record_bytes:
        raise StoreCorrupt(where, "not one whole record where a whole record should be")
    view = memoryview(record)
    packed = decrypt(key, header.nonce, view[HEADER_BYTES:], view[:HEADER_BYTES], where)
    return decompress(header.codec, packed, header.plain_length, where)


def open_whole(ref: bytes, record: Bytes, subkey: bytes, where: str) -> bytes:
    """Return the content of a whole record, checked against its 48-byte `ref` under `subkey` (blocks or pages).

    Raises: StoreCorrupt.
    """
    if bytes(record[:ID_BYTES]) != ref[:ID_BYTES]:
        raise StoreCorrupt(where, "another record lies where the one looked for should be")
    content = open_content(parts_key(ref[ID_BYTES:]), record, where)
    verify_ref(ref, content, subkey, where)
    return content


def verify_ref(ref: bytes, content: Bytes, subkey: bytes, where: str) -> None:
    """Raise StoreCorrupt unless `content` hashes to `ref`: the seal proves who knew the key, only this proves what."""
    if ref_of(subkey, content) != ref:
        raise StoreCorrupt(where, "a record opens but does not hold what its name says")


class Sealer:
    """Seals contents under one codec and subkey, from any number of threads."""

    def __init__(self, codec: Codec, subkey: bytes) -> None:
        self._codec = codec
        self._subkey = subkey

    def seal(self, ref: bytes, content: Bytes) -> bytes:
        """Return the record of `content` (1..65536 bytes), whose 48-byte ref is `ref`."""
        return bytes(self.seal_batch([ref], [content])[0])

    def seal_batch(self, refs: Sequence[bytes], contents: Sequence[Bytes]) -> list[memoryview]:
        """Return the records of a batch; compression is given up early where the batch does not shrink."""
        compress = _TOOLS.compressor(self._codec)
        nonces = secrets.token_bytes(NONCE_BYTES * len(refs))
        records: list[memoryview] = []
        stubborn = 0
        for position, (ref, content) in enumerate(zip(refs, contents, strict=True)):
            plain_length = len(content)
            assert 0 < plain_length <= BLOCK_BYTES
            body: Bytes = content
            codec = Codec.NONE
            if compress is not None and (stubborn < STUBBORN_BLOCKS or _shrinks(compress, content)):
                packed = compress(content)
                if _saves(len(packed), plain_length):
                    body, codec, stubborn = packed, self._codec, 0
                else:
                    stubborn += 1
            nonce = nonces[position * NONCE_BYTES : (position + 1) * NONCE_BYTES]
            sealed_length = len(body) + TAG_BYTES
            header = HEADER.pack(ref[:ID_BYTES], WHOLE, codec, 0, plain_length, sealed_length, nonce)
            # Memory that nobody clears first, and that the allocator has kept warm (adapters/allocator.py).
            record = np.empty(HEADER_BYTES + sealed_length, dtype=np.uint8).data
            record[:HEADER_BYTES] = header
            AESGCM(parts_key(ref[ID_BYTES:])).encrypt_into(nonce, body, header, record[HEADER_BYTES:])
            records.append(record)
        return records

    def check(self, ref: bytes, record: Bytes, content: Bytes) -> None:
        """Open what was just sealed and compare it with what it was made of.

        Raises: SessionAborted when they differ: nothing but broken memory or a broken library does that.
        """
        try:
            same = open_whole(ref, record, self._subkey, "in memory") == bytes(content)  # views compare byte by byte
        except StoreCorrupt:
            same = False
        if not same:
            raise SessionAborted(BROKEN_MEMORY)


def compressed(codec: Codec, content: Bytes) -> tuple[Codec, Bytes]:
    """Return `content` as it is to be sealed, compressed if that shrinks it, and the codec that was used."""
    compress = _TOOLS.compressor(codec)
    if compress is not None:
        packed = compress(content)
        if _saves(len(packed), len(content)):
            return codec, packed
    return Codec.NONE, content


def _saves(packed: int, plain: int) -> bool:
    return packed * 100 <= plain * 97


def _shrinks(compress: Callable[[Bytes], bytes], content: Bytes) -> bool:
    start = max(0, len(content) - SAMPLE_BYTES) // 2
    sample = content[start : start + SAMPLE_BYTES]
    return _saves(len(compress(sample)), len(sample))


def _lz4(content: Bytes) -> bytes:
    packed: bytes = lz4.block.compress(content, store_size=False)
    return packed


class _Tools(threading.local):
    """Compression contexts of one thread: they may not be shared."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self.zstd_open = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_MAX)

    def compressor(self, codec: Codec) -> Callable[[Bytes], bytes] | None:
        if codec is Codec.ZSTD:
            return self.zstd.compress
        return _lz4 if codec is Codec.LZ4 else None


_TOOLS: Final = _Tools()
