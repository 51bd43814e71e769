"""Where a vault in an S3 bucket lies, and how it is reached."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

PREFIX_CHARS_MAX: Final = 400
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,120}")

Addressing: TypeAlias = Literal["auto", "path", "virtual"]
LockMode: TypeAlias = Literal["governance", "compliance"]
Encryption: TypeAlias = Literal["default", "AES256", "aws:kms", "aws:kms:dsse"]


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket and the prefix in it ("" or without slashes around it); None: as the environment says."""

    bucket: str
    prefix: str = ""
    region: str | None = None
    endpoint_url: str | None = None
    addressing: Addressing = "auto"
    credentials_file: Path | None = None
    profile: str | None = None
    ca_file: Path | None = None
    proxy: str | None = None
    storage_class: str | None = None
    encryption: Encryption = "default"
    kms_key: str | None = None
    lock_s: float | None = None
    lock_mode: LockMode = "governance"

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


def is_s3(text: str) -> bool:
    """Tell whether `text` means a bucket."""
    return text.lower().startswith("s3:")


def bucket_of(url: str) -> tuple[str, str]:
    """Return the bucket an s3:// URL names, and the prefix in it. Raises: ValueError, with the reason."""
    if not url.lower().startswith("s3://"):
        raise ValueError("two slashes follow s3:")
    bucket, _, path = url[len("s3://") :].partition("/")
    if "@" in url:
        raise ValueError("keys do not belong in the URL: put them into [vault] credentials_file or the environment")
    if _BUCKET.fullmatch(bucket) is None:
        raise ValueError(f"{bucket!r} is no name of a bucket: those are 3 to 63 of a-z 0-9 . -")
    prefix = path.strip("/")
    if len(prefix) > PREFIX_CHARS_MAX:
        raise ValueError(f"its prefix is longer than {PREFIX_CHARS_MAX} characters")
    for segment in prefix.split("/") if prefix else ():
        if _SEGMENT.fullmatch(segment) is None:
            raise ValueError(f"{segment!r} in its prefix is not made of 1 to 120 of a-z A-Z 0-9 . _ -")
    return bucket, prefix
