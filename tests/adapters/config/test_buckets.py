from __future__ import annotations

from pathlib import Path

import pytest

from adapters.config import Bucket, Config, ConfigProblems, load_vault, parse_config
from adapters.config.buckets import bucket_of
from adapters.stores.s3settings import S3Settings
from engine.errors import ConfigError

SOURCE = Path("/etc/forebay/forebay.toml")
HEAD = '[system]\nname = "web-01"\n[[volume]]\nname = "data"\npath = "/dev/vg0/data"\n[vault]\n'


def parsed(vault: str) -> Config:
    return parse_config(f"{HEAD}{vault}", SOURCE)


def problems(vault: str) -> str:
    with pytest.raises(ConfigProblems) as caught:
        parsed(vault)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("S3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/a/b_c/D.e", ("my.bucket-1", "a/b_c/D.e")),
        ("s3://bucket/a/", ("bucket", "a")),
    ],
)
def test_a_url_names_a_bucket_and_a_prefix(url: str, expected: tuple[str, str]) -> None:
    assert bucket_of(url) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3:bucket", "two slashes follow s3:"),
        ("s3:///x", "'' is no name of a bucket"),
        ("s3://ab", "'ab' is no name of a bucket"),
        ("s3://Bucket", "'Bucket' is no name of a bucket"),
        ("s3://bucket:9000/x", "is no name of a bucket"),
        ("s3://bucket/a//b", "'' in its prefix"),
        ("s3://bucket/a/../b", "'..' in its prefix"),
        ("s3://bucket/a b", "'a b' in its prefix"),
        ("s3://bucket/a?x", "'a?x' in its prefix"),
        ("s3://bucket/" + "/".join(["x" * 100] * 5), "longer than 400 characters"),
        ("s3://key:secret@bucket/x", "keys do not belong in the URL"),
    ],
)
def test_what_names_no_bucket_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        bucket_of(url)
    assert reason in str(caught.value)


def test_every_setting_of_a_bucket_arrives() -> None:
    config = parsed(
        """
        url = "s3://bucket/prefix"
        endpoint_url = "https://s3.example.com:9000"
        region = "eu-central-1"
        addressing = "virtual"
        credentials_file = "keys"
        profile = "backup"
        ca_file = "/ca.pem"
        proxy = "http://proxy:3128"
        storage_class = "STANDARD_IA"
        encryption = "aws:kms"
        kms_key = "arn:aws:kms:eu-central-1:111122223333:key/0123"
        """
    )
    assert config.vault.place == Bucket(
        bucket="bucket",
        prefix="prefix",
        endpoint_url="https://s3.example.com:9000",
        region="eu-central-1",
        addressing="virtual",
        credentials_file=Path("/etc/forebay/keys"),
        profile="backup",
        ca_file=Path("/ca.pem"),
        proxy="http://proxy:3128",
        storage_class="STANDARD_IA",
        encryption="aws:kms",
        kms_key="arn:aws:kms:eu-central-1:111122223333:key/0123",
    )
    assert str(config.vault.place) == "s3://bucket/prefix"


def test_a_lost_bucket_is_waited_for_and_what_was_sent_counts_unless_the_file_says_otherwise() -> None:
    vault = parsed('url = "s3://bucket"').vault
    assert (vault.reconnect_window_s, vault.on_loss) == (1800.0, "resume")
    vault = parsed('url = "s3://bucket"\nreconnect_window = "0 s"\non_loss = "restart"').vault
    assert (vault.reconnect_window_s, vault.on_loss) == (0.0, "restart")
    vault = parsed('url = "file:///srv/vault"').vault
    assert (vault.reconnect_window_s, vault.on_loss) == (0.0, "restart")


@pytest.mark.parametrize(
    ("vault", "told"),
    [
        ('url = "file:///v"\nregion = "x"', "region is for a bucket, and /v is none: leave it out, or write s3://"),
        ('url = "file:///v"\nencryption = "AES256"', "encryption is for a bucket"),
        ('url = "s3://bucket"\nuser = "me"', "user is for a share, and s3://bucket is a bucket"),
        ('url = "s3://bucket"\nkms_key = "x"', 'kms_key needs encryption = "aws:kms"'),
        ('url = "s3://bucket"\nstorage_class = "GLACIER"', "must be thawed"),
        ('url = "file:///v"\nlock = "30 d"', "[vault] lock is for a bucket, and /v is none"),
        ('url = "s3://bucket"\nlock_mode = "compliance"', 'lock_mode needs lock, such as lock = "30 d"'),
        ('url = "s3://bucket"\nendpoint_url = "s3.example.com"', "an http:// or https:// URL"),
        ('url = "s3://bucket"\nendpoint_url = "https://h/bucket"', "an http:// or https:// URL"),
    ],
)
def test_what_does_not_go_together_is_refused(vault: str, told: str) -> None:
    assert told in problems(vault)


@pytest.mark.parametrize(
    "vault",
    [
        'url = "s3://key:verysecret@bucket"',
        'url = "s3://bucket"\nendpoint_url = "https://key:verysecret@host"',
        'url = "s3://bucket"\nproxy = "http://user:verysecret@proxy:3128"',
        'url = "smb://agent:very\\"secret verysecret@nas/share/x"',
        'url = "s3:key:verysecret@bucket"',
        'url = "smb:agent:verysecret@nas/share/x"',
    ],
)
def test_a_login_in_a_url_is_refused_and_not_shown(vault: str) -> None:
    told = problems(vault)
    assert "***@" in told
    assert "verysecret" not in told


def test_a_bare_url_takes_all_else_from_the_environment() -> None:
    assert load_vault("s3://bucket/x").place == Bucket(bucket="bucket", prefix="x")
    with pytest.raises(ConfigError, match="keys do not belong in the URL") as caught:
        load_vault("s3://a:verysecret@bucket")
    assert "verysecret" not in str(caught.value)


def test_a_cache_and_a_spool_are_no_buckets() -> None:
    for table in ("cache", "spool"):
        told = problems(f'url = "s3://bucket"\n[{table}]\npath = "s3://bucket/{table}"')
        assert "only a vault may be a bucket" in told


def test_the_settings_of_a_bucket_are_those_of_its_store() -> None:
    assert set(Bucket.__struct_fields__) == set(S3Settings.__struct_fields__) - {"connect_timeout_s", "stall_timeout_s"}
