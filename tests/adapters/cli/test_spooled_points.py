"""Points that wait in the spool: listed, restored, deleted by command."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from adapters.state import identity as files
from engine.block import BLOCK_BYTES
from engine.vault.formatobject import new_store
from tests.adapters.cli.recovery_site import Site, build, run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build(tmp_path_factory.mktemp("spooled"), spooled=2)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "restored.img"


def data_to(to: Path) -> list[str]:
    return ["--volume", "data", "--to", str(to)]


def rows(document: dict[str, list[dict[str, object]]]) -> list[tuple[object, object, object]]:
    return [(one["id"], one["state"], one["where"]) for one in document["points"]]


def test_points_tells_what_is_not_uploaded_yet(site: Site, capsys: Capture) -> None:
    ran = run(capsys, "--config", site.config, "points", "--json")
    first, second, third = map(str, site.points)
    assert ran.code == 0
    assert sorted(rows(ran.document)) == [
        (first, "ok", ["cache", "vault"]),
        (second, "spooled", ["cache", "spool"]),
        (third, "spooled", ["cache", "spool"]),
    ]
    assert (ran.document["lost"], ran.document["problems"]) == ([], [])
    ran = run(capsys, "--config", site.config, "points")
    assert f"{third}" in ran.out
    assert "cache+spool  spooled" in ran.out


def test_with_the_vault_away_they_are_listed_and_restored(site: Site, to: Path, capsys: Capture) -> None:
    shutil.rmtree(site.vault)
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.code == 4
    assert len(ran.document["points"]) == 3
    assert ran.document["lost"] == []
    shutil.rmtree(site.cache / "data")  # the cache knows what there is, and has no block of it
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--json")
    # What the first point brought lies in the vault alone, and is named.
    assert (ran.code, ran.document["point"]) == (1, str(site.points[2]))
    assert ran.document["from_spool"] == 2 * BLOCK_BYTES
    assert ran.document["holes"] == [[0, 1], [3, 3]]
    assert "blocks of volume 'data' that could not be given" in ran.out


def test_cache_and_spool_give_everything_without_the_vault(site: Site, to: Path, capsys: Capture) -> None:
    shutil.rmtree(site.vault)
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--only-cache")
    assert (ran.code, to.read_bytes()) == (0, site.contents[2])
    for name in site.pack(site.cache):
        name.unlink()
    # Now nearest is the spool, for what it has.
    to.unlink()
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert ran.code == 1
    assert "from the spool 128 KiB" in ran.out


def test_the_spool_alone_is_enough_to_find_its_points_on_another_machine(site: Site, to: Path, capsys: Capture) -> None:
    moved = site.folder / "disk" / "spool"
    moved.parent.mkdir()
    site.spool.rename(moved)
    with_passphrase = ["--spool", str(moved), *site.secret]
    ran = run(capsys, "points", *with_passphrase, "--json")
    assert ran.code == 0
    ours = [row for row in rows(ran.document) if row[2]]
    assert sorted(ours) == [(str(point), "spooled", ["spool"]) for point in site.points[1:]]
    restored = [*data_to(to), "--system", "web-01"]
    ran = run(capsys, "restore", "latest", "--vault", site.vault.as_uri(), *with_passphrase, *restored, "--json")
    assert (ran.code, to.read_bytes()) == (0, site.contents[2])
    assert ran.document["from_spool"] == 2 * BLOCK_BYTES
    to.unlink()
    ran = run(capsys, "restore", "latest", "--cache", site.cache, *with_passphrase, *restored)
    assert (ran.code, to.read_bytes()) == (0, site.contents[2])
    ran = run(capsys, "--config", site.config, "points", "--spool", moved)
    assert (ran.code, "give either --config, or --vault, --spool and --cache" in ran.err) == (2, True)


def test_nothing_is_restored_into_the_spool(site: Site, capsys: Capture) -> None:
    to = site.spool / "x.img"
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert (ran.code, f"lies in {site.spool}, where Forebay keeps its own files" in ran.err) == (2, True)


def test_another_spool_in_its_place_is_not_read(site: Site, capsys: Capture) -> None:
    (site.spool / "format").chmod(0o600)
    (site.spool / "format").write_bytes(new_store("spool").encode())
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.code == 4
    said = "\n".join(ran.document["problems"])
    assert "it is not the spool this system belongs to" in said
    assert "run 'forebay init --spool' to use this one" in said
    assert f"restore point {site.points[2]} is not in the vault: it may lie in the spool" in said
    assert ran.document["lost"] == []


def test_a_spool_that_was_never_adopted_is_told_of(site: Site, capsys: Capture) -> None:
    path = site.folder / "state/identity"
    files.save(path, msgspec.structs.replace(files.load(path), spool=None))
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert f"the spool in {site.spool} is not adopted yet: run 'forebay init'" in ran.document["problems"]
