"""Points that wait in the spool: listed, restored, deleted by command."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import msgspec
import pytest

from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.block import BLOCK_BYTES
from engine.names import PointId
from engine.state import Intent, Newest
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


def newest_of(site: Site) -> tuple[Newest | None, bytes]:
    with StateDirectory.open(site.folder / "state", lock=False) as state:
        return state.newest(), state.incarnation


def names(site: Site, place: Path, kind: str) -> set[str]:
    folder = place / kind / site.system.id.hex()
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_the_newest_point_is_deleted_and_local_state_with_it(site: Site, to: Path, capsys: Capture) -> None:
    second, third = site.points[1:]
    before, incarnation = newest_of(site)
    assert before is not None
    packs = names(site, site.spool, "data")
    ran = run(capsys, "--config", site.config, "points", "--delete", str(third), "--yes", "--json")
    assert (ran.code, ran.err) == (0, "")
    document = ran.document
    assert (document["deleted"], document["state_lost"], document["problems"]) == (str(third), True, [])
    assert document["freed_bytes"] > 0
    assert len(names(site, site.spool, "data")) == len(packs) - 1
    assert names(site, site.spool, "root") == {str(second)}
    # The note lies in the spool, to be uploaded, and in the cache, which still has a copy of the root.
    for place in (site.spool, site.cache):
        assert [name.split("-")[2] for name in names(site, place, "note")] == ["removed"]
    # Local state ends with the point before, and nothing of its maps is used again.
    after, renewed = newest_of(site)
    assert after is not None
    assert (after.order, after.vault) == (second.order, before.vault)
    assert renewed != incarnation
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert (ran.code, [row[0] for row in rows(ran.document)]) == (0, [str(second), str(site.points[0])])
    assert (ran.document["lost"], ran.document["problems"]) == ([], [])
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret, "--only-cache")
    assert (ran.code, to.read_bytes()) == (0, site.contents[1])
    # Then the last one: local state ends with what the vault has.
    assert run(capsys, "--config", site.config, "points", "--delete", str(second), "--yes").code == 0
    after, _ = newest_of(site)
    assert after is not None
    assert (after.order, after.vault) == (site.points[0].order, site.world.formats["vault"])
    assert names(site, site.spool, "data") | names(site, site.spool, "page") | names(site, site.spool, "index") == set()


def test_an_older_point_takes_nothing_along_that_a_later_one_needs(site: Site, to: Path, capsys: Capture) -> None:
    before = newest_of(site)
    prefix = f"{site.points[1].order:016X}"
    ran = run(capsys, "--config", site.config, "points", "--delete", prefix, "--yes")
    assert ran.code == 0
    assert f"Restore point {site.points[1]} is deleted: 0 B got free." in ran.out
    assert "Local state" not in ran.out
    assert newest_of(site) == before
    shutil.rmtree(site.cache)
    ran = run(capsys, "--config", site.config, "restore", "latest", *data_to(to), *site.secret)
    assert (ran.code, to.read_bytes()) == (0, site.contents[2])
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert [row[0] for row in rows(ran.document)] == [str(site.points[2]), str(site.points[0])]
    assert ran.document["lost"] == []


def test_deleting_asks_first(site: Site, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(site.folder.rglob("*"))
    wanted = ["--config", str(site.config), "points", "--delete", str(site.points[2])]
    ran = run(capsys, *wanted)
    assert (ran.code, "where nobody can be asked, give --yes" in ran.err) == (2, True)
    monkeypatch.setattr("adapters.cli.deleting.on_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    ran = run(capsys, *wanted, "--json")
    assert (ran.code, ran.document["error"]) == (2, "nothing was deleted")
    assert f"Restore point {site.points[2]} of " in ran.err
    assert "data 320 KiB" in ran.err
    assert "Delete it? [y/N]" in ran.err
    assert sorted(site.folder.rglob("*")) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    ran = run(capsys, *wanted)
    assert ran.code == 0
    assert "the next session reads and compares everything" in ran.out


def test_only_what_waits_in_the_spool_can_be_deleted(site: Site, capsys: Capture) -> None:
    before = sorted(site.folder.rglob("*"))

    def refused(point: object, *more: str) -> str:
        ran = run(capsys, "--config", site.config, "points", "--delete", str(point), "--yes", *more)
        assert ran.code == 2
        return ran.err

    assert f"restore point {site.points[0]} is in the vault: this version deletes only" in refused(site.points[0])
    assert f"no restore point in the spool is called 'ffff'; the newest there: {site.points[1]}" in refused("ffff")
    assert "means 2 restore points" in refused("0000018")
    assert "is called '000'" in refused("000")
    assert "leave other systems and places out" in refused(site.points[1], "--all")
    assert "leave other systems and places out" in refused(site.points[1], "--spool", str(site.spool))
    # Uploaded, and not yet out of the spool.
    shutil.copy(site.root(site.spool, site.points[1]), site.root(site.vault, site.points[1]))
    assert "is in the vault already: 'forebay upload' takes it out" in refused(site.points[1])
    site.root(site.vault, site.points[1]).unlink()
    ran = run(capsys, "--config", site.config, "points", "--yes")
    assert (ran.code, "--yes goes with --delete" in ran.err) == (2, True)
    site.config.write_text(site.config.read_text().replace("[spool]\npath = 'spool'\n", ""))
    assert "has no [spool]: only points that wait in the spool can be deleted" in refused(site.points[2])
    site.write_config()
    assert sorted(site.folder.rglob("*")) == before


@pytest.mark.parametrize("damaged", [False, True])
def test_local_state_that_was_on_its_way_to_the_point_is_lost_too(site: Site, capsys: Capture, damaged: bool) -> None:
    second, third = site.points[1:]
    with StateDirectory.open(site.folder / "state") as state:
        newest = state.newest()
        assert newest is not None
        # The session was cut off after it put the root, and local state stands at the point before.
        state.set_newest(msgspec.structs.replace(newest, order=second.order, incarnation=second.incarnation))
        root = third.root(site.system.id)
        state.write_intent(Intent(root=root, root_hash=newest.root_hash, vault=newest.vault, heads={}))
    if damaged:
        site.damage(site.folder / "state/journal", 20)
    ran = run(capsys, "--config", site.config, "points", "--delete", str(third), "--yes", "--json")
    assert (ran.code, ran.document["state_lost"]) == (0, True)
    with StateDirectory.open(site.folder / "state", lock=False) as state:
        # Nothing is committed by it; it says what the next point has to come after.
        intent = state.intent()
        assert intent is not None
        assert (intent.root, intent.root_hash, intent.heads) == (root, bytes(32), {})
        newest = state.newest()
        assert newest is not None
        assert newest.order == second.order


def test_an_intent_for_another_point_is_left_to_the_next_session(site: Site, capsys: Capture) -> None:
    root = PointId(site.points[2].order + 1, bytes(8)).root(site.system.id)
    with StateDirectory.open(site.folder / "state") as state:
        state.write_intent(Intent(root=root, root_hash=bytes(32), vault=bytes(16), heads={}))
    assert run(capsys, "--config", site.config, "points", "--delete", str(site.points[2]), "--yes").code == 0
    with StateDirectory.open(site.folder / "state", lock=False) as state:
        intent = state.intent()
    assert intent is not None
    assert intent.root == root


def test_a_point_that_is_held_is_not_deleted(site: Site, capsys: Capture) -> None:
    held = site.spool / site.points[2].note(site.system.id, "held", bytes(32))
    held.parent.mkdir(parents=True)
    held.write_bytes(b"a note")
    ran = run(capsys, "--config", site.config, "points", "--delete", str(site.points[2]), "--yes")
    assert (ran.code, "is held: a note says that it must not be removed" in ran.err) == (2, True)
    assert site.root(site.spool, site.points[2]).is_file()


def test_with_the_vault_away_spooled_points_can_be_deleted(site: Site, capsys: Capture) -> None:
    shutil.rmtree(site.vault)
    site.cache.rename(site.folder / "gone")
    ran = run(capsys, "--config", site.config, "points", "--delete", str(site.points[2]), "--yes")
    assert ran.code == 0
    assert "the cache was not told" in ran.out


def test_nothing_is_deleted_while_a_session_runs(site: Site, capsys: Capture) -> None:
    with StateDirectory.open(site.folder / "state"):
        ran = run(capsys, "--config", site.config, "points", "--delete", str(site.points[2]), "--yes")
    assert (ran.code, "another session" in ran.err) == (5, True)
    assert site.root(site.spool, site.points[2]).is_file()


def test_a_point_that_does_not_open_can_be_deleted(site: Site, capsys: Capture) -> None:
    site.damage(site.root(site.spool, site.points[2]))
    ran = run(capsys, "--config", site.config, "points", "--delete", str(site.points[2]), "--yes", "--json")
    assert (ran.code, ran.document["state_lost"], ran.document["freed_bytes"]) == (0, True, 0)
    # What it follows on is not known any more.
    assert newest_of(site)[0] is None
