"""The one table of what an S3 server, botocore or aiohttp says → ours.

A server's refusal is told by its code, then by its HTTP status; what happened on the way by the exception's type, and
then by what that wraps. An exception that is in no table propagates: it is a bug, not an answer of the outside world.
"""

from __future__ import annotations

import re
import ssl
from typing import Any, Final

import aiohttp
from botocore import exceptions as boto

from engine.errors import ObjectMissing, StoreError, StoreRejected, StoreThrottled, StoreUnavailable

_RIGHTS = "this is not permitted: give the access key the rights that docs/OPERATIONS.md lists"
_KEY = "the server does not know the access key: check the credentials"
_TOKEN = "the credentials have expired or are no valid ones: renew them"
_REGION = "the bucket is in another region, or the server has another one: set [vault] region"
_QUOTA = "there is no space left, or the quota is used up: free some, or raise it"
_ACCOUNT = "the server has shut the account or the bucket: ask who runs it"
_KMS = "the encryption key cannot be used: check [vault] encryption and kms_key, and the rights to that key"
_UNSUPPORTED = "the server does not know how to do this: use another one"
_AGAIN = "the server could not do it now: try again later"
_DAMAGED = "what was sent did not arrive as it was sent: try again; if it stays, check the network and this machine"
_SLOWER = "the server asks to slow down"

CODES: Final[dict[str, tuple[type[StoreError], str]]] = {
    "NoSuchBucket": (StoreRejected, "there is no such bucket: make it, or correct [vault] url"),
    "InvalidBucketName": (StoreRejected, "this is no name of a bucket: correct [vault] url"),
    "AccessDenied": (StoreRejected, _RIGHTS),
    "AllAccessDisabled": (StoreRejected, _ACCOUNT),
    "AccountProblem": (StoreRejected, _ACCOUNT),
    "NotSignedUp": (StoreRejected, _ACCOUNT),
    "UnauthorizedAccess": (StoreRejected, _RIGHTS),
    "InvalidAccessKeyId": (StoreRejected, _KEY),
    "SignatureDoesNotMatch": (StoreRejected, "the secret key is wrong: check the credentials"),
    "ExpiredToken": (StoreRejected, _TOKEN),
    "InvalidToken": (StoreRejected, _TOKEN),
    "TokenRefreshRequired": (StoreRejected, _TOKEN),
    "InvalidSecurity": (StoreRejected, _TOKEN),
    "CredentialsNotSupported": (StoreRejected, _TOKEN),
    "RequestTimeTooSkewed": (StoreRejected, "the clock of this machine or of the server is wrong: set it right"),
    "RequestExpired": (StoreRejected, "the clock of this machine or of the server is wrong: set it right"),
    "PermanentRedirect": (StoreRejected, _REGION),
    "TemporaryRedirect": (StoreUnavailable, _AGAIN),
    "AuthorizationHeaderMalformed": (StoreRejected, _REGION),
    "IllegalLocationConstraintException": (StoreRejected, _REGION),
    "QuotaExceeded": (StoreRejected, _QUOTA),
    "InsufficientStorage": (StoreRejected, _QUOTA),
    "XMinioStorageFull": (StoreRejected, _QUOTA),
    "XMinioAdminBucketQuotaExceeded": (StoreRejected, _QUOTA),
    "EntityTooLarge": (StoreRejected, "the server takes no objects of this size: lower [vault] pack_size"),
    "InvalidStorageClass": (StoreRejected, "the server does not know the storage class: correct [vault] storage_class"),
    "InvalidObjectState": (StoreRejected, "it lies in an archive: bring it back from there, then try again"),
    "KMS.DisabledException": (StoreRejected, _KMS),
    "KMS.NotFoundException": (StoreRejected, _KMS),
    "KMS.KMSInvalidStateException": (StoreRejected, _KMS),
    "KMS.AccessDeniedException": (StoreRejected, _KMS),
    "MethodNotAllowed": (StoreRejected, _UNSUPPORTED),
    "BadDigest": (StoreUnavailable, _DAMAGED),
    "InvalidDigest": (StoreUnavailable, _DAMAGED),
    "XAmzContentSHA256Mismatch": (StoreUnavailable, _DAMAGED),
    "XAmzContentChecksumMismatch": (StoreUnavailable, _DAMAGED),
    "IncompleteBody": (StoreUnavailable, _DAMAGED),
    "RequestTimeout": (StoreUnavailable, _AGAIN),
    "OperationAborted": (StoreUnavailable, _AGAIN),
    "ConditionalRequestConflict": (StoreUnavailable, _AGAIN),
    "InternalError": (StoreUnavailable, _AGAIN),
    "ServiceUnavailable": (StoreUnavailable, _AGAIN),
    "SlowDown": (StoreThrottled, _SLOWER),
    "SlowDownRead": (StoreThrottled, _SLOWER),
    "SlowDownWrite": (StoreThrottled, _SLOWER),
    "Throttling": (StoreThrottled, _SLOWER),
    "ThrottlingException": (StoreThrottled, _SLOWER),
    "ThrottledException": (StoreThrottled, _SLOWER),
    "RequestThrottled": (StoreThrottled, _SLOWER),
    "RequestLimitExceeded": (StoreThrottled, _SLOWER),
    "BandwidthLimitExceeded": (StoreThrottled, _SLOWER),
    "TooManyRequests": (StoreThrottled, _SLOWER),
}
# An answer to HEAD has no code, and proxies in front of a server have codes of their own.
STATUSES: Final[dict[int, tuple[type[StoreError], str]]] = {
    301: (StoreRejected, _REGION),
    307: (StoreUnavailable, _AGAIN),
    401: (StoreRejected, _RIGHTS),
    403: (StoreRejected, _RIGHTS),
    405: (StoreRejected, _UNSUPPORTED),
    407: (StoreRejected, "the proxy wants a login: set HTTPS_PROXY with one in the environment"),
    408: (StoreUnavailable, _AGAIN),
    409: (StoreUnavailable, _AGAIN),
    413: (StoreRejected, "the server takes no objects of this size: lower [vault] pack_size"),
    429: (StoreThrottled, _SLOWER),
    501: (StoreRejected, _UNSUPPORTED),
    507: (StoreRejected, _QUOTA),
}
WRONG_DIGEST: Final = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
)
_NO_OBJECT: Final = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchVersion"})

