"""What it takes to reach a bucket, and its keys: read from a file when they are needed, shown nowhere."""

from __future__ import annotations

import configparser
import os
from pathlib import Path
from typing import Final, Literal, NoReturn

import msgspec

from adapters.smallfiles import read_small
from engine.errors import ConfigError, StoreRejected

KEYS_BYTES_MAX: Final = 64 << 10
DEFAULT_PROFILE: Final = "default"

_ID, _SECRET, _TOKEN = "aws_access_key_id", "aws_secret_access_key", "aws_session_token"


class S3Keys:
    """An access key; nothing that prints it shows more than `***`."""

    __slots__ = ("access_key", "secret_key", "token")

    def __init__(self, access_key: str, secret_key: str, token: str | None = None) -> None:
        self.access_key, self.secret_key, self.token = access_key, secret_key, token

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not to be pickled or copied")


class S3Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket, the prefix of everything in it ("" or without slashes around it), and how to reach them.

    None: what the environment, the profile or the machine's role says, as for every program that uses S3.
    """

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    credentials_file: Path | None = None
    profile: str | None = None
    ca_file: Path | None = None
    proxy: str | None = None
    storage_class: str | None = None
    encryption: Literal["default", "AES256", "aws:kms", "aws:kms:dsse"] = "default"
    kms_key: str | None = None
    lock_s: float | None = None
    lock_mode: Literal["governance", "compliance"] = "governance"
    connect_timeout_s: float = 15.0
    stall_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if min(self.connect_timeout_s, self.stall_timeout_s) <= 0:
            raise ValueError("timeouts must be greater than 0 s")

    @property
    def endpoint(self) -> str | None:
        """The URL of the server, unless it is Amazon's."""
        return self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None

    @property
    def where(self) -> str:
        """The bucket and its server, for messages."""
        url = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        return f"{url} at {self.endpoint}" if self.endpoint else url

    @property
    def style(self) -> str:
        """How URLs name the bucket: servers other than Amazon's seldom have a name for each bucket."""
        return self.addressing if self.addressing != "auto" else "path" if self.endpoint else "virtual"

    def put_options(self) -> dict[str, str]:
        """Return what goes with every put."""
        options: dict[str, str] = {}
        if self.storage_class is not None:
            options["StorageClass"] = self.storage_class
        if self.encryption != "default":
            options["ServerSideEncryption"] = self.encryption
        if self.kms_key is not None:
            options["SSEKMSKeyId"] = self.kms_key
        return options


def read_keys(path: Path, profile: str | None) -> S3Keys:
    """Return the keys of `profile` in a credentials file of the usual form.

    Raises: StoreRejected (unreadable, too large, open to every user, no such profile, not all keys): a session goes on
    without the vault then, `init` and `check-config` say so.
    """
    what = f"credentials file {path}"
    try:
        data = read_small("credentials file", path, KEYS_BYTES_MAX, secret=True)
    except ConfigError as error:
        raise StoreRejected(str(error)) from None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(data.decode("utf-8-sig"))
    except (configparser.Error, ValueError):
        # What the parser says may quote the file.
        raise StoreRejected(f"{what} is not of the form [profile], then lines of key = value") from None
    section = profile or DEFAULT_PROFILE
    if not parser.has_section(section):
        found = ", ".join(parser.sections()) or "none"
        raise StoreRejected(f"{what} has no profile [{section}] (it has: {found}): set [vault] profile")
    values = {key: parser.get(section, key, fallback="").strip() for key in (_ID, _SECRET, _TOKEN)}
    for key in (_ID, _SECRET):
        if not values[key]:
            raise StoreRejected(f"{what} has no {key} in [{section}]: add it")
    return S3Keys(values[_ID], values[_SECRET], values[_TOKEN] or None)
