"""What rotted in the vault under the name of something that waits in the spool: others stand in for it."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StoreUnavailable
from engine.names import PointId
from tests.fakes import FaultPlan
from tests.s3stores import plain_client, write_keys
from tests.samba import free_port
from tests.scenario.crash_backlog import Backlog
from tests.scenario.crash_machine import check_whole, objects
from tests.scenario.inprocess import backup, by_plan, upload
from tests.scenario.machine import BLOCK, overwrite, random_volume
from tests.scenario.smbmachine import NearMachine
from tests.scenario.test_fallback import Spooled
from tests.servers import BUCKET, S3Server

Rot = Callable[[bytes], bytes]


def a_bit(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def everything(data: bytes) -> bytes:
    return bytes(len(data))


def rot(backlog: Backlog, names: set[str], how: Rot) -> dict[str, bytes]:
    """Put what rotted under the names of objects of the spool into the vault; return what lies there."""
    vault, rotten = backlog.machine.vault, {name: how((backlog.spool / name).read_bytes()) for name in names}
    for name, data in rotten.items():
        (vault / name).parent.mkdir(parents=True, exist_ok=True)
        (vault / name).write_bytes(data)
    return rotten


def in_spool(backlog: Backlog, kind: str, point: str | None = None) -> set[str]:
    names = {name for name in objects(backlog.spool) if name.startswith(f"{kind}/")}
    return names & backlog.packs[point] if point is not None else names


def stands(backlog: Backlog, rotten: dict[str, bytes]) -> None:
    """Check that what rotted still lies there, that all else is whole, and that every point comes back all the same."""
    machine = backlog.machine
    assert {name: (machine.vault / name).read_bytes() for name in rotten} == rotten
    check_whole(machine.vault, {name: data for name, data in objects(machine.vault).items() if name not in rotten})
    assert backlog.in_spool() == []
    with backlog.without_cache():
        backlog.restore_all()
    backlog.restore_some(1)


def elsewhere(backlog: Backlog, point: str) -> None:
    """Restore a point on another machine: from the vault and the passphrase alone."""
    machine = backlog.machine
    for name, content in backlog.contents[point].items():
        target = machine.root / "elsewhere"
        target.unlink(missing_ok=True)
        vault = ("--vault", f"file://{machine.vault}", "--system", machine.name)
        assert machine.restore(point, name, target, *vault).document["holes"] == []
        assert target.read_bytes() == content


def test_packs_that_rotted_under_the_names_of_some_that_wait(two: Backlog, fast_path: Path) -> None:
    backlog = two.copy_to(fast_path / "work")
    machine = backlog.machine
    first, second = sorted(backlog.spooled)
    rotten = rot(backlog, in_spool(backlog, "data", first), a_bit)
    rotten |= rot(backlog, in_spool(backlog, "page", first), everything)
    done = machine.run("upload")
    assert [each["point"] for each in done.document["uploaded"]] == [first, second]
    assert not any(each["holes"] for each in done.document["uploaded"])
    for name in rotten:
        (problem,) = (problem for problem in done.document["problems"] if name in problem)
        assert "what belongs there was put as" in problem
        assert done.stderr.count(f'"pack": "{name}"') + done.stderr.count(f"pack={name}") == 1, done.stderr
    assert len(done.document["problems"]) == len(rotten)
    stands(backlog, rotten)
    elsewhere(backlog, first)
    # The next session relies on nothing that rotted, and sends nothing for it.
    for name, path in machine.volumes.items():
        path.write_bytes(backlog.contents[second][name])
    report = machine.backup()
    assert report["problems"] == []
    assert [volume["vault_blocks"] for volume in report["volumes"].values()] == [0, 0]
    backlog.keep(report["point"])
    assert machine.run("upload").document["problems"] == []
    with backlog.without_cache():
        checked = machine.run("verify", "--vault", "--read", "100").document
        assert (checked["damaged_packs"], checked["missing_packs"], checked["incomplete"]) == (0, 0, 0)
        for name in rotten:
            (machine.vault / name).unlink()  # somebody took it away to look at it
        assert machine.run("verify", "--vault").document["missing_packs"] == 0
    stands(backlog, {})
    backlog.goes_on()


@pytest.mark.parametrize("left", ["in the vault", "in the cache", "nowhere"])
def test_a_pack_that_rotted_in_the_spool_counts_in_the_vault_once_it_was_read(
    two: Backlog, fast_path: Path, left: str
) -> None:
    """An upload was cut off, and nobody knows any more what it had got acknowledged."""
    backlog = two.copy_to(fast_path / "work")
    machine = backlog.machine
    assert machine.cache is not None
    first, _ = sorted(backlog.spooled)
    names = in_spool(backlog, "data", first)
    rotten = rot(backlog, names, a_bit if left != "in the vault" else bytes)
    for name in names:
        if left == "in the cache":
            (machine.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(backlog.spool / name, machine.cache / name)
        (backlog.spool / name).write_bytes(everything((backlog.spool / name).read_bytes()))
    if left != "in the cache":
        machine.extra["cache"] = "enabled = false"
    done = machine.run("upload", expect=1 if left == "nowhere" else 0)
    holes = {each["point"]: each["holes"] for each in done.document["uploaded"]}
    assert bool(holes[first]) == (left == "nowhere")
    assert sum("in the vault is not what was put there" in problem for problem in done.document["problems"]) == (
        len(names) if left == "in the cache" else 0
    )
    machine.extra["cache"] = ""
    if left != "nowhere":
        stands(backlog, rotten if left == "in the cache" else {})


def test_pages_that_rotted_come_into_the_cache_from_what_stands_in_for_them(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path)
    machine = spooled.machine
    machine.extra["cache"] = "enabled = false"
    spooled.away()
    assert backup(machine).exit_code == 3
    spooled.back()
    rotten = {path.relative_to(spooled.spool) for path in (spooled.spool / "page").rglob("*-*")}
    for name in rotten:
        (machine.vault / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.vault / name).write_bytes(everything((spooled.spool / name).read_bytes()))
    assert upload(machine).left == 0
    machine.extra["cache"] = ""
    spooled.change(1)
    assert backup(machine).exit_code == 0
    assert machine.cache is not None
    pages = [
        {path.relative_to(store) for path in (store / "page").rglob("*-*")} for store in (machine.vault, machine.cache)
    ]
    assert pages[0] - rotten == pages[1]


def roots(backlog: Backlog) -> set[str]:
    return {name for name in objects(backlog.machine.vault) if name.startswith("root/")}


def test_a_root_that_rotted_under_the_name_of_a_point_that_waits(two: Backlog, fast_path: Path) -> None:
    """It is the same point under another name: for restores, for the next session, and for whoever looks for losses."""
    backlog = two.copy_to(fast_path / "work")
    machine = backlog.machine
    first, second = sorted(backlog.spooled)
    rotten = rot(backlog, in_spool(backlog, "root"), a_bit)
    before = roots(backlog)
    done = machine.run("upload")
    names = {each["point"]: each["stands_as"] for each in done.document["uploaded"]}
    assert [*names] == [first, second]
    for point, name in names.items():
        assert name.split("-")[0] == point.split("-")[0]
        assert sum(f"the restore point was put as {name}" in problem for problem in done.document["problems"]) == 1
    stands(backlog, rotten)  # also by the names they had, from vault and spool as they are
    elsewhere(backlog, first)
    assert len(roots(backlog)) == len(before) + 2
    shown = machine.run("points", "--superseded", expect=None).document
    states = {row["id"]: row["state"] for row in shown["points"]}
    assert [states[name] for name in names.values()] == ["ok", "ok"]
    assert {states[point] for point in names} <= {"superseded", "damaged"}
    assert not shown["lost"]
    # The next session goes on from there.
    for name, path in machine.volumes.items():
        path.write_bytes(backlog.contents[second][name])
    report = machine.backup()
    assert report["problems"] == []
    assert [volume["candidates"] >= volume["changed"] == 0 for volume in report["volumes"].values()] == [True, True]
    backlog.keep(report["point"])
    for name in rotten:
        (machine.vault / name).unlink()  # somebody took it away to look at it
    assert not machine.run("points").document["lost"]
    stands(backlog, {})
    elsewhere(backlog, second)
    backlog.goes_on()


@pytest.mark.parametrize("also", ["nothing", "rotten", "cut"])
def test_one_root_stands_for_another_however_often_an_upload_is_cut_off(
    two: Backlog, fast_path: Path, also: str
) -> None:
    backlog = two.copy_to(fast_path / "work")
    machine = backlog.machine
    machine.extra["cache"] = "enabled = false"
    first = min(backlog.spooled)
    (name,) = (name for name in in_spool(backlog, "root") if name.endswith(first))
    rotten = rot(backlog, {name}, everything)
    parsed = PointId.parse(first)
    assert parsed is not None
    free = [machine.vault / each.root(bytes.fromhex(name.split("/")[1])) for each in parsed.stand_ins()]
    with pytest.raises(StoreUnavailable):
        upload(machine, around=by_plan(FaultPlan().lose_acknowledgement("put", prefix="root/")))
    put = free[0].read_bytes()
    with pytest.raises(StoreUnavailable):
        upload(machine, around=by_plan(FaultPlan().fail("put", prefix="root/")))
    if also != "nothing":
        free[0].write_bytes(a_bit(put) if also == "rotten" else put[:100])
    assert len(upload(machine).uploaded) == 2
    assert [path for path in free if path.exists()] == free[: 2 if also == "rotten" else 1]
    assert (free[0].read_bytes() == put) == (also == "nothing")
    assert (machine.vault / name).read_bytes() == rotten[name]
    backlog.restore(first)
    if also == "nothing":
        free[0].write_bytes(put[:100])  # what stands for it is lost as well
        machine.restore(first, "data", machine.root / "out", expect=1)


def test_a_pack_that_only_deltas_name_was_not_acknowledged(tmp_path: Path) -> None:
    """It rotted in the spool; what lies in the vault under its name counts once it was read, index or not."""
    spooled = Spooled(tmp_path, cache=False)
    machine = spooled.machine
    backup(machine)
    spooled.away()
    overwrite(spooled.volume, 10, random.Random(7).randbytes(8 * BLOCK))
    assert backup(machine).exit_code == 3
    (pack,) = (path.relative_to(spooled.spool) for path in (spooled.spool / "data").rglob("*-*"))
    overwrite(spooled.volume, 12, b"changed")
    assert backup(machine).exit_code == 3
    spooled.back()
    good = (spooled.spool / pack).read_bytes()
    (spooled.spool / pack).write_bytes(everything(good))
    with pytest.raises(StoreUnavailable):
        upload(machine, around=by_plan(FaultPlan().fail("put", 2, prefix="root/")))
    (machine.vault / pack).write_bytes(a_bit(good))
    assert [bool(each.holes) for each in upload(machine).uploaded] == [True]


@pytest.mark.services
def test_a_pack_that_rotted_in_a_bucket(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is overwritten, and the server says what it holds."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    prefix = secrets.token_hex(4)
    keys = write_keys(tmp_path / "keys", s3_server.access_key, s3_server.secret_key)
    machine = NearMachine(
        tmp_path / "m", tmp_path, volumes={"data": random_volume(tmp_path / "data.img", 40)},
        spool=tmp_path / "spool", urls={"vault": f"s3://{BUCKET}/{prefix}"},
    )  # fmt: skip
    reached = f'credentials_file = "{keys}"\nretries_max = 0\nreconnect_window = "0 s"\n'
    machine.extra["vault"] = f'{reached}endpoint_url = "{s3_server.endpoint}"'
    machine.init()
    machine.extra["vault"] = f'{reached}endpoint_url = "http://127.0.0.1:{free_port()}"'
    point = machine.backup(expect=3)["point"]
    machine.extra["vault"] = f'{reached}endpoint_url = "{s3_server.endpoint}"'
    rotten = {
        path.relative_to(tmp_path / "spool").as_posix(): a_bit(path.read_bytes())
        for kind in ("data", "page")
        for path in (tmp_path / "spool" / kind).rglob("*-*")
    }
    assert len(rotten) >= 2

    async def put() -> None:
        async with plain_client(s3_server) as client:
            for name, data in rotten.items():
                await client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=data)

    async def held(name: str) -> bytes:
        async with plain_client(s3_server) as client:
            answer = await client.get_object(Bucket=BUCKET, Key=f"{prefix}/{name}")
            return bytes(await answer["Body"].read())

    asyncio.run(put())
    done = machine.run("upload").document
    assert [(each["point"], each["holes"]) for each in done["uploaded"]] == [(point, {})]
    assert sorted(name for name in rotten for problem in done["problems"] if name in problem) == sorted(rotten)
    assert {name: asyncio.run(held(name)) for name in rotten} == rotten
    machine.restore(point, "data", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == machine.volumes["data"].read_bytes()