_CUT = "the connection was cut: check the network"
_SILENT = "the server did not answer in time: check that it runs and can be reached"
_NO_NAME = "the server's name is not known: check [vault] endpoint_url and region, and this machine's DNS"
_REACH = "the server cannot be reached: check that it runs, [vault] endpoint_url, and the network"
_PROXY = "the proxy cannot be reached: check [vault] proxy, or HTTPS_PROXY"
_CERTIFICATE = (
    "the server's certificate is not trusted: put the certificate of who signed it into [vault] ca_file, and check the "
    "name in endpoint_url"
)
_TLS = "no secure connection could be made: check that endpoint_url begins with what the server speaks"
NO_S3: Final = "what answers is no S3 server: check [vault] endpoint_url, and proxies on the way"
_NO_KEYS = "there are no credentials: set [vault] credentials_file, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

# In this order: the first that fits counts.
KINDS: Final[tuple[tuple[type[BaseException], type[StoreError], str], ...]] = (
    (boto.ConnectTimeoutError, StoreUnavailable, _SILENT),
    (boto.ReadTimeoutError, StoreUnavailable, _SILENT),
    (boto.ProxyConnectionError, StoreUnavailable, _PROXY),
    (boto.InvalidProxiesConfigError, StoreRejected, _PROXY),
    (boto.ConnectionClosedError, StoreUnavailable, _CUT),
    (boto.ResponseStreamingError, StoreUnavailable, _CUT),
    (boto.IncompleteReadError, StoreUnavailable, _CUT),
    (boto.EndpointConnectionError, StoreUnavailable, _REACH),
    (boto.NoCredentialsError, StoreRejected, _NO_KEYS),
    (boto.PartialCredentialsError, StoreRejected, _NO_KEYS),
    (boto.ProfileNotFound, StoreRejected, "there is no such profile: correct [vault] profile"),
    (boto.ConfigParseError, StoreRejected, "the configuration of S3 programs on this machine cannot be read: mend it"),
    (boto.InvalidRegionError, StoreRejected, _REGION),
    (boto.MetadataRetrievalError, StoreUnavailable, "this machine's role gives no credentials now: try again later"),
    (boto.CredentialRetrievalError, StoreUnavailable, "the credentials could not be fetched: try again later"),
    (boto.TokenRetrievalError, StoreRejected, _TOKEN),
    (boto.UnauthorizedSSOTokenError, StoreRejected, _TOKEN),
    (boto.SSOTokenLoadError, StoreRejected, _TOKEN),
    # What cannot be read as an answer of S3: a login page of a hotel, for instance.
    (aiohttp.ClientPayloadError, StoreUnavailable, _CUT),
    (aiohttp.ClientConnectionError, StoreUnavailable, _CUT),
    (aiohttp.ClientError, StoreUnavailable, NO_S3),
    (ConnectionError, StoreUnavailable, _CUT),
    (TimeoutError, StoreUnavailable, _SILENT),
)


