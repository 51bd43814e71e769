"""Digests of what is put: each computed once, in a thread if it takes long.

The SHA-256 of a body goes as its checksum, and without TLS the signature covers the same digest: the signer here takes
the one there is, where botocore's would hash the body once more, and on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import md5, sha256
from typing import Any, Final

import anyio.to_thread
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

from adapters.stores.s3body import PutBody

SIGNATURE: Final = "s3v4"
HASHED_AT_ONCE_BYTES: Final = 64 << 10  # more than this is hashed in a thread
_KNOWN_DIGEST: Final = "s3v4-known-digest"


async def sha256_of(view: memoryview) -> bytes:
    """Return the SHA-256 of `view`."""
    return await _digest(sha256, view)


async def md5_of(view: memoryview) -> bytes:
    """Return the MD5 of `view`, which is what servers know an object by."""
    return await _digest(lambda data: md5(data, usedforsecurity=False), view)


async def _digest(kind: Callable[[memoryview], Any], view: memoryview) -> bytes:
    if len(view) <= HASHED_AT_ONCE_BYTES:
        return bytes(kind(view).digest())
    return bytes((await anyio.to_thread.run_sync(kind, view)).digest())


def sign_known_digests(client: Any) -> None:
    """Have a client sign its puts with the digest that a `PutBody` knows."""
    AUTH_TYPE_MAPS[_KNOWN_DIGEST] = _Signer
    client.meta.events.register("choose-signer.s3.PutObject", _choose)


def _choose(signature_version: object, **_: object) -> str | None:
    return _KNOWN_DIGEST if signature_version == SIGNATURE else None


class _Signer(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
    def payload(self, request: Any) -> Any:
        """Return the digest of a body in hexadecimal, or what stands for one that is not signed."""
        body = request.body
        if isinstance(body, PutBody) and self._should_sha256_sign_payload(request):
            return body.digest.hex()
        return super().payload(request)
