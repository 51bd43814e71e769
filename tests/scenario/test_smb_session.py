"""Whole sessions with vault and cache in shares of a real server, by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.samba import Samba, new_folder, start
from tests.scenario.cheap import enrol
from tests.scenario.machine import Machine, overwrite, random_volume
from tests.scenario.smbmachine import share_machine

pytestmark = [pytest.mark.root, pytest.mark.services]
BLOCKS = 200


@pytest.fixture(scope="module")
def server() -> Iterator[Samba]:
    """Return a server of this module's own, which may be stopped."""
    samba = start(new_folder())
    yield samba
    samba.wipe()


@pytest.fixture
def machine(tmp_path: Path, server: Samba) -> Machine:
    volume = random_volume(tmp_path / "data.img", BLOCKS, tail=700)
    machine = share_machine(tmp_path / "m", server, tmp_path.name, volume, spool=True)
    enrol(machine)
    return machine


def restores(machine: Machine, content: bytes, *arguments: str) -> None:
    target = machine.root / "restored.img"
    target.unlink(missing_ok=True)
    machine.restore("latest", "data", target, *arguments)
    assert target.read_bytes() == content


def test_a_machine_backs_up_to_shares_and_restores_from_each(server: Samba, tmp_path: Path) -> None:
    volume = random_volume(tmp_path / "data.img", BLOCKS, tail=700)
    machine = share_machine(tmp_path / "m", server, tmp_path.name, volume, kind=Machine)
    enrol(machine)
    first = machine.backup()
    assert (first["route"], first["problems"]) == ("VAULT", [])
    assert machine.backup()["volumes"]["data"]["changed"] == 0
    overwrite(volume, 3, random_volume(machine.root / "new", 20, 5).read_bytes())
    assert 0 < machine.backup()["volumes"]["data"]["changed"] <= 20
    assert [row["where"] for row in machine.points()] == [["cache", "vault"]] * 3
    checked = machine.run("check-config").document
    assert (checked["problems"], checked["vault"]["url"]) == ([], machine.urls["vault"])
    assert checked["cache"]["path"] == machine.urls["cache"]
    assert machine.run("status").document["vault"] == machine.urls["vault"]
    content = volume.read_bytes()
    restores(machine, content)
    restores(machine, content, "--only-cache")
    # Nothing but objects is left there.
    for folder in (machine.vault, machine.cache):
        assert folder is not None
        assert [path for path in folder.rglob("*") if path.name.startswith("~")] == []
    # On another machine, with the passphrase and the login alone.
    login = {"FOREBAY_VAULT_USER": server.user, "FOREBAY_VAULT_PASSWORD": server.password}
    target = machine.root / "elsewhere.img"
    machine.run(
        "restore", "latest", "--volume", "data", "--system", machine.name, "--to", str(target),
        "--vault", machine.urls["vault"], "--passphrase-file", str(machine.passphrase_file), env=login,
    )  # fmt: skip
    assert target.read_bytes() == content


def test_a_server_that_is_stopped_costs_no_point_and_gets_it_later(machine: Machine, server: Samba) -> None:
    volume = machine.volumes["data"]
    machine.backup()
    server.kill()
    try:
        overwrite(volume, 50, random_volume(machine.root / "new", 20, 6).read_bytes())
        content = volume.read_bytes()
        report = machine.backup(expect=3)
        assert report["route"] == "FALLBACK"
        assert "the server refuses the connection" in report["fallback"]
        assert machine.run("status").document["spool"]["points"] == 1
        checked = machine.run("check-config", expect=1).document
        assert len(checked["problems"]) == 2
        assert all("the server refuses the connection" in problem for problem in checked["problems"])
    finally:
        server.start_again()
    done = machine.run("upload").document
    assert [each["point"] for each in done["uploaded"]] == [report["point"]]
    restores(machine, content)
    assert machine.backup()["volumes"]["data"]["changed"] == 0


