"""Objects in a bucket, below a prefix: each put is one request, with a checksum that the server verifies.

What must be true, whatever the server:
- A put counts once the server has shown that it holds these bytes: it answers with their SHA-256, or with their MD5
  as the ETag; where it does neither, the object is read back and compared.
- Of several who put one name exactly one wins. Where the server honours `If-None-Match: *`, it sees to that; whether
  it does is asked once, with the store's format object, which exists: a server that honours it says so. One that does
  not is looked at before each put, and an object whose name does not tell its content is read back afterwards.
- Nothing waits for ever: a call that moves no byte for `stall_timeout_s` has failed, whatever it waits for.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal, TypeVar

import anyio
from botocore.exceptions import ClientError

from adapters.stores.plainnames import check_object_name, is_object_name
from adapters.stores.s3body import PutBody
from adapters.stores.s3client import S3Connection, bound
from adapters.stores.s3digests import md5_of, sha256_of
from adapters.stores.s3errors import NO_S3, WRONG_DIGEST, code_of
from adapters.stores.s3lock import S3Locks
from engine.block import Bytes
from engine.errors import (
    ConfigError,
    ContentDiffers,
    ObjectMissing,
    StoreError,
    StoreRejected,
    StoreThrottled,
    StoreUnavailable,
)
from engine.liveness import moved
from engine.names import FORMAT, FragmentName, PackName
from engine.ports import ObjectInfo

T = TypeVar("T")

TRIES_MAX: Final = 4
FORMAT_BYTES_MAX: Final = 4096
CONTENT_TYPE: Final = "application/octet-stream"
_UNKNOWN_HEADER: Final = frozenset({"InvalidRequest", "InvalidArgument", "UnsupportedHeader"})


class S3Store:
    """An ObjectStore over a bucket. All stores of a process share a connection per bucket and settings."""

    def __init__(self, connection: S3Connection) -> None:
        self._connection, self._settings = connection, connection.settings
        self._limit, self._locks = connection.limit, S3Locks(connection)
        self._asking = anyio.Lock()
        self._prefix = f"{self._settings.prefix}/" if self._settings.prefix else ""

    async def put(self, name: str, data: Bytes) -> None:
        """See `ObjectStore.put`; a name that is no plain one is StoreRejected, here and below."""
        check_object_name(name)
        view = memoryview(data).cast("B")
        digest = await sha256_of(view)
        began_s = self._limit.now()
        try:
            async with self._limit.place(len(view)):
                began_s = self._limit.now()
                await self._watched(f"put of {name}", partial(self._put, name, view, digest))
        except StoreThrottled:
            self._limit.throttled(began_s)
            raise

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """See `ObjectStore.get`."""
        check_object_name(name)
        if length == 0:
            await self.stat(name)
            return b""
        return await self._watched(f"get of {name}", partial(self._get, name, offset, length))

    async def stat(self, name: str) -> int:
        """See `ObjectStore.stat`."""
        check_object_name(name)
        return int((await self._watched(f"stat of {name}", partial(self._head, name)))["ContentLength"])

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`; one page of at most 1,000 names is in memory at a time."""
        arguments: dict[str, Any] = {"Bucket": self._settings.bucket, "Prefix": self._prefix + prefix}
        # Servers do not agree on the order of a folder and a name that begin alike; of such names there are none.
        if FragmentName.parse(after) is not None or PackName.parse(after) is not None:
            arguments["StartAfter"] = self._prefix + after
        while True:
            page = await self._watched(f"list of {prefix}", partial(self._page, arguments))
            for row in page.get("Contents", ()):
                name = str(row["Key"])[len(self._prefix) :]
                if name > after and name.startswith(prefix) and is_object_name(name):
                    yield ObjectInfo(name, int(row["Size"]))
            token = page.get("NextContinuationToken")
            if not page.get("IsTruncated"):
                return
            if not token or token == arguments.get("ContinuationToken"):
                raise StoreUnavailable(f"{self._settings.where}: the server cut off a listing: try again later")
            arguments["ContinuationToken"] = token

    async def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        check_object_name(name)
        await self._watched(f"delete of {name}", partial(self._delete, name))

    async def probe(self) -> None:
        """See `ObjectStore.probe`; a server that asks to slow down is there."""
        try:
            await self._watched("probe", self._marker, self._settings.connect_timeout_s)
        except StoreThrottled:
            return
        except ObjectMissing:
            raise StoreUnavailable(
                f"{self._settings.where} holds no Forebay store (no object {FORMAT!r}): correct [vault] url, or run "
                "'forebay init' if it is new"
            ) from None

    async def try_put(self) -> bool:
        """Put the format object, which must exist, once more; return whether the server honours `If-None-Match`.

        Changes nothing, and needs the right to put. Raises: StoreUnavailable, StoreRejected, ObjectMissing.
        """
        return await self._watched("probe", self._try_put)

    async def sweep(self) -> int:
        """Return 0: a put that broke off leaves nothing."""
        return 0

    async def look(self) -> Literal["store", "new"]:
        """Tell a store from a prefix where one can be made.

        Raises: ConfigError (neither), StoreUnavailable, StoreRejected.
        """
        try:
            await self._watched("probe", self._marker)
        except ObjectMissing:
            await self._watched("list", self._require_empty)
            return "new"
        return "store"

    async def why_not_writable(self) -> str | None:
        """Return, in a sentence, why nothing can be put there; None if it can. Changes nothing."""
        try:
            await self._locks.check_lock()
            try:
                await self.try_put()
            except ObjectMissing:
                await self._watched("probe", self._try_new)
        except StoreError as error:
            return str(error)
        return None

    async def weakness(self) -> str | None:
        """Return, in a sentence, what the server cannot do that Forebay has to make up for; None: nothing.

        Raises: StoreUnavailable, StoreRejected, ObjectMissing (no store).
        """
        if await self.try_put():
            return None
        return (
            f"{self._settings.where} does not honour If-None-Match: two machines with copies of one state could "
            "overwrite each other's restore points; switch the bucket's versioning on, or use a server that honours it"
        )

    async def create(self, marker: bytes) -> None:
        """Make a new store with this format object; only `init` does. Raises: ConfigError, StoreError."""
        if await self.look() == "store":
            raise ConfigError(f"{self._settings.where} already holds a store: choose another prefix, or use that one")
        await self.put(FORMAT, marker)

    async def _require_empty(self) -> None:
        page = await self._page({"Bucket": self._settings.bucket, "Prefix": self._prefix, "MaxKeys": 1})
        for row in page.get("Contents", ()):
            raise ConfigError(
                f"{self._settings.where} is not empty (it holds {str(row['Key'])[:80]!r}) and holds no Forebay store: "
                "choose another prefix"
            )

    async def _watched(self, what: str, call: Callable[[], Awaitable[T]], timeout_s: float | None = None) -> T:
        stall_s = timeout_s or self._settings.stall_timeout_s
        with bound(stall_s):
            return await call()
        raise StoreUnavailable(
            f"{self._settings.where}: {what} moved nothing for {stall_s:g} s: check that the server can be reached"
        )

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._settings.bucket, "Key": self._prefix + name}

    async def _put(self, name: str, view: memoryview, digest: bytes) -> None:
        conditional = await self._conditional(name)
        condition = {"IfNoneMatch": "*"} if conditional else {}
        for tried in range(TRIES_MAX):
            if tried or not conditional:
                standing = await self._standing(name, view, digest)
                if standing == "same":
                    await self._locks.renew(name)
                    return
                wanted = {"IfMatch": standing} if standing else {"IfNoneMatch": "*"}
                # Ceph's gateway refuses an If-Match that holds: what still stands then is replaced without one.
                condition = wanted if conditional and not (standing and wanted == condition) else {}
            try:
                done = await self._send(name, view, digest, condition)
            except StoreRejected as error:
                if not condition or not _unknown_header(error):
                    raise
                conditional = False
                if "IfNoneMatch" in condition:
                    self._connection.conditional = False
                continue
            if done:
                if not conditional and PackName.parse(name) is None:
                    await self._compare(name, view)
                return
        raise StoreUnavailable(f"{self._settings.where}: object {name} changes all the time: try again later")

    async def _send(self, name: str, view: memoryview, digest: bytes, condition: dict[str, str]) -> bool:
        """Put the object in one request; False: the condition does not hold. Raises: as the port."""
        told = b64encode(digest).decode()
        options = {**self._settings.put_options(), **condition, "ChecksumSHA256": told, "ContentType": CONTENT_TYPE}
        options |= await self._locks.options(name)
        body = PutBody(view, digest, self._limit.moved)
        async with self._connection.client(name) as client:
            try:
                answer = await client.put_object(Body=body, ContentLength=len(view), **self._at(name), **options)
            except ClientError as error:
                code, status = code_of(error)
                if condition and (code == "PreconditionFailed" or status == 412):
                    return False
                if "IfMatch" in condition and (code == "NoSuchKey" or status == 404):
                    return False  # it was removed meanwhile
                raise
            finally:
                body.let_go()
        if answer.get("ChecksumSHA256") == told:
            return True
        if "ETag" not in answer:
            raise self._no_s3(name)
        if str(answer["ETag"]).strip('"') == (await md5_of(view)).hex():
            return True
        await self._compare(name, view)
        return True

    async def _standing(self, name: str, view: memoryview, digest: bytes) -> str | None:
        """Compare what has the name: None: nothing; "same"; else the ETag of an object of another size.

        Raises: StoreRejected (the same size, other content).
        """
        try:
            found = await self._head(name)
        except ObjectMissing:
            return None
        if int(found["ContentLength"]) != len(view):
            return str(found.get("ETag", "*"))
        told = found.get("ChecksumSHA256")
        if told is None:
            await self._compare(name, view)
        elif told != b64encode(digest).decode():
            raise self._other(name)
        return "same"

    async def _compare(self, name: str, view: memoryview) -> None:
        """Read an object back; return if it is what it should be. Raises: StoreRejected."""
        try:
            held = await self._get(name, 0, len(view) + 1)
        except ObjectMissing:
            raise StoreUnavailable(f"{self._settings.where}: object {name} was put and is not there") from None
        if memoryview(held).cast("B") != view:
            raise self._other(name)

    def _no_s3(self, about: str) -> StoreUnavailable:
        return StoreUnavailable(f"{self._settings.where}, {about}: {NO_S3}")

    def _of_s3(self, name: str, answer: dict[str, Any]) -> None:
        """Return if an answer is no web page, such as the login page of a hotel. Raises: StoreUnavailable."""
        if str(answer.get("ContentType", "")).startswith("text/html"):
            raise self._no_s3(name)

    def _other(self, name: str) -> ContentDiffers:
        return ContentDiffers(f"{self._settings.where}: object {name} exists with other content")

    async def _conditional(self, name: str) -> bool:
        """Return whether puts may rely on `If-None-Match`, after asking the server once."""
        async with self._asking:
            if self._connection.conditional is None and name != FORMAT:
                try:
                    self._connection.conditional = await self._try_put()
                except ObjectMissing:
                    return False  # no store yet, and so nothing to ask with
        return self._connection.conditional is not False

    async def _try_put(self) -> bool:
        marker = memoryview(await self._marker()).cast("B")
        digest = await sha256_of(marker)
        try:
            honoured = not await self._send(FORMAT, marker, digest, {"IfNoneMatch": "*"})
        except StoreRejected as error:
            if not _unknown_header(error):
                raise
            honoured = False
            await self._send(FORMAT, marker, digest, {})
        self._connection.conditional = honoured
        return honoured

    async def _try_new(self) -> None:
        """Put, where there is no store, what any server refuses for its digests, once it has looked at the rights."""
        digests = {"ContentMD5": b64encode(bytes(16)).decode(), "ChecksumSHA256": b64encode(bytes(32)).decode()}
        options = {**self._settings.put_options(), **await self._locks.options(FORMAT), **digests}
        async with self._connection.client(FORMAT) as client:
            try:
                await client.put_object(Body=b"?", **self._at(FORMAT), **options)
            except ClientError as error:
                if code_of(error)[0] not in WRONG_DIGEST:
                    raise
                return
            await client.delete_object(**self._at(FORMAT))  # a server that verifies nothing

    async def _marker(self) -> Bytes:
        return await self._get(FORMAT, 0, FORMAT_BYTES_MAX)

    async def _head(self, name: str) -> dict[str, Any]:
        async with self._connection.client(name) as client:
            try:
                found: dict[str, Any] = await client.head_object(ChecksumMode="ENABLED", **self._at(name))
            except ClientError:
                # An answer to HEAD has no words: a bucket that is gone looks like an object that is. This one has.
                found = await client.get_object(ChecksumMode="ENABLED", **self._at(name))
                found.pop("Body").close()
        moved()
        self._of_s3(name, found)
        return found

    async def _page(self, arguments: dict[str, Any]) -> dict[str, Any]:
        async with self._connection.client() as client:
            page: dict[str, Any] = await client.list_objects_v2(**arguments)
        moved()
        if "IsTruncated" not in page:
            raise self._no_s3("listing")  # not an empty one
        return page

    async def _delete(self, name: str) -> None:
        async with self._connection.client(name) as client:
            await client.delete_object(**self._at(name))

    async def _get(self, name: str, offset: int, length: int | None) -> Bytes:
        whole = offset == 0 and length is None
        last = "" if length is None else str(offset + length - 1)
        asked = {} if whole else {"Range": f"bytes={offset}-{last}"}
        async with self._connection.client(name) as client:
            try:
                answer = await client.get_object(**self._at(name), **asked)
            except ClientError as error:
                if not whole and (code_of(error)[0] == "InvalidRange" or code_of(error)[1] == 416):
                    return b""
                raise
            moved()
            self._of_s3(name, answer)
            given = str(answer.get("ContentRange", ""))
            if given and not given.startswith(f"bytes {offset}-"):
                raise StoreUnavailable(
                    f"{self._settings.where}: object {name}: the server sent another range: try again"
                )
            async with answer["Body"] as body:
                # A server that knows no ranges sends the whole object.
                skip = 0 if whole or given else offset
                return await self._read(name, body, answer.get("ContentLength"), skip, length)

    async def _read(self, name: str, body: Any, size: int | None, skip: int, length: int | None) -> Bytes:
        """Return what comes, without its first `skip` bytes, at most `length` of it; `size`: of all, if it was told."""
        content = body.raw_stream.content  # as it comes: pieces of one size would have to be copied together
        pieces: list[bytes] = []
        total = held = 0
        while (length is None or held < length) and (piece := await content.readany()):
            moved()
            begin = max(0, skip - total)
            end = len(piece) if length is None else begin + length - held
            total += len(piece)
            pieces.append(piece[begin:end])
            held += len(pieces[-1])
        if size is not None and total < size and (length is None or held < length):
            raise StoreUnavailable(f"{self._settings.where}: object {name} came cut off: try again")
        if total == size:
            await content.readany()  # the end, after which the connection can be used again
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unknown_header(error: StoreRejected) -> bool:
    """Tell whether a server refused because it does not know a condition of a put."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return False
    code, status = code_of(cause)
    return status == 501 or code in _UNKNOWN_HEADER
