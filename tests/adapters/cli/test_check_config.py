from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from blake3 import blake3

from adapters import main
from adapters.cli.statesize import room_missing
from engine.spoolroom import RESERVE_BYTES
from engine.vault.formatobject import new_store


class House:
    """A configuration whose every place is as it should be; tests then break one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "forebay.toml"
        self.volume = folder / "data.img"
        self.volume.write_bytes(b"\1" * 1_000_000)
        self.config.write_text(
            "[system]\nname = 'web-01'\nstate_dir = 'state'\n[[volume]]\nname = 'data'\npath = 'data.img'\n"
            f"[vault]\nurl = '{(folder / 'vault').as_uri()}'\n[cache]\npath = 'cache'\n"
        )

    def add(self, heading: str, line: str) -> None:
        self.config.write_text(self.config.read_text().replace(heading, f"{heading}\n{line}"))

    def check(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
        code = main.run(["check-config", "--config", str(self.config), "--json"])
        document = json.loads(capsys.readouterr().out)
        assert document["exit_code"] == code
        assert document["ok"] == (code == 0)
        return code, document["problems"]


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run init once: its passphrase takes a second of work on purpose."""
    folder = tmp_path_factory.mktemp("enrolled")
    house = House(folder)
    passphrase = str(folder / "passphrase")
    assert main.run(["--config", str(house.config), "init", "--generate", "--passphrase-file", passphrase]) == 0
    return folder


@pytest.fixture
def house(enrolled: Path, tmp_path: Path) -> House:
    shutil.copytree(enrolled, tmp_path, dirs_exist_ok=True)
    return House(tmp_path)


