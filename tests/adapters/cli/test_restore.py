from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.block import BLOCK_BYTES
from tests.adapters.cli.recovery_site import Site, newer, run


@pytest.fixture
def to(site: Site) -> Path:
    return site.folder / "out.img"


def data_to(to: Path) -> list[str]:
    return ["--volume", "data", "--to", str(to)]


def test_latest_comes_back_from_the_cache_and_says_so(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert to.read_bytes() == site.contents[2]
    document = ran.document
    assert document.pop("seconds") >= 0
    assert document == {
        "point": str(site.points[2]),
        "system": "web-01",
        "volume": "data",
        "bytes": len(site.contents[2]),
        "blocks": 6,
        "resumed": 0,
        "from_cache": len(site.contents[2]),
        "from_vault": 0,
        "from_spool": 0,
        "holes": [],
        "hole_blocks": 0,
        "problems": [],
        "exit_code": 0,
    }


def test_people_read_how_much_came_from_where(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert f"restore point {site.points[2]}, is in {to}" in ran.out
    assert "from the cache 320 KiB, from the vault 0 B" in ran.out


@pytest.mark.parametrize("place", ["vault", "cache", "both"])
def test_every_point_comes_back_on_a_machine_that_knows_only_the_passphrase(
    site: Site, to: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"vault": ["--vault", site.vault.as_uri()], "cache": ["--cache", str(site.cache)]}
    named["both"] = named["vault"] + named["cache"]
    shutil.rmtree(site.folder / "state")
    for point, content in zip(site.points, site.contents, strict=True):
        ran = run(
            capsys, "restore", str(point), "--system", "web-01", *data_to(to), "--overwrite", *named[place],
            *site.secret,
        )  # fmt: skip
        assert ran.code == 0
        assert to.read_bytes() == content


def test_latest_is_the_newest_that_has_the_volume(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(
        capsys, "--config", site.config, "restore", "latest", "--volume", "home", "--to", to, *site.secret, "--json"
    )
    assert ran.document["point"] == str(site.points[0])
    assert to.read_bytes() == b"home"


def test_another_system_is_restored_by_name(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(
        capsys, "--config", site.config, "restore", "latest", "--volume", "disk", "--to", to, "--system", "db-02",
        *site.secret, "--json",
    )  # fmt: skip
    assert (ran.code, ran.document["system"]) == (0, "db-02")
    assert to.stat().st_size == 1000


def test_the_cache_alone_restores_with_the_vault_gone(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(site.vault)
    ran = run(
        capsys, "--config", site.config, "restore", "latest", *data_to(to), "--only-cache", *site.secret, "--json"
    )
    assert (ran.code, ran.document["problems"]) == (0, [])
    assert to.read_bytes() == site.contents[2]


def test_only_cache_reads_nothing_of_the_vault(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for pack in site.pack(site.cache):
        pack.unlink()
    ran = run(
        capsys, "--config", site.config, "restore", "latest", *data_to(to), "--only-cache", *site.secret, "--json"
    )
    assert ran.code == 1
    assert (ran.document["holes"], ran.document["from_vault"]) == ([[0, 6]], 0)
    assert to.read_bytes() == bytes(len(site.contents[2]))
    ran = run(capsys, "restore", "latest", *data_to(to), "--only-cache", *site.detached)
    assert (ran.code, "--only-cache needs a cache" in ran.err) == (2, True)


def test_a_damaged_cache_is_made_good_from_the_vault_and_reported(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.world.cache is not None
    pack, offset, _ = site.world.cache.places[site.system.maps["data"][2][:16]]
    site.damage(site.cache / str(pack), offset + 5000)
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--json")
    assert ran.code == 0
    assert to.read_bytes() == site.contents[2]
    assert f"cache: object {pack} is damaged" in ran.document["problems"][0]
    assert ran.document["from_vault"] == BLOCK_BYTES


def test_holes_are_named_by_block_number_and_end_with_one(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = str(site.world.vault.places[site.system.maps["data"][2][:16]][0])
    (site.vault / lost).unlink()
    ran = run(capsys, "restore", "latest", *data_to(to), "--system", "web-01", *site.detached)
    assert ran.code == 1
    assert "NOT RESTORED: 1 block of 64 KiB: 2" in ran.out
    assert lost in ran.out
    expected = bytearray(site.contents[2])
    expected[2 * BLOCK_BYTES : 3 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert to.read_bytes() == expected


def test_an_existing_file_stays_as_it_is_without_overwrite(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to.write_bytes(b"mine")
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert ran.code == 1
    assert "exists: choose another path, or give --overwrite" in ran.err
    assert to.read_bytes() == b"mine"
    assert (
        run(capsys, "--config", site.config, "restore", "latest", *data_to(to), "--overwrite", *site.secret).code == 0
    )
    assert to.read_bytes() == site.contents[2]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ffff", "--volume", "data"], 2, "has no restore point 'ffff'"),
        (["0000", "--volume", "data"], 2, "means 3 restore points"),
        (["xy", "--volume", "data"], 2, "'xy' is no restore point: give 'latest'"),
        (["latest", "--volume", "date"], 2, "has a volume 'date'; they have: data, home"),
        (["latest", "--volume", "data", "--system", "nas"], 2, "there is no system 'nas'; known are: db-02, web-01"),
        (["latest"], 2, "Missing option '--volume'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    site: Site, to: Path, arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run(capsys, "--config", site.config, "restore", *arguments, "--to", to, *site.secret)
    assert ran.code == code
    assert sentence in ran.err
    assert ran.out == ""
    assert not to.exists()


def test_without_system_a_vault_of_several_asks_which(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "restore", "latest", *data_to(to), *site.detached)
    assert ran.code == 2
    assert "say which system is meant with --system NAME; known are: db-02, web-01" in ran.err


def test_a_wrong_passphrase_is_one_sentence(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.passphrase.write_text("not this one")
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert (ran.code, ran.out) == (2, "")
    assert "the passphrase is wrong" in ran.err
    assert not to.exists()


def test_a_newer_format_is_refused_and_the_cache_used(site: Site, to: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site.vault / "format").write_bytes(newer("vault", site.world))
    ran = run(capsys, "restore", "latest", *data_to(to), "--system", "web-01", *site.detached)
    assert ran.code == 1
    assert "install a newer forebay" in ran.err
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--json")
    assert ran.code == 0
    assert "install a newer forebay" in ran.document["problems"][0]


def test_a_damaged_latest_is_named_and_nothing_is_written(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (site.vault, site.cache):
        site.damage(site.root(place, site.points[2]))
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert ran.code == 1
    assert site.points[2].root(site.system.id) in ran.err
    assert not to.exists()
    older = [str(site.points[1]), *data_to(to)]
    assert run(capsys, "--config", site.config, "restore", *older, *site.secret).code == 0
    assert to.read_bytes() == site.contents[1]


def test_a_lost_identity_does_not_keep_one_from_restoring(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(site.folder / "state")
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert ran.code == 0
    assert to.read_bytes() == site.contents[2]


def test_a_folder_that_does_not_exist_is_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(
        capsys, "--config", site.config, "restore", "latest", *data_to(site.folder / "no" / "out.img"), *site.secret
    )
    assert ran.code == 1
    assert "does not exist" in ran.err


def test_the_passphrase_may_come_from_the_environment(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_PASSPHRASE", site.passphrase.read_text())
    assert run(capsys, "--config", site.config, "restore", "latest", *data_to(to)).code == 0
    assert to.read_bytes() == site.contents[2]


def test_no_temporary_folder_stays_behind(
    site: Site, to: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = site.folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert list(scratch.iterdir()) == []