def test_a_vault_founded_offline_is_made_by_the_first_session_that_reaches_its_share(
    tmp_path: Path, server: Samba
) -> None:
    volume = random_volume(tmp_path / "data.img", BLOCKS)
    machine = share_machine(tmp_path / "m", server, tmp_path.name, volume, spool=True)
    machine.cache = None
    server.kill()
    try:
        enrol(machine, "--offline")
        first = machine.backup(expect=3)
        assert first["route"] == "FALLBACK"
    finally:
        server.start_again()
    foreign = machine.vault / "holiday.jpg"
    foreign.parent.mkdir()
    foreign.write_text("somebody's")
    assert machine.backup(expect=3)["route"] == "FALLBACK"
    assert [path.name for path in machine.vault.iterdir()] == ["holiday.jpg"]
    foreign.unlink()
    report = machine.backup()
    assert report["uploaded"][0]["point"] == first["point"]
    assert report["backlog"] == 0
    assert not machine.run("status").document["vault_pending"]
    restores(machine, volume.read_bytes())


def test_a_second_machine_joins_and_shares_vault_and_cache(machine: Machine, server: Samba, tmp_path: Path) -> None:
    machine.backup()
    other = share_machine(tmp_path / "other", server, tmp_path.name, machine.volumes["data"], name="web-02")
    enrol(other)
    report = other.backup()["volumes"]["data"]
    assert report["changed"] > 0
    assert (report["vault_blocks"], report["cache_blocks"]) == (0, 0)
    restores(other, other.volumes["data"].read_bytes())


@pytest.mark.parametrize("table", ["vault", "cache"])
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("password", "does not know this user with this password"),
        ("share", "has no such share"),
        ("server", "cannot be resolved"),
        ("rights", "not permitted"),
    ],
)
def test_a_wrong_login_or_place_is_refused_by_init_and_check_config(
    tmp_path: Path, server: Samba, table: str, wrong: str, sentence: str
) -> None:
    machine = share_machine(tmp_path / "m", server, tmp_path.name, random_volume(tmp_path / "data.img", 4))
    url = machine.urls[table]
    if wrong == "password":
        secret = tmp_path / "wrong"
        secret.write_text("not this one")
        secret.chmod(0o600)
        right = f'password_file = "{machine.root / "share-password"}"'
        machine.extra[table] = machine.extra[table].replace(right, f'password_file = "{secret}"')
    else:
        bad = {"share": ("/share/", "/elsewhere/"), "server": ("127.0.0.1", "no.such.host.invalid")}
        machine.urls[table] = url.replace(*bad.get(wrong, ("/share/", "/readonly/")))
    refused = machine.init(expect=None)
    assert refused.code in (1, 2)
    assert sentence in refused.stderr
    assert not machine.state.exists()
    problems = machine.run("check-config", expect=1).document["problems"]
    if wrong != "rights":  # there is no store whose rights could be asked for
        assert any(problem.startswith(f"{table}: ") and sentence in problem for problem in problems)


def test_a_password_that_was_changed_leads_to_the_spool_until_it_is_told(machine: Machine, server: Samba) -> None:
    machine.backup()
    secret = machine.root / "share-password"
    right = secret.read_text()
    secret.write_text("an old one")
    report = machine.backup(expect=3)
    assert report["route"] == "FALLBACK"
    assert "correct user and password" in report["fallback"]
    assert right not in str(report)
    secret.write_text(right)
    assert machine.run("upload").document["left"] == 0


def test_a_cache_whose_password_was_changed_is_done_without_and_healed_later(machine: Machine, server: Samba) -> None:
    machine.backup()
    right = (machine.root / "share-password").read_text()
    secret = machine.root / "cache-password"
    machine.extra["cache"] = machine.extra["cache"].replace("share-password", "cache-password")
    secret.touch(0o600)
    secret.write_text("an old one")
    overwrite(machine.volumes["data"], 5, b"w" * 65536)
    report = machine.backup()
    assert report["cache"] in ("away", "given up")
    assert any("correct user and password" in problem for problem in report["problems"])
    assert right not in str(report)
    secret.write_text(right)
    report = machine.backup()
    assert (report["problems"], report["cache"]) == ([], "ok")
    restores(machine, machine.volumes["data"].read_bytes(), "--only-cache")
