"""What S3 costs at the start: nothing where there is no bucket, and nothing that only looks at this machine."""

from __future__ import annotations

import pytest

from tests.adapters.cli import hostile
from tests.adapters.cli.test_startup import LOOKED_AT, among, imported

S3 = ("adapters.stores.s3", "adapters.stores.s3client", "aiobotocore", "aiohttp", "botocore")


@pytest.mark.parametrize("command", ["status", "backup", "points"])
def test_a_vault_in_a_folder_costs_nothing_of_buckets(place: hostile.Place, command: str) -> None:
    assert among(imported(place, "--config", str(place.config), command), *S3) == []


def test_a_vault_in_a_bucket_costs_status_nothing(place: hostile.Place) -> None:
    place.configure((place.folder / "vault").as_uri(), "s3://bucket/prefix")
    modules = imported(place, "--config", str(place.config), "status")
    assert among(modules, *S3, *LOOKED_AT, "aiofiles", "anyio._backends", "asyncio") == []