def renamed(error: BaseException, where: str, name: str = "") -> StoreError | None:
    """Return our error for one of the outside world's; None: no table knows it.

    `where` names bucket and server, `name` the object, if it is about one.
    """
    about = f"{where}, object {name}" if name else where
    if isinstance(error, boto.ClientError):
        return _answered(error, about, name)
    inner = cause_of(error)
    if isinstance(error, boto.SSLError):
        kind, advice = _of_tls(inner)
        return kind(f"{about}: {advice}")
    if isinstance(error, boto.EndpointConnectionError) and isinstance(inner, aiohttp.ClientConnectorDNSError):
        return StoreUnavailable(f"{about}: {_NO_NAME}")
    for known, kind, advice in KINDS:
        if isinstance(error, known):
            return kind(f"{about}: {advice}")
    if type(error).__name__ == "ResponseParserError":  # of botocore's parsers, which are slow to import
        return StoreUnavailable(f"{about}: {NO_S3}")
    if isinstance(error, boto.HTTPClientError) and inner is not None:
        # Whatever aiobotocore has no name for; the exception in it may be a bug.
        return renamed(inner, where, name)
    return None


def code_of(error: boto.ClientError) -> tuple[str, int]:
    """Return the code and the HTTP status of a server's refusal; 0 without one."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return str(error.response.get("Error", {}).get("Code", "")), status if isinstance(status, int) else 0


def cause_of(error: BaseException) -> BaseException | None:
    """Return the exception that one of botocore's was made of."""
    kwargs: Any = getattr(error, "kwargs", None)
    inner = kwargs.get("error") if isinstance(kwargs, dict) else None
    return inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__


def _answered(error: boto.ClientError, about: str, name: str) -> StoreError:
    code, status = code_of(error)
    if name and (code in _NO_OBJECT or (not code and status == 404)):
        return ObjectMissing(name)
    row = CODES.get(code) or STATUSES.get(status)
    if row is None:
        # A server's own trouble may pass; what it refuses stays refused.
        row = (StoreUnavailable, _AGAIN) if status >= 500 else (StoreRejected, "the server refuses: see what it says")
    kind, advice = row
    said = "" if code in CODES else _plain(str(error.response.get("Error", {}).get("Message", "")))
    told = ", ".join(part for part in (_plain(code), f"HTTP {status}" if status else "", said) if part)
    return kind(f"{about}: {advice} ({told})")


def _of_tls(inner: BaseException | None) -> tuple[type[StoreError], str]:
    seen = 0
    while inner is not None and seen < 8:
        if isinstance(inner, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
            return StoreRejected, _CERTIFICATE
        inner, seen = inner.__cause__ or inner.__context__, seen + 1
    return StoreUnavailable, _TLS


def _plain(text: str) -> str:
    """Return what a server says as one short line: it may say anything."""
    return re.sub(r"[^ -~]+", " ", text).strip()[:160]
