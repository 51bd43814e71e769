"""`forebay upload` on the command line: what is refused, what is said, and with which exit code."""

from __future__ import annotations

import pytest

from tests.scenario.test_fallback import Spooled


@pytest.fixture(scope="module")
def spooled(tmp_path_factory: pytest.TempPathFactory) -> Spooled:
    return Spooled(tmp_path_factory.mktemp("upload"), cache=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pause", "1h", "--resume"], "exclude each other"),
        (["--pause", "soon"], "give a time such as 10min"),
        (["--pause", "0 s"], "more than nothing"),
        (["--pause", "500 d"], "at most a year"),
        (["now"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_refused(spooled: Spooled, arguments: list[str], words: str) -> None:
    done = spooled.machine.run("upload", *arguments, expect=2)
    assert words in done.stderr
    assert not (spooled.machine.state / "upload-pause").exists()


def test_without_a_spool_nothing_can_wait(spooled: Spooled) -> None:
    extra = spooled.machine.extra["vault"]
    try:
        spooled.machine.extra["vault"] = extra.split("[spool]")[0]
        for arguments in ([], ["--resume"], ["--pause", "1h"]):
            done = spooled.machine.run("upload", *arguments, expect=2)
            assert "no [spool] table" in done.stderr
    finally:
        spooled.machine.extra["vault"] = extra


def test_nothing_that_waits_is_done(spooled: Spooled) -> None:
    done = spooled.machine.run("upload").document
    assert (done["uploaded"], done["left"], done["exit_code"]) == ([], 0, 0)


def test_a_vault_that_is_away_fails_the_upload_in_one_sentence(spooled: Spooled) -> None:
    spooled.away()
    try:
        spooled.machine.backup(expect=3)
        done = spooled.machine.run("upload", expect=1)
    finally:
        spooled.back()
    assert "mount its disk" in done.document["error"]
    assert done.document["exit_code"] == 1
    assert done.document["left"] == 1
    assert done.stderr.count("mount its disk") == 1
    assert spooled.machine.run("upload").document["left"] == 0


@pytest.mark.parametrize("pause", ["90min", "network"])
def test_a_paused_upload_says_how_to_resume(spooled: Spooled, pause: str) -> None:
    set_ = spooled.machine.run("upload", "--pause", pause).document
    assert "--resume" in set_["paused"]
    done = spooled.machine.run("upload", expect=None)
    assert done.code == done.document["exit_code"] != 0
    assert set_["paused"] in done.stderr
    assert spooled.machine.run("upload", "--resume").document == {"paused": None, "exit_code": 0}
    spooled.machine.run("upload")


def test_a_report_has_stable_keys(spooled: Spooled) -> None:
    done = spooled.machine.run("upload").document
    keys = {"uploaded", "lost", "left", "stopped", "error", "problems", "seconds", "exit_code"}
    assert set(done) == keys
