from __future__ import annotations

import shutil

import anyio
import pytest

from engine.names import PointId
from engine.note import NoteBody, NoteKind
from engine.vault.formatobject import new_store
from tests.adapters.cli.recovery_site import Site, lines, newer, run


def test_own_points_are_listed_without_a_passphrase(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert (ran.code, ran.err) == (0, "")
    document = ran.document
    assert document["lost"] == []
    assert document["problems"] == []
    assert [point["id"] for point in document["points"]] == [str(point) for point in reversed(site.points)]
    assert document["points"][2] == {
        "id": str(site.points[0]),
        "time": "2023-11-14T22:13:21.000Z",
        "system": "web-01",
        "volumes": [
            {"name": "data", "bytes": len(site.contents[0]), "unreadable": []},
            {"name": "home", "bytes": 4, "unreadable": []},
        ],
        "where": ["cache", "vault"],
        "state": "ok",
        "held": False,
        "holes": {},
        "problems": [],
    }


def test_the_table_is_aligned_and_says_what_there_is(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--config", site.config, "points")
    table = lines(ran.out)
    assert table[0].split() == ["POINT", "TIME", "SYSTEM", "VOLUMES", "WHERE", "STATE"]
    assert str(site.points[2]) in table[1]
    assert "data 320 KiB, home 4 B" in table[3]
    assert len({line.index("web-01") for line in table[1:4]}) == 1


def test_other_systems_need_the_passphrase(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--config", site.config, "points", "--system", "db-02", "--json")
    assert ran.code == 2
    assert "a passphrase is needed" in ran.document["error"]
    ran = run(capsys, "--config", site.config, "points", "--system", "db-02", "--json", *site.secret)
    assert [point["system"] for point in ran.document["points"]] == ["db-02"]
    ran = run(capsys, "--config", site.config, "points", "--all", "--json", *site.secret)
    assert sorted({point["system"] for point in ran.document["points"]}) == ["db-02", "web-01"]


@pytest.mark.parametrize("place", ["vault", "cache"])
def test_a_place_and_the_passphrase_are_all_that_is_needed(
    site: Site, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--vault", site.vault.as_uri()] if place == "vault" else ["--cache", str(site.cache)]
    ran = run(capsys, "points", *named, *site.secret, "--json")
    assert ran.code == 0
    assert len(ran.document["points"]) == 4
    assert {tuple(point["where"]) for point in ran.document["points"]} == {(place,)}
    ran = run(capsys, "points", *named, "--system", "web-01", *site.secret, "--json")
    assert len(ran.document["points"]) == 3


def test_a_vault_may_be_named_by_a_file_with_its_table(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    file = site.folder / "vault.toml"
    file.write_text(f"[vault]\nurl = '{site.vault.as_uri()}'\n")
    assert len(run(capsys, "points", "--vault", file, *site.secret, "--json").document["points"]) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "forebay.toml", "--vault", "file:///x"], "give either --config, or --vault, --spool and --cache"),
        (["--config", "forebay.toml", "--system", "a", "--all"], "give either --system NAME or --all"),
        ([], "no configuration file"),
        (["--vault", "s3://key:secret@bucket"], "keys do not belong in the URL"),
    ],
)
def test_what_does_not_go_together_is_refused(
    site: Site, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.folder)
    ran = run(capsys, "points", *arguments, *site.secret)
    assert ran.code == 2
    assert sentence in ran.err
    assert len(lines(ran.err)) == 1


def test_an_unknown_system_is_answered_with_those_there_are(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "points", *site.detached, "--system", "nas")
    assert ran.code == 2
    assert "there is no system 'nas'; known are: db-02, web-01" in ran.err


def test_a_wrong_passphrase_is_one_sentence(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.passphrase.write_text("not this one")
    ran = run(capsys, "points", *site.detached)
    assert (ran.code, ran.out) == (2, "")
    assert "the passphrase is wrong" in ran.err


def test_a_vault_that_is_away_leaves_the_cache_and_exit_code_four(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(site.vault)
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.code == ran.document["exit_code"] == 4
    assert len(ran.document["points"]) == 3
    assert ran.document["lost"] == []
    assert f"vault {site.vault.as_uri()} is not used" in ran.document["problems"][0]
    shutil.rmtree(site.cache)
    ran = run(capsys, "--config", site.config, "points")
    assert ran.code == 1
    assert f"vault {site.vault.as_uri()} is away" in ran.err


def test_a_newer_format_and_a_foreign_store_are_each_one_sentence(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = site.vault / "format"
    marker.write_bytes(newer("vault", site.world))
    ran = run(capsys, "points", *site.detached)
    assert ran.code == 1
    assert "install a newer forebay" in ran.err
    marker.write_bytes(new_store("vault").encode())
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.code == 4
    assert "it is not the vault this system belongs to" in ran.document["problems"][0]
    marker.write_bytes(new_store("cache").encode())
    ran = run(capsys, "points", *site.detached)
    assert "this store is a cache, not a vault" in ran.err


def test_a_damaged_root_is_listed_with_its_name(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (site.vault, site.cache):
        site.damage(site.root(place, site.points[1]))
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.code == 0
    point = ran.document["points"][1]
    assert (point["state"], point["time"], point["volumes"]) == ("damaged", None, [])
    assert site.points[1].root(site.system.id) in point["problems"][0]
    ran = run(capsys, "--config", site.config, "points")
    assert f"{site.points[1]}: vault: object {site.points[1].root(site.system.id)} is damaged" in ran.out


def test_points_the_vault_has_lost_are_named(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (site.vault, site.cache):
        site.root(place, site.points[2]).unlink()
        site.root(place, site.points[0]).unlink()
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert [one["id"] for one in ran.document["lost"]] == [str(site.points[0]), str(site.points[2])]
    assert "follows on it" in ran.document["lost"][0]["reason"]
    assert "local state ends with it" in ran.document["lost"][1]["reason"]
    assert "Lost:" in run(capsys, "--config", site.config, "points").out


def test_without_an_identity_one_is_told_to_run_init(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    (site.folder / "state" / "identity").unlink()
    ran = run(capsys, "--config", site.config, "points")
    assert ran.code == 2
    assert "run 'forebay init'" in ran.err


async def _note(site: Site, point: PointId, kind: NoteKind) -> None:
    name = await site.world.note(site.system, point, NoteBody(kind=kind, time=1, text="told by a test"))
    path = site.vault / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(site.world.vault.objects.objects[name])


def test_superseded_points_are_shown_when_asked_for_and_removed_ones_never(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    anyio.run(_note, site, site.points[0], "superseded")
    anyio.run(_note, site, site.points[1], "removed")
    anyio.run(_note, site, site.points[2], "held")
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert [(point["id"], point["held"]) for point in ran.document["points"]] == [(str(site.points[2]), True)]
    assert "(1 superseded, not shown: see --superseded)" in run(capsys, "--config", site.config, "points").out
    ran = run(capsys, "--config", site.config, "points", "--superseded", "--json")
    assert [point["state"] for point in ran.document["points"]] == ["ok", "superseded"]


def test_an_incomplete_point_names_its_holes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(_note, site, site.points[1], "incomplete")
    ran = run(capsys, "--config", site.config, "points", "--json")
    assert ran.document["points"][1]["state"] == "incomplete"
    assert ran.document["points"][1]["problems"] == ["incomplete: told by a test"]


def test_nothing_is_written_anywhere(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(site.folder.rglob("*"))}
    run(capsys, "--config", site.config, "points", "--all", *site.secret)
    assert {path: path.stat().st_mtime_ns for path in sorted(site.folder.rglob("*"))} == before