def test_a_house_in_order_has_nothing_wrong(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(house.folder.rglob("*"))
    assert house.check(capsys) == (0, [])
    assert main.run(["--config", str(house.config), "check-config"]) == 0
    out = capsys.readouterr().out
    assert "Nothing is wrong." in out
    assert "local state" in out
    assert "up to 8.50 KiB for these volumes" in out
    assert "memory of a session: up to 320 MiB" in out
    assert sorted(house.folder.rglob("*")) == before


def test_what_local_state_can_need_goes_with_the_blocks_the_stores_and_deltas(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    def bytes_max() -> int:
        main.run(["check-config", "--config", str(house.config), "--json"])
        found = json.loads(capsys.readouterr().out)["state"]["bytes_max"]
        assert isinstance(found, int)
        return found

    with_deltas = bytes_max()
    house.add("[vault]", "delta = false")
    whole_blocks = bytes_max()
    house.add("[cache]", "enabled = false")
    assert (with_deltas, whole_blocks, bytes_max()) == (16 * 544, 16 * 120, 16 * 92)


def test_a_disk_without_room_for_local_state_is_warned_of_and_no_mistake(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    for file in (house.folder / "state").iterdir():
        file.unlink()  # what it takes already would count as room
    house.add("[vault]", "delta = true")
    assert main.run(["--config", str(house.config), "check-config"]) == 1
    out = capsys.readouterr().out
    assert "warning: state_dir: the disk of" in out
    assert "8.50 KiB are missing: free them, set [vault] delta = false or name another folder" in out


def with_spool(house: House, more: str = "") -> Path:
    """Add a spool to the house, made and adopted by init."""
    house.config.write_text(house.config.read_text() + f"[spool]\npath = 'state/spool'\n{more}")
    assert main.run(["--config", str(house.config), "init"]) == 0
    return house.folder / "state/spool"


@pytest.fixture
def _roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every disk room, however full the one is that the tests run on."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=90 << 30, total=100 << 30))


def checked(house: House, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    main.run(["check-config", "--config", str(house.config), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.mark.usefixtures("_roomy")
def test_a_spool_is_looked_at_and_its_room_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    spool = with_spool(house, "max_size = '1 GiB'\n")
    (spool / "data").mkdir()
    (spool / "data/pack").write_bytes(bytes(1000))
    document = checked(house, capsys)
    assert (document["problems"], document["warnings"]) == ([], [])
    told = document["spool"]
    assert (told["path"], told["there"], told["points"], told["max_bytes"]) == (str(spool), True, 0, 1 << 30)
    held = sum(path.stat().st_size for path in spool.rglob("*") if path.is_file())
    assert told["used_bytes"] == held
    assert told["free_bytes"] == (1 << 30) - held
    # Its index costs local state 28 bytes a block, and what it holds is no room for local state.
    assert document["state"]["bytes_max"] == 16 * (544 + 28)
    main.run(["--config", str(house.config), "check-config"])
    assert f"  spool: {spool}, 1.00 GiB free of at most 1.00 GiB" in capsys.readouterr().out


def test_what_is_wrong_with_a_spool_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.config.write_text(house.config.read_text() + "[spool]\npath = 'state/spool'\n")
    (problem,) = checked(house, capsys)["problems"]
    assert problem.startswith(f"spool: folder {house.folder / 'state/spool'} is not there")
    assert problem.endswith("or run 'forebay init' to make it")
    assert main.run(["--config", str(house.config), "init"]) == 0
    spool = house.folder / "state/spool"
    (spool / "format").write_bytes(new_store("spool").encode())
    (problem,) = checked(house, capsys)["problems"]
    assert "another store than the one init was run for" in problem
    assert "run 'forebay init --spool' to adopt it" in problem
    (spool / "format").write_bytes(new_store("cache").encode())
    assert "is a cache, not a spool" in checked(house, capsys)["problems"][0]
    (spool / "format").unlink()
    assert checked(house, capsys)["spool"] == {"path": str(spool), "there": False}


@pytest.mark.usefixtures("_roomy")
def test_a_spool_that_others_may_look_into_is_warned_of(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    spool = with_spool(house)
    assert checked(house, capsys)["warnings"] == []
    spool.chmod(0o755)
    document = checked(house, capsys)
    assert document["warnings"] == [f"spool: other users of this machine may look into {spool}: run chmod 700 on it"]
    assert document["problems"] == []


@pytest.mark.parametrize(
    ("used", "disk_left", "share"),
    [(206, 60, "80%"), (206, 19, "81%"), (10, 19, "81%"), (300, 100, "117%"), (250, 1, "99%")],
)
def test_a_spool_that_fills_up_is_warned_of(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    used: int, disk_left: int, share: str,
) -> None:  # fmt: skip
    spool = with_spool(house, "max_size = '256 MiB'\n")
    with (spool / "pack").open("wb") as file:
        file.truncate(used << 20)
    disk = SimpleNamespace(free=(disk_left << 20) + RESERVE_BYTES, total=100 << 20)
    monkeypatch.setattr("adapters.cli.backlog.shutil.disk_usage", lambda _: disk)
    (warning,) = checked(house, capsys)["warnings"][-1:]
    assert f"spool: {spool} is {share} full" in warning
    by_disk = disk_left < 20
    assert ("raise [spool] max_size" in warning, "free some of its disk" in warning) == (not by_disk, by_disk)
    assert "sessions fail while the vault is away" in warning


def test_a_spool_in_the_state_directory_is_no_room_for_state(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool/pack").write_bytes(b"\1" * 20_000)
    free = shutil.disk_usage(tmp_path).free
    wanted = free + 10_000
    assert room_missing(tmp_path, tmp_path, wanted) == 0
    assert room_missing(tmp_path, tmp_path, wanted + (1 << 30), tmp_path / "spool") >= 1 << 30


def test_what_local_state_takes_already_counts_as_room(tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(b"\1" * 20_000)
    free = shutil.disk_usage(tmp_path).free
    assert room_missing(tmp_path, tmp_path, 20_000) == 0
    assert room_missing(tmp_path / "gone", tmp_path, free + (1 << 50)) > 1 << 49


def test_a_wrong_file_tells_all_its_mistakes_and_exits_as_configuration(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.add("[vault]", "colour = 'red'\nretries_max = -1")
    code, problems = house.check(capsys)
    assert code == 2
    assert len(problems) == 2
    assert main.run(["check-config", "--config", str(house.config)]) == 2
    assert "2 problems:" in capsys.readouterr().out


def test_every_place_that_is_wrong_is_named_at_once(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.volume.unlink()
    (house.folder / "vault/format").unlink()
    (house.folder / "cache/format").write_bytes(new_store("vault").encode())
    (house.folder / "state/identity").unlink()
    code, problems = house.check(capsys)
    assert code == 1
    words = ["volume 'data'", "run 'forebay init' to enrol", "holds no Forebay store", "is a vault, not a cache"]
    assert [word for word, problem in zip(words, problems, strict=True) if word not in problem] == []
    assert all(str(house.folder) in problem for problem in problems)


def test_a_folder_that_is_not_there_is_away_and_not_created(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    (house.folder / "vault").rename(house.folder / "gone")
    code, problems = house.check(capsys)
    assert (code, len(problems)) == (1, 1)
    assert problems[0].startswith(f"vault: folder {house.folder / 'vault'} is not there: mount its disk")
    assert not (house.folder / "vault").exists()


def test_a_damaged_and_a_newer_marker_are_told_apart(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    marker = house.folder / "vault/format"
    whole = marker.read_bytes()
    marker.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is damaged" in house.check(capsys)[1][0]
    marker.write_bytes(b"not a store")
    assert "is damaged" in house.check(capsys)[1][0]
    newer = whole[:8] + b"\2\0" + whole[10:-16]
    marker.write_bytes(newer + blake3(newer).digest(16))
    assert "install a newer forebay" in house.check(capsys)[1][0]


def test_a_cache_that_is_switched_off_is_not_looked_at(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    (house.folder / "cache/format").unlink()
    house.add("[cache]", "enabled = false")
    assert house.check(capsys) == (0, [])


def test_a_folder_is_no_volume(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.volume.unlink()
    house.volume.mkdir()
    (problem,) = house.check(capsys)[1]
    assert problem.startswith("volume 'data'")
    assert str(house.volume) in problem


def test_a_hints_file_that_is_not_there_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.add("[[volume]]", "hints = 'data.hints'")
    assert "there is no hints file" in house.check(capsys)[1][0]


def test_an_identity_open_to_others_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    (house.folder / "state/identity").chmod(0o644)
    assert "run chmod 600 on it" in house.check(capsys)[1][0]


def test_a_state_folder_that_cannot_be_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.add("[system]", "identity_file = 'state/identity'")
    text = house.config.read_text()
    house.config.write_text(text.replace("state_dir = 'state'", "state_dir = 'data.img/state'"))
    assert "is no folder, so" in house.check(capsys)[1][0]


@pytest.mark.root
def test_a_read_only_vault_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    vault = str(house.folder / "vault")
    subprocess.run(["mount", "--bind", vault, vault], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", vault], check=True)
        assert house.check(capsys)[1] == [f"vault: {vault} cannot be written to: Read-only file system"]
    finally:
        subprocess.run(["umount", vault], check=True)


def test_an_identity_of_another_system_is_told(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.config.write_text(house.config.read_text().replace("web-01", "web-02"))
    assert "is of system 'web-01', not of 'web-02'" in house.check(capsys)[1][0]


def test_another_vault_and_another_cache_than_the_enrolled_ones_are_told(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    (house.folder / "vault/format").write_bytes(new_store("vault").encode())
    (house.folder / "cache/format").write_bytes(new_store("cache").encode())
    vault, cache = house.check(capsys)[1]
    assert "to enrol in this one" in vault
    assert "'forebay init --cache' to adopt it" in cache


def test_an_age_below_what_is_protected_is_warned_of_and_off(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    house.add("[cache]", "trim.max_age = '14 d'")
    document = checked(house, capsys)
    assert document["problems"] == []
    assert document["warnings"] == [
        "[cache] trim: max_age is 14 days and is off: it must be at least 15 days, for what any system saw less than "
        "14 days ago is never trimmed"
    ]
