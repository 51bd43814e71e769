"""A server in front of the S3 server of the tests that is worse than that one: it signs anew what it passes on."""

from __future__ import annotations

from types import TracebackType
from typing import Final

import aiohttp
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.servers import S3Server

CONDITIONS: Final = ("If-None-Match", "If-Match")
BODY_BYTES_MAX: Final = 64 << 20


def _answer(status: int, code: str) -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


class S3Front:
    """What it does is set by its attributes, at any time; `requests` has the method and the path of each request."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self.requests: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}  # of the last request
        self.conditions = "honoured"  # or "ignored", or "refused"
        self.checksums = True  # False: it verifies none, and answers with none
        self.ranges = True
        self.refusals: list[tuple[int, str]] = []  # of the next requests: status and code
        self.drop_answers = 0  # of so many puts that worked
        self.login_page = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> S3Front:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path))
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        if self.login_page:
            return web.Response(text="<html><body>Welcome to the hotel</body></html>", content_type="text/html")
        if self.refusals:
            return _answer(*self.refusals.pop(0))
        headers = {name: value for name, value in request.headers.items() if self._goes_on(name)}
        if self.conditions == "refused" and any(name in request.headers for name in CONDITIONS):
            return _answer(501, "ANotKnownHeader")
        signed = AWSRequest(request.method, self._server.endpoint + request.path_qs, headers, body)
        keys = Credentials(self._server.access_key, self._server.secret_key)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(signed)
        async with self._session.request(
            request.method, self._server.endpoint + request.path_qs, headers=dict(signed.headers), data=body or None
        ) as answer:
            held = await answer.read()
            if self.drop_answers and request.method == "PUT" and answer.status == 200:
                self.drop_answers -= 1
                assert request.transport is not None
                request.transport.abort()
            given = {} if self.checksums else {"ETag": '"of no use"'}
            given |= {name: value for name, value in answer.headers.items() if self._comes_back(name)}
            if request.method == "HEAD":
                given["Content-Length"] = answer.headers["Content-Length"]
            return web.Response(status=answer.status, body=held, headers=given)

    def _goes_on(self, name: str) -> bool:
        low = name.lower()
        if low in ("if-none-match", "if-match"):
            return self.conditions == "honoured"
        if low == "range":
            return self.ranges
        if low.startswith("x-amz-checksum"):
            return self.checksums
        return low in ("x-amz-storage-class", "content-type")

    def _comes_back(self, name: str) -> bool:
        low = name.lower()
        if low.startswith("x-amz-checksum") or low == "etag":
            return self.checksums
        return low in ("content-range", "content-type", "last-modified")
