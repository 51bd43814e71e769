"""Keys for S3: read with care, shown nowhere."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from adapters.stores.s3settings import KEYS_BYTES_MAX, S3Keys, S3Settings, read_keys
from engine.errors import StoreRejected

KEYS = "[default]\naws_access_key_id = id\naws_secret_access_key = verysecret\n"


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_keys_are_read_from_their_profile(tmp_path: Path) -> None:
    text = KEYS + "[other]\naws_access_key_id=a%b\naws_secret_access_key=c%%d\naws_session_token = t\n"
    file = written(tmp_path / "keys", "\ufeff" + text)
    found = read_keys(file, None)
    assert (found.access_key, found.secret_key, found.token) == ("id", "verysecret", None)
    found = read_keys(file, "other")
    assert (found.access_key, found.secret_key, found.token) == ("a%b", "c%%d", "t")


def test_its_group_may_read_it_as_systemd_hands_it_over(tmp_path: Path) -> None:
    assert read_keys(written(tmp_path / "keys", KEYS, 0o640), None).access_key == "id"


@pytest.mark.parametrize(
    ("text", "mode", "profile", "told"),
    [
        (KEYS, 0o604, None, "is open to every user: run chmod o= on it"),
        (KEYS, 0o600, "other", r"has no profile \[other\] \(it has: default\)"),
        ("", 0o600, None, r"has no profile \[default\] \(it has: none\)"),
        ("[default]\naws_access_key_id = id\n", 0o600, None, "has no aws_secret_access_key in"),
        ("[default]\naws_access_key_id =\naws_secret_access_key = verysecret\n", 0o600, None, "has no aws_access_key"),
        ("verysecret", 0o600, None, "is not of the form"),
        ("[default]\nverysecret", 0o600, None, "is not of the form"),
        (KEYS + KEYS, 0o600, None, "is not of the form"),
        (b"\xff\xfe", 0o600, None, "is not of the form"),
        (b"#" * (KEYS_BYTES_MAX + 1), 0o600, None, "is larger than 65536 bytes"),
    ],
)
def test_a_file_that_is_none_is_refused_without_a_word_of_what_is_in_it(
    tmp_path: Path, text: str | bytes, mode: int, profile: str | None, told: str
) -> None:
    file = written(tmp_path / "keys", text, mode)
    with pytest.raises(StoreRejected, match=told) as caught:
        read_keys(file, profile)
    assert str(file) in str(caught.value)
    assert "verysecret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreRejected, match="keys cannot be read: No such file"):
        read_keys(tmp_path / "keys", None)


def test_keys_are_neither_printed_nor_copied() -> None:
    keys = S3Keys("id", "verysecret")
    assert f"{keys} {keys!r} {[keys]}" == "*** *** [***]"
    with pytest.raises(TypeError):
        pickle.dumps(keys)
    with pytest.raises(TypeError):
        copy.copy(keys)


def test_the_address_of_the_server_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    amazon = S3Settings(bucket="bucket", prefix="a/b")
    assert (amazon.endpoint, amazon.style, amazon.where) == (None, "virtual", "s3://bucket/a/b")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000")
    assert (amazon.endpoint, amazon.style) == ("http://minio:9000", "path")
    assert amazon.where == "s3://bucket/a/b at http://minio:9000"
    given = S3Settings(bucket="bucket", endpoint_url="http://ceph", addressing="virtual")
    assert (given.endpoint, given.style) == ("http://ceph", "virtual")


def test_what_goes_with_every_put() -> None:
    assert S3Settings(bucket="b").put_options() == {}
    given = S3Settings(bucket="b", storage_class="STANDARD_IA", encryption="aws:kms", kms_key="k")
    assert given.put_options() == {
        "StorageClass": "STANDARD_IA",
        "ServerSideEncryption": "aws:kms",
        "SSEKMSKeyId": "k",
    }


def test_timeouts_have_a_bound() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        S3Settings(bucket="b", stall_timeout_s=0)
