"""The table of what S3 servers and the libraries say, with near misses."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from adapters.stores.s3errors import CODES, STATUSES, renamed
from engine.errors import ObjectMissing, StoreError, StoreRejected, StoreThrottled, StoreUnavailable

WHERE = "s3://bucket/x at http://host"
KEY = ConnectionKey("host", 443, True, True, None, None, None)


def answer(code: str, status: int = 0, message: str = "") -> boto.ClientError:
    response: dict[str, Any] = {"Error": {"Code": code, "Message": message}}
    if status:
        response["ResponseMetadata"] = {"HTTPStatusCode": status}
    return boto.ClientError(response, "PutObject")


def wrapped(kind: Any, inner: BaseException, **more: Any) -> BaseException:
    made: BaseException = kind(error=inner, endpoint_url="http://host", **more)
    return made


@pytest.mark.parametrize("code", CODES)
def test_every_code_becomes_its_word_and_a_sentence(code: str) -> None:
    found = renamed(answer(code, 400, "more than is shown"), WHERE, "data/x")
    assert type(found) is CODES[code][0]
    assert str(found) == f"{WHERE}, object data/x: {CODES[code][1]} ({code}, HTTP 400)"


@pytest.mark.parametrize("status", STATUSES)
def test_an_answer_without_words_is_told_by_its_status(status: int) -> None:
    found = renamed(answer(str(status), status), WHERE)
    assert type(found) is STATUSES[status][0]


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("SlowDown", 503, StoreThrottled),
        ("ServiceUnavailable", 503, StoreUnavailable),
        ("503", 503, StoreUnavailable),
        ("", 429, StoreThrottled),
        ("InternalError", 500, StoreUnavailable),
        ("SomethingNew", 500, StoreUnavailable),
        ("SomethingNew", 502, StoreUnavailable),
        ("SomethingNew", 400, StoreRejected),
        ("SomethingNew", 403, StoreRejected),
        ("SomethingNew", 507, StoreRejected),
        ("SomethingNew", 0, StoreRejected),
        ("RequestTimeout", 400, StoreUnavailable),
        ("BadDigest", 400, StoreUnavailable),
        ("InvalidDigest", 400, StoreUnavailable),
        ("InvalidBucketName", 400, StoreRejected),
        ("RequestTimeTooSkewed", 403, StoreRejected),
        ("NoSuchBucket", 404, StoreRejected),
        ("accessdenied", 418, StoreRejected),
    ],
)
def test_near_misses_of_codes(code: str, status: int, expected: type[StoreError]) -> None:
    assert type(renamed(answer(code, status), WHERE, "data/x")) is expected


@pytest.mark.parametrize(("code", "status"), [("NoSuchKey", 404), ("404", 404), ("NotFound", 404), ("", 404)])
def test_an_object_is_missing_only_where_one_was_asked_for(code: str, status: int) -> None:
    found = renamed(answer(code, status), WHERE, "data/x")
    assert type(found) is ObjectMissing
    assert found.name == "data/x"
    assert type(renamed(answer(code, status), WHERE)) is StoreRejected


def test_what_a_server_says_is_shown_short_and_plain() -> None:
    found = renamed(answer("Odd\nCode", 400, "\x1b[31mred\n" + "x" * 500), WHERE)
    assert found is not None
    assert "[31mred" in str(found)
    assert str(found).isprintable()
    assert len(str(found)) < 400


CERTIFICATE = ssl.SSLCertVerificationError(1, "self-signed certificate")


@pytest.mark.parametrize(
    ("error", "expected", "told"),
    [
        (wrapped(boto.ConnectTimeoutError, TimeoutError()), StoreUnavailable, "did not answer in time"),
        (wrapped(boto.ReadTimeoutError, TimeoutError()), StoreUnavailable, "did not answer in time"),
        (wrapped(boto.ConnectionClosedError, OSError(), request=None), StoreUnavailable, "was cut"),
        (wrapped(boto.EndpointConnectionError, OSError()), StoreUnavailable, "cannot be reached"),
        (
            wrapped(boto.EndpointConnectionError, aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown"))),
            StoreUnavailable,
            "name is not known",
        ),
        (
            wrapped(boto.EndpointConnectionError, aiohttp.ClientConnectorError(KEY, OSError(111, "refused"))),
            StoreUnavailable,
            "cannot be reached",
        ),
        (boto.ProxyConnectionError(proxy_url="http://proxy", error=OSError()), StoreUnavailable, "proxy"),
        (
            wrapped(boto.SSLError, aiohttp.ClientConnectorCertificateError(KEY, CERTIFICATE)),
            StoreRejected,
            "certificate is not trusted",
        ),
        (
            wrapped(boto.SSLError, aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "wrong version number"))),
            StoreUnavailable,
            "no secure connection",
        ),
        (boto.NoCredentialsError(), StoreRejected, "there are no credentials"),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), StoreRejected, "there are no credentials"),
        (boto.CredentialRetrievalError(provider="sso", error_msg="x"), StoreUnavailable, "could not be fetched"),
        (boto.ProfileNotFound(profile="x"), StoreRejected, "no such profile"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnavailable, "was cut"),
        (boto.ResponseStreamingError(error=OSError()), StoreUnavailable, "was cut"),
        (boto.HTTPClientError(error=ConnectionResetError()), StoreUnavailable, "was cut"),
        (ResponseParserError("html"), StoreUnavailable, "no S3 server"),
        (aiohttp.ClientPayloadError(), StoreUnavailable, "was cut"),
        (aiohttp.ServerDisconnectedError(), StoreUnavailable, "was cut"),
        (aiohttp.InvalidURL("x"), StoreUnavailable, "no S3 server"),
        (ConnectionResetError(), StoreUnavailable, "was cut"),
        (TimeoutError(), StoreUnavailable, "did not answer in time"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_happens_on_the_way_becomes_its_word(error: BaseException, expected: type[StoreError], told: str) -> None:
    found = renamed(error, WHERE)
    assert type(found) is expected
    assert told in str(found)
    assert str(found).startswith(f"{WHERE}: ")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        TypeError("a bug"),
        KeyError("a bug"),
        OSError(22, "a bug"),
        FileNotFoundError("a bug"),
        boto.ParamValidationError(report="a bug"),
        boto.HTTPClientError(error=ValueError("a bug")),
        boto.DataNotFoundError(data_path="a bug"),
        StoreRejected("said already"),
        ObjectMissing("said already"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_only_a_bug_can_cause_propagates(error: BaseException) -> None:
    assert renamed(error, WHERE, "data/x") is None
