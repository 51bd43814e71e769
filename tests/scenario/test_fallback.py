"""The vault is away at the start, or lost in mid-session: the point lands in the spool, later in the vault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.stores.calls import Call
from adapters.stores.folderfiles import FolderFiles
from engine.block import Bytes
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine, overwrite, random_volume
from tests.scenario.test_reconnect import Weather

BLOCKS = 400


class Spooled:
    """A machine with a vault, a cache and a spool; the vault can be taken away and brought back."""

    def __init__(self, root: Path, *, on_loss: str = "restart", spool: str = "", cache: bool = True) -> None:
        self.root = root
        self.spool = root / "spool"
        self.volume = random_volume(root / "data.img", BLOCKS)
        self.machine = Machine(
            root / "m", root / "vault", root / "cache" if cache else None, volumes={"data": self.volume}
        )
        self.machine.extra["vault"] = (
            f'compression = "none"\non_loss = "{on_loss}"\nretries_max = 0\n[spool]\npath = "{self.spool}"\n{spool}'
        )
        self.machine.init()

    def away(self) -> None:
        self.machine.vault.rename(self.root / "aside")

    def back(self) -> None:
        (self.root / "aside").rename(self.machine.vault)

    def change(self, seed: int, blocks: int = 30) -> bytes:
        new = random_volume(self.root / "new.img", blocks, seed).read_bytes()
        overwrite(self.volume, 10 * seed % (BLOCKS - blocks), new)
        return self.volume.read_bytes()

    def restores(self, point: str, content: bytes, *arguments: str, expect: int = 0) -> dict[str, object]:
        target = self.root / "restored.img"
        target.unlink(missing_ok=True)
        done = self.machine.restore(point, "data", target, *arguments, expect=expect)
        if expect == 0:
            assert target.read_bytes() == content
        return dict(done.document)

    def where(self) -> dict[str, list[str]]:
        return {row["id"]: row["where"] for row in self.machine.points()}

    def spool_objects(self) -> list[str]:
        kinds = ("data", "page", "index", "root", "note")
        return sorted(
            str(path.relative_to(self.spool))
            for kind in kinds
            for path in (self.spool / kind).rglob("*")
            if path.is_file()
        )


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    return Spooled(tmp_path)


def test_a_vault_that_is_away_costs_no_point_and_gets_all_of_them_in_order(spooled: Spooled) -> None:
    contents = {spooled.machine.backup()["point"]: spooled.volume.read_bytes()}
    spooled.away()
    for seed in (1, 2):
        content = spooled.change(seed)
        report = spooled.machine.backup(expect=3)
        assert report["route"] == "FALLBACK"
        assert [change["route"] for change in report["route_history"]] == ["FALLBACK"]
        assert report["volumes"]["data"]["changed"] <= 30
        assert report["backlog"] == seed
        assert "forebay" not in report["fallback"]
        contents[report["point"]] = content
    newest = max(contents)
    spooled.restores("latest", contents[newest], "--only-cache")
    spooled.back()
    for point, content in contents.items():
        spooled.restores(point, content)
    # Points wait: the session goes into the spool although the vault is there, and all are uploaded at its end.
    content = spooled.change(3)
    report = spooled.machine.backup()
    assert report["route"] == "FALLBACK"
    contents[report["point"]] = content
    assert [each["point"] for each in report["uploaded"]] == sorted(contents)[1:]
    assert spooled.spool_objects() == []
    assert all("vault" in where for where in spooled.where().values())
    shutil.rmtree(spooled.machine.cache or Path())
    for point, content in contents.items():
        spooled.restores(point, content)
    last = spooled.machine.backup()
    assert last["route"] == "VAULT"
    assert last["volumes"]["data"]["changed"] == 0


def test_the_first_backup_ever_may_go_into_the_spool(spooled: Spooled) -> None:
    spooled.away()
    report = spooled.machine.backup(expect=3)
    spooled.restores("latest", spooled.volume.read_bytes())
    stopped = spooled.machine.run("upload", expect=1).document
    assert (stopped["left"], stopped["uploaded"]) == (1, [])
    assert "mount its disk" in stopped["error"]
    spooled.back()
    done = spooled.machine.run("upload")
    assert [each["point"] for each in done.document["uploaded"]] == [report["point"]]
    assert spooled.where() == {report["point"]: ["cache", "vault"]} or "vault" in spooled.where()[report["point"]]
    spooled.away()
    assert spooled.machine.run("upload").document["left"] == 0  # nothing waits, so nobody has to be asked
    spooled.back()
    shutil.rmtree(spooled.spool)
    spooled.restores("latest", spooled.volume.read_bytes())


@pytest.mark.parametrize("on_loss", ["restart", "resume"])
@pytest.mark.parametrize(("prefix", "after"), [("data/", 1), ("data/", 2), ("page/", 0), ("index/", 0), ("root/", 0)])
def test_a_vault_lost_in_mid_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_loss: str, prefix: str, after: int
) -> None:
    spooled = Spooled(tmp_path, on_loss=on_loss)
    first = spooled.machine.backup()["point"]
    content = spooled.change(7, 300)
    weather = Weather(spooled.machine.vault)
    watch(weather, spooled.machine.vault, monkeypatch)
    weather.puts_until_away[prefix] = after
    report = backup(spooled.machine, clock=weather)
    assert report.exit_code == 3, report.error
    assert [change.route for change in report.route_history] == ["VAULT", "FALLBACK"]
    sent = {path.name for path in (weather._aside / "data").rglob("*") if path.is_file()}
    kept = {path.name for path in (spooled.spool / "data").rglob("*") if path.is_file()}
    if on_loss == "resume" and prefix == "data/":
        assert not sent & kept
        assert kept
    weather.back()
    spooled.restores(str(report.point), content)
    if on_loss == "restart":
        # Nothing of the point relies on what this session sent to the vault.
        before = {path.name for path in (spooled.machine.vault / "data").rglob("*") if path.is_file()}
        assert sent <= before
    report = backup(spooled.machine, clock=weather)
    assert report.exit_code == 0, (report.error, report.problems)
    assert spooled.spool_objects() == []
    assert set(spooled.where()) >= {first, str(report.point)}
    spooled.restores("latest", content)


@pytest.mark.parametrize("on_loss", ["restart", "resume"])
def test_a_vault_lost_while_everybody_waits_for_room_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_loss: str
) -> None:
    spooled = Spooled(tmp_path, on_loss=on_loss)
    spooled.machine.extra["queue"] = 'size = "8 MiB"'
    random_volume(spooled.volume, 4 * BLOCKS)
    weather = Weather(spooled.machine.vault)
    watch(weather, spooled.machine.vault, monkeypatch)
    weather.puts_until_away["data/"] = 3
    report = backup(spooled.machine, clock=weather)
    assert report.exit_code == 3, report.error
    spooled.restores("latest", spooled.volume.read_bytes(), "--only-cache")
    weather.back()
    assert backup(spooled.machine, clock=weather).exit_code == 0
    spooled.restores("latest", spooled.volume.read_bytes())


def test_a_session_that_begins_again_comes_after_all_the_vault_showed_before_it_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = Spooled(tmp_path, cache=False)
    spooled.machine.backup()
    shutil.copytree(spooled.machine.state, tmp_path / "copy")
    spooled.change(3)
    ahead = Weather(spooled.machine.vault)
    ahead.advance(10_000_000)  # a clock that ran far ahead of the others
    newest = backup(spooled.machine, clock=ahead).point
    shutil.rmtree(spooled.machine.state)
    (tmp_path / "copy").rename(spooled.machine.state)
    content = spooled.change(5, 300)
    weather = Weather(spooled.machine.vault)
    watch(weather, spooled.machine.vault, monkeypatch)
    weather.puts_until_away["data/"] = 1
    report = backup(spooled.machine, clock=weather)
    assert report.exit_code == 3, report.error
    assert str(report.point) > str(newest)
    weather.back()
    spooled.restores("latest", content)


def watch(weather: Weather, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put: Callable[[FolderFiles, Call, str, Bytes], None] = FolderFiles.put

    def watched(files: FolderFiles, call: Call, name: str, data: Bytes) -> None:
        if Path(files.root) == vault:
            weather.put(name)
        put(files, call, name, data)

    monkeypatch.setattr(FolderFiles, "put", watched)


def test_packs_that_vanish_under_a_spooled_point_are_filled_from_the_cache(spooled: Spooled) -> None:
    spooled.machine.backup()
    spooled.away()
    content = spooled.change(5)
    report = spooled.machine.backup(expect=3)
    for path in (spooled.root / "aside/data").rglob("*"):
        if path.is_file():
            path.unlink()
    spooled.back()
    done = spooled.machine.run("upload")
    assert done.document["uploaded"][0]["holes"] == {}
    assert any("gone from the vault" in problem for problem in done.document["problems"])
    shutil.rmtree(spooled.machine.cache or Path())
    spooled.restores(report["point"], content, expect=0)


def test_what_nobody_has_any_more_is_published_as_holes_and_the_next_point_is_uploaded(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path, cache=False)
    spooled.machine.backup()
    spooled.away()
    spooled.change(5)
    second = spooled.machine.backup(expect=3)["point"]
    content = spooled.change(6)
    third = spooled.machine.backup(expect=3)["point"]
    gone = max((path for path in (tmp_path / "aside/data").rglob("*") if path.is_file()), key=lambda path: path.name)
    gone.unlink()
    spooled.back()
    done = spooled.machine.run("upload", expect=1).document
    assert [each["point"] for each in done["uploaded"]] == [second, third]
    assert all(each["holes"]["data"] for each in done["uploaded"])
    states = {row["id"]: row["state"] for row in spooled.machine.points()}
    assert states[second] == states[third] == "incomplete"
    failed = spooled.restores(third, content, expect=1)
    assert failed["holes"]
    # The lost blocks became candidates: the next point has them all.
    spooled.machine.backup()
    spooled.restores("latest", content)


def test_a_spool_that_is_full_fails_the_session_and_keeps_what_is_finished(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path, spool='max_size = "256 MiB"')
    spooled.machine.backup()
    spooled.away()
    content = spooled.change(1)
    point = spooled.machine.backup(expect=3)["point"]
    with (spooled.spool / "ballast").open("wb") as ballast:
        ballast.truncate(255 << 20)
    held = spooled.spool_objects()
    spooled.change(2, 300)
    report = spooled.machine.backup(expect=1)
    assert "max_size" in report["error"]
    assert spooled.spool_objects() == held
    spooled.restores(point, content)


def test_a_full_spool_makes_room_while_the_vault_is_there(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path, spool='max_size = "256 MiB"')
    spooled.machine.backup()
    spooled.away()
    spooled.change(1, 100)
    first = spooled.machine.backup(expect=3)["point"]
    spooled.back()
    size = sum(path.stat().st_size for path in spooled.spool.rglob("*") if path.is_file())
    with (spooled.spool / "ballast").open("wb") as ballast:
        ballast.truncate((256 << 20) - size - (12 << 20))
    content = spooled.change(2, 300)
    report = spooled.machine.backup(expect=None)
    assert report["error"] is None
    assert first in [each["point"] for each in report["uploaded"]]
    spooled.restores("latest", content)


def test_a_pause_holds_and_ends(spooled: Spooled) -> None:
    spooled.machine.backup()
    spooled.away()
    spooled.change(1)
    spooled.machine.backup(expect=3)
    spooled.back()
    spooled.machine.run("upload", "--pause", "2h")
    assert "--resume" in spooled.machine.run("upload", expect=1).stderr
    spooled.change(2)
    assert spooled.machine.backup(expect=3)["backlog"] == 2
    spooled.machine.run("upload", "--resume")
    assert len(spooled.machine.run("upload").document["uploaded"]) == 2
    assert spooled.spool_objects() == []
