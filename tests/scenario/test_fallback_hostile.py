"""Done to a spool while points wait in it: nothing is lost that can be saved, nothing claimed that is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.scenario.test_fallback import Spooled


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    return Spooled(tmp_path, cache=False)


def with_points(spooled: Spooled) -> tuple[str, bytes]:
    """Leave one point in the spool and bring the vault back."""
    spooled.machine.backup()
    spooled.away()
    content = spooled.change(1)
    point = spooled.machine.backup(expect=3)["point"]
    spooled.back()
    return point, content


@pytest.mark.parametrize("how", ["not configured", "emptied"])
def test_a_session_without_the_spool_its_state_stands_at_sends_what_only_the_spool_has(
    spooled: Spooled, how: str
) -> None:
    with_points(spooled)
    if how == "not configured":
        spooled.machine.extra["vault"] = spooled.machine.extra["vault"].split("[spool]")[0]
    shutil.rmtree(spooled.spool)
    spooled.spool.mkdir()
    content = spooled.change(3)
    report = spooled.machine.backup(expect=0 if how == "not configured" else 4)
    assert any("waits in a spool that cannot be used" in problem for problem in report["problems"])
    spooled.restores("latest", content)


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_damaged_page_pack_in_the_spool_makes_no_good_point_in_the_vault(spooled: Spooled, share: float) -> None:
    point, _ = with_points(spooled)
    (pack,) = (path for path in (spooled.spool / "page").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[100 + int(share * (len(data) - 200))] ^= 1
    pack.write_bytes(data)
    done = spooled.machine.run("upload", expect=1)
    assert any(pack.name in problem for problem in done.document["problems"])
    assert {row["id"]: row["state"] for row in spooled.machine.points()}[point] == "incomplete"
    # Its data is in the vault all the same, and the next point leans on nothing that is lost.
    content = spooled.change(2)
    assert spooled.machine.backup()["volumes"]["data"]["vault_blocks"] <= 30
    spooled.restores("latest", content)
