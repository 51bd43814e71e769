"""A vault in a bucket, by the command line: founded, backed up to, lost, uploaded to, restored from."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError

from tests.s3stores import plain_client, write_keys
from tests.scenario.machine import Machine, overwrite, random_volume
from tests.scenario.smbmachine import NearMachine
from tests.servers import BUCKET, S3Server, make_bucket, start_s3, stop_s3

pytestmark = pytest.mark.services

BLOCKS = 120
AGENT_BUCKET = "forebay-agents"
VERIFIED_BUCKET = "forebay-verified"
QUICK = 'retries_max = 0\nconnect_timeout = "2 s"\nreconnect_window = "0 s"\ncompression = "none"'


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what this machine's user has for S3 out of it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    """Give a server of its own, which may be stopped."""
    server = start_s3(tmp_path / "server")
    make_bucket(server)
    yield server
    stop_s3(tmp_path / "server")


def machine_at(root: Path, server: S3Server, *, name: str = "web-01", url: str | None = None) -> Machine:
    root.mkdir(exist_ok=True)
    keys = write_keys(root / "keys", server.access_key, server.secret_key)
    volume = random_volume(root / "data.img", BLOCKS)
    machine = NearMachine(
        root / "m", root, name=name, volumes={"data": volume}, spool=root / "spool",
        urls={"vault": url or f"s3://{BUCKET}/{secrets.token_hex(4)}"},
    )  # fmt: skip
    machine.extra["vault"] = f'endpoint_url = "{server.endpoint}"\ncredentials_file = "{keys}"\n{QUICK}'
    return machine


def change(machine: Machine, seed: int) -> bytes:
    volume = machine.volumes["data"]
    overwrite(volume, 10 * seed, os.urandom(3 * 65536))
    return volume.read_bytes()


def test_a_whole_life_with_a_server_that_stops_and_comes_back(server: S3Server, tmp_path: Path) -> None:
    machine = machine_at(tmp_path / "a", server)
    machine.init()
    assert machine.run("check-config").document["problems"] == []
    contents = {machine.backup()["point"]: machine.volumes["data"].read_bytes()}
    content = change(machine, 1)
    contents[machine.backup()["point"]] = content
    stop_s3(Path(server.data))
    content = change(machine, 2)
    report = machine.backup(expect=3)
    assert (report["route"], report["backlog"]) == ("FALLBACK", 1)
    assert "cannot be reached" in report["fallback"]
    contents[report["point"]] = content
    problems = machine.run("check-config", expect=1).document["problems"]
    assert any("cannot be reached" in problem for problem in problems), problems
    assert machine.run("upload", expect=1).document["left"] == 1
    assert machine.run("status").document["spool"]["points"] == 1
    start_s3(Path(server.data), server.port)
    assert machine.run("upload").document["left"] == 0
    points = {row["id"]: row["where"] for row in machine.points()}
    assert points == {point: ["vault"] for point in contents}
    secret = ("--passphrase-file", str(machine.passphrase_file))
    (system,) = machine.run("status", "--all", *secret).document["systems"]
    assert (system["where"], system["newest_point"], system["spool"]["points"]) == (["vault"], max(contents), 0)
    assert [session["exit_code"] for session in system["sessions"]] == [3, 0, 0]
    machine.restore("latest", "data", tmp_path / "restored")
    assert tmp_path.joinpath("restored").read_bytes() == content


def test_keys_that_may_only_read_found_no_vault_and_leave_nothing(s3_server: S3Server, tmp_path: Path) -> None:
    reader = msgspec.structs.replace(s3_server, access_key=s3_server.ro_access_key, secret_key=s3_server.ro_secret_key)
    machine = machine_at(tmp_path / "a", reader)
    machine.cache = tmp_path / "cache"
    machine.write_config()
    before = sorted(tmp_path.rglob("*"))
    (sentence,) = machine.init(expect=2).stderr.splitlines()
    assert "vault: " in sentence
    assert "give the access key the rights that docs/OPERATIONS.md lists" in sentence
    assert sorted(tmp_path.rglob("*")) == before
    write_keys(tmp_path / "a" / "keys", s3_server.access_key, s3_server.secret_key)
    assert machine.init().document["founded"] is True


def policy_of_operations(bucket: str, *, lock: bool) -> dict[str, Any]:
    """Return the bucket policy that docs/OPERATIONS.md gives an agent, for the user who may only read otherwise."""
    text = (Path(__file__).parents[2] / "docs/OPERATIONS.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(\{\s*\"Version\".*?)```", text, re.DOTALL)
    (more,) = re.findall(
        r"```json\n(\{\"Effect\": \"Allow\", \"Action\": \"s3:PutObjectRetention\".*?)```", text, re.DOTALL
    )

    def filled(part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(part.replace("BUCKET", bucket).replace("PREFIX", "agents"))
        return found

    policy = filled(block)
    policy["Statement"] += [filled(more)] if lock else []
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": "arn:aws:iam::000000000000:user/readonly"}
    return policy


def agent_bucket(server: S3Server, bucket: str = AGENT_BUCKET, *, lock: bool = False) -> S3Server:
    """Make a bucket in which the policy of docs/OPERATIONS.md holds; return the server as an agent sees it."""
    make_bucket(server, bucket, lock=lock)

    async def put_policy() -> None:
        async with plain_client(server) as client:
            await client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy_of_operations(bucket, lock=lock)))

    asyncio.run(put_policy())
    return msgspec.structs.replace(server, access_key=server.ro_access_key, secret_key=server.ro_secret_key)


def test_agents_need_to_put_get_and_list_and_nothing_else(s3_server: S3Server, tmp_path: Path) -> None:
    agent = agent_bucket(s3_server)
    first = machine_at(tmp_path / "a", agent, url=f"s3://{AGENT_BUCKET}/agents/{secrets.token_hex(4)}")
    first.init()
    point = first.backup()["point"]
    assert first.run("check-config").document["problems"] == []
    second = machine_at(tmp_path / "b", agent, name="web-02", url=first.urls["vault"])
    assert second.init().document["founded"] is False
    report = second.backup()
    assert report["volumes"]["data"]["vault_blocks"] == 0, "the same blocks are there already"

    async def delete() -> None:
        async with plain_client(agent) as client:
            key = f"{first.urls['vault'].partition('//')[2].partition('/')[2]}/format"
            with pytest.raises(ClientError, match="AccessDenied"):
                await client.delete_object(Bucket=AGENT_BUCKET, Key=key)

    asyncio.run(delete())
    # A machine with nothing but the passphrase and the keys of the bucket.
    keys = {
        "AWS_ACCESS_KEY_ID": agent.access_key,
        "AWS_SECRET_ACCESS_KEY": agent.secret_key,
        "AWS_ENDPOINT_URL": agent.endpoint,
    }
    to = tmp_path / "restored"
    first.run(
        "restore", point, "--vault", first.urls["vault"], "--system", "web-01", "--volume", "data", "--to", str(to),
        "--passphrase-file", str(first.passphrase_file), env=keys,
    )  # fmt: skip
    assert to.read_bytes() == first.volumes["data"].read_bytes()
    wrong = keys | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    refused = first.run(
        "points", "--vault", first.urls["vault"], "--passphrase-file", str(first.passphrase_file), env=wrong, expect=1
    )
    assert "the secret key is wrong" in refused.stderr + refused.stdout


def test_a_bucket_is_verified_and_mended_without_the_right_to_delete(s3_server: S3Server, tmp_path: Path) -> None:
    agent = agent_bucket(s3_server, VERIFIED_BUCKET)
    machine = machine_at(tmp_path / "a", agent, url=f"s3://{VERIFIED_BUCKET}/agents/{secrets.token_hex(4)}")
    machine.init()
    point = machine.backup()["point"]
    done = machine.run("verify", "--vault", "--read", "100").document
    assert (done["passed"], done["points"], done["read_packs"]) == (True, 1, done["packs"])

    async def lose_a_pack() -> None:
        prefix = machine.urls["vault"].partition("//")[2].partition("/")[2]
        async with plain_client(s3_server) as client:
            found = await client.list_objects_v2(Bucket=VERIFIED_BUCKET, Prefix=f"{prefix}/data/")
            await client.delete_object(Bucket=VERIFIED_BUCKET, Key=found["Contents"][0]["Key"])

    asyncio.run(lose_a_pack())
    done = machine.run("verify", "--vault", expect=1).document
    assert (done["missing_packs"], done["incomplete"]) == (1, 1)
    assert [row["state"] for row in machine.points()] == ["incomplete"]
    # What stands in several places is sent once.
    assert 0 < machine.backup()["volumes"]["data"]["vault_blocks"] <= done["holes"]
    assert machine.run("verify", "--vault").document["mended"] == 1
    assert {row["state"] for row in machine.points()} == {"ok"}
    machine.restore(point, "data", tmp_path / "restored")
    assert tmp_path.joinpath("restored").read_bytes() == machine.volumes["data"].read_bytes()


async def locks_below(server: S3Server, bucket: str, prefix: str) -> dict[str, float]:
    """Return for how many days each object below a prefix is locked."""
    found: dict[str, float] = {}
    async with plain_client(server) as client:
        for row in (await client.list_objects_v2(Bucket=bucket, Prefix=prefix)).get("Contents", ()):
            held = await client.head_object(Bucket=bucket, Key=row["Key"])
            left = held["ObjectLockRetainUntilDate"] - datetime.now(UTC)
            found[row["Key"].removeprefix(f"{prefix}/")] = left / timedelta(days=1)
            with pytest.raises(ClientError, match="AccessDenied"):
                await client.delete_object(Bucket=bucket, Key=row["Key"], VersionId=held["VersionId"])
    return found


def test_with_a_lock_all_of_a_vault_is_locked_and_agents_need_no_right_but_to_lock(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket, prefix = "forebay-locked-agents", f"agents/{secrets.token_hex(4)}"
    agent = agent_bucket(s3_server, bucket, lock=True)
    machine = machine_at(tmp_path / "a", agent, url=f"s3://{bucket}/{prefix}")
    machine.extra["vault"] += '\nlock = "30 d"'
    machine.init()
    assert machine.run("check-config").document["problems"] == []
    assert machine.backup()["problems"] == []
    locks = asyncio.run(locks_below(s3_server, bucket, prefix))
    assert {name.partition("/")[0] for name in locks} == {
        "format",
        "key",
        "cert",
        "data",
        "page",
        "index",
        "root",
        "report",
    }
    for name, days in locks.items():
        assert days == pytest.approx(30.5 if name.startswith("root/") else 60.5, abs=0.51), name


def test_an_offline_domain_makes_its_vault_at_first_contact(s3_server: S3Server, tmp_path: Path) -> None:
    machine = machine_at(tmp_path / "a", s3_server)
    settings = machine.extra["vault"]
    machine.extra["vault"] = settings.replace(s3_server.endpoint, "http://127.0.0.1:9")
    machine.init("--offline")
    machine.backup(expect=3)
    machine.extra["vault"] = settings
    assert machine.run("upload").document["left"] == 0
    assert [row["where"] for row in machine.points()] == [["vault"]]


class Enrolled:
    """A machine that is enrolled in a bucket, for tests that break its settings and put them right again."""

    def __init__(self, root: Path, server: S3Server) -> None:
        self.machine = machine_at(root / "a", server)
        self.machine.init()
        self.server, self.keys = server, root / "a" / "keys"
        self.settings, self.url = self.machine.extra["vault"], self.machine.urls["vault"]
        self.identity = self.machine.state / "identity"

    def whole(self) -> Machine:
        self.machine.extra["vault"], self.machine.urls["vault"] = self.settings, self.url
        write_keys(self.keys, self.server.access_key, self.server.secret_key).chmod(0o600)
        return self.machine

    def broken(self, wrong: str) -> Machine:
        machine, server = self.whole(), self.server
        match wrong:
            case "secret":
                write_keys(self.keys, server.access_key, "averysecretsecret")
            case "key":
                write_keys(self.keys, "nobody", "averysecretsecret")
            case "bucket":
                machine.urls["vault"] = "s3://no-such-bucket/x"
            case "rights":
                write_keys(self.keys, server.ro_access_key, server.ro_secret_key)
            case "file":
                self.keys.unlink()
            case "mode":
                self.keys.chmod(0o604)
            case "profile":
                machine.extra["vault"] = f'profile = "other"\n{self.settings}'
            case "certificate":
                machine.extra["vault"] = self.settings.replace(server.endpoint, server.endpoint_https)
            case "lock":
                machine.extra["vault"] = f'{self.settings}\nlock = "30 d"'
            case "name":
                machine.extra["vault"] = self.settings.replace(server.endpoint, "http://vault.invalid")
        return machine


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Enrolled:
    return Enrolled(tmp_path_factory.mktemp("enrolled"), s3_server)


WRONG = {
    "secret": "the secret key is wrong",
    "key": "the server does not know the access key",
    "bucket": "there is no such bucket",
    "rights": "this is not permitted",
    "file": "cannot be read: No such file or directory",
    "mode": "is open to every user: run chmod o= on it",
    "profile": "has no profile [other]",
    "certificate": "certificate is not trusted",
    "name": "name is not known",
    "lock": "the bucket has no Object Lock: make a bucket with Object Lock enabled",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_by_check_config(enrolled: Enrolled, wrong: str) -> None:
    problems = enrolled.broken(wrong).run("check-config", expect=1).document["problems"]
    assert any(WRONG[wrong] in problem for problem in problems), problems
    assert "averysecretsecret" not in str(problems)


@pytest.mark.parametrize("wrong", ["secret", "rights", "certificate", "lock"])
def test_a_vault_that_refuses_costs_a_session_no_point(enrolled: Enrolled, wrong: str) -> None:
    report = enrolled.broken(wrong).backup(expect=3)
    assert report["route"] == "FALLBACK"
    assert WRONG[wrong] in report["fallback"]
    assert enrolled.whole().run("upload").document["left"] == 0


@pytest.mark.parametrize("wrong", ["secret", "bucket", "name", "lock"])
def test_init_refuses_what_is_wrong_and_changes_nothing(enrolled: Enrolled, wrong: str, tmp_path: Path) -> None:
    machine = enrolled.broken(wrong)
    other = Machine(tmp_path / "m", tmp_path, volumes=machine.volumes, urls=machine.urls, extra=machine.extra)
    refused = other.init("--generate", expect=None)
    assert refused.code in (1, 2)
    assert WRONG[wrong] in refused.stderr + refused.stdout
    assert not other.state.exists()
