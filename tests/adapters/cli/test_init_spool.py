"""`init` and the spool: adopted, moved, replaced; and a domain that is founded before there is a vault."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from adapters.cli import frame
from adapters.state import identity as files
from engine.vault.formatobject import new_store, parse_format
from tests.adapters.cli.enrolled import Machine, document, said, taken_up, tree
from tests.engine.vault.fakes_vault import OTHER_PASSPHRASE

pytestmark = pytest.mark.usefixtures("nothing_from_outside")


@pytest.fixture(scope="module")
def offline_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = tmp_path_factory.mktemp("offline")
    assert with_spool(Machine(shared)).init("--offline") == 0
    return shared


@pytest.fixture
def offline(offline_once: Path, tmp_path: Path) -> Machine:
    return with_spool(taken_up(offline_once, tmp_path))


def with_spool(machine: Machine, path: str = "state/spool") -> Machine:
    machine.configure()
    with machine.config.open("a") as file:
        file.write(f"[spool]\npath = '{path}'\n")
    return machine


def spool_of(machine: Machine) -> Path:
    return machine.state / "spool"


def test_a_spool_added_later_is_adopted_by_a_plain_init(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with_spool(machine)
    assert machine.init("--json", passphrase=False) == 0
    found, identity, spool = document(capsys), machine.identity(), spool_of(machine)
    assert found["already_enrolled"]
    assert found["spool"] == {"path": str(spool), "store": (identity.spool or b"").hex(), "adopted": True}
    assert parse_format((spool / "format").read_bytes()).store == identity.spool
    # With the passphrase alone it opens: slot and certificate lie in it.
    assert (spool / identity.certificate_name).read_bytes() == identity.certificate
    assert [(name, (spool / name).read_bytes()) for name, _ in identity.slots] == identity.slots
    if os.name == "posix":
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    before = tree(machine.shared)
    assert machine.init(passphrase=False) == 0
    assert f"The spool in {spool} is the one it has adopted." in capsys.readouterr().out
    assert tree(machine.shared) == before


def test_a_first_init_makes_and_adopts_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = with_spool(Machine(tmp_path))
    assert one.init() == 0
    out = capsys.readouterr().out
    assert f"The spool in {spool_of(one)} is adopted." in out
    identity = one.identity()
    assert None not in (identity.cache, identity.spool)
    # The identity lost, everything else there: the spool is taken up again, with whatever it holds.
    root = spool_of(one) / f"root/{identity.system.hex()}/{1:016x}-{'ab' * 8}"
    root.parent.mkdir(parents=True)
    root.write_bytes(b"a root")
    one.identity_file.unlink()
    assert one.init("--replace") == 0
    assert one.identity().spool == identity.spool
    assert (spool_of(one) / one.identity().certificate_name).is_file()
    assert root.is_file()


def test_the_folder_of_a_spool_may_be_moved(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with_spool(machine).init(passphrase=False)
    before = machine.identity()
    spool_of(machine).rename(machine.shared / "moved")
    # As long as the configuration does not know, nothing new is made in the old place.
    assert machine.init(passphrase=False) == frame.SOMETHING_MISSING
    assert "if its folder was moved, correct [spool] path" in capsys.readouterr().out
    assert not spool_of(machine).exists()
    with_spool(machine, str(machine.shared / "moved"))
    assert machine.init(passphrase=False) == 0
    assert machine.identity() == before


def test_another_spool_in_its_place_is_only_adopted_when_asked_to(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with_spool(machine).init(passphrase=False)
    old = machine.identity()
    with_spool(machine, str(machine.shared / "other"))
    assert machine.init(passphrase=False) == frame.SOMETHING_MISSING
    assert not (machine.shared / "other").exists()
    (machine.shared / "other").mkdir()
    (machine.shared / "other/format").write_bytes(new_store("spool").encode())
    capsys.readouterr()
    assert machine.init(passphrase=False) == frame.SOMETHING_MISSING
    assert "is not the one this system adopted" in capsys.readouterr().out
    assert machine.identity() == old
    # Asked to, it needs no vault, and says what it forgets.
    shutil.rmtree(machine.vault)
    assert machine.init("--spool", passphrase=False) == 0
    out = capsys.readouterr().out
    assert f"The spool it had before ({(old.spool or b'').hex()}) is forgotten" in out
    assert "'forebay points --spool PATH'" in out
    marker = parse_format((machine.shared / "other/format").read_bytes())
    assert machine.identity().spool == marker.store != old.spool
    assert machine.identity().cache == old.cache


def test_a_spool_of_another_system_is_not_taken(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    with_spool(machine).init(passphrase=False)
    root = spool_of(machine) / f"root/{'ab' * 16}/{1:016x}-{'cd' * 8}"
    root.parent.mkdir(parents=True)
    root.write_bytes(b"a root")
    capsys.readouterr()
    assert machine.init("--spool", passphrase=False) == frame.USAGE
    assert f"another system ({'ab' * 16})" in said(capsys)


def test_without_a_table_or_an_enrolment_no_spool_is_adopted(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.init("--spool", passphrase=False) == frame.USAGE
    assert "has no [spool] table: add one, then run 'forebay init --spool' again" in said(capsys)
    other = with_spool(Machine(tmp_path, "web-02"))
    assert other.init("--spool", passphrase=False) == frame.USAGE
    assert "not enrolled yet: run 'forebay init' without --spool" in said(capsys)
    assert not spool_of(other).exists()


def test_a_domain_is_founded_without_a_vault(offline: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    identity = offline.identity()
    assert identity.vault_pending
    assert not offline.vault.exists()
    assert None not in (identity.cache, identity.spool)
    for store in (offline.cache, spool_of(offline)):
        assert (store / identity.certificate_name).read_bytes() == identity.certificate
        assert [(name, (store / name).read_bytes()) for name, _ in identity.slots] == identity.slots
    before = tree(offline.shared)
    assert offline.init("--offline", "--json", passphrase=False) == 0
    found = document(capsys)
    assert found["already_enrolled"]
    assert found["vault"] == {"url": offline.vault.as_uri(), "store": identity.vault.hex(), "pending": True}
    assert tree(offline.shared) == before


def test_the_vault_is_made_by_the_first_init_that_can(offline: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = offline.identity()
    offline.configure(vault=offline.shared / "no" / "vault")
    assert offline.init(passphrase=False) == frame.USAGE
    assert "mount its disk, or make it" in said(capsys)
    assert offline.identity() == before
    with_spool(offline)
    assert offline.init("--json", passphrase=False) == 0
    found, after = document(capsys), offline.identity()
    assert not found["vault"]["pending"]
    assert (after.vault_pending, after.vault, after.spool) == (False, before.vault, before.spool)
    assert parse_format((offline.vault / "format").read_bytes()).store == before.vault
    assert (offline.vault / after.certificate_name).read_bytes() == after.certificate
    assert offline.init(passphrase=False) == 0
    assert "is already enrolled in" in capsys.readouterr().out
    other = Machine(offline.shared, "web-02")
    assert other.init() == 0
    assert other.identity().domain == before.domain


def test_first_contact_that_was_cut_off_is_finished(offline: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    before = offline.identity_file.read_bytes()
    assert offline.init(passphrase=False) == 0
    whole = tree(offline.vault)
    # The machine stopped before the identity was saved, and before the slots were put.
    offline.identity_file.write_bytes(before)
    shutil.rmtree(offline.vault / "key")
    capsys.readouterr()
    assert offline.init(passphrase=False) == 0
    assert "Made the vault in" in capsys.readouterr().out
    assert tree(offline.vault) == whole
    assert not offline.identity().vault_pending


def test_a_vault_with_a_domain_is_not_joined_by_one_founded_offline(
    machine: Machine, offline_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    alone = with_spool(taken_up(offline_once, folder))
    shutil.copytree(machine.vault, alone.vault)
    before = tree(folder)
    assert alone.init(passphrase=False) == frame.USAGE
    assert "has founded a domain of its own offline" in said(capsys)
    assert tree(folder) == before


def test_offline_is_refused_where_it_makes_no_sense(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.init("--offline") == frame.USAGE
    assert "is enrolled in" in said(capsys)
    other = Machine(tmp_path, "web-02")
    before = tree(tmp_path)
    assert other.init("--offline") == frame.USAGE
    assert "init --offline needs a [spool] table" in said(capsys)
    with_spool(other)
    assert other.init("--offline") == frame.USAGE
    assert "is there: leave --offline out" in said(capsys)
    for more in (("--offline", "--replace"), ("--spool", "--offline"), ("--cache", "--replace")):
        assert other.init(*more) == frame.USAGE
    assert {name: content for name, content in tree(tmp_path).items() if "toml" not in name} == {
        name: content for name, content in before.items() if "toml" not in name
    }


def test_an_offline_founding_that_was_cut_off_keeps_the_passphrase_it_began_with(
    offline: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = offline.identity()
    # The machine stopped after the identity was saved: cache and spool are made, and hold nothing yet.

    files.save(offline.identity_file, msgspec.structs.replace(whole, cache=None, spool=None))
    for store in (offline.cache, spool_of(offline)):
        shutil.rmtree(store / "key")
        shutil.rmtree(store / "cert")
    offline.give(OTHER_PASSPHRASE)
    assert offline.init("--offline") == 0
    assert offline.identity() == whole
    assert (spool_of(offline) / whole.certificate_name).is_file()
