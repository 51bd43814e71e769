from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from adapters import logs
from adapters.config import Secret


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_lines_for_people_go_to_stderr_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "human")
    structlog.get_logger().info("vault_lost", tries=5, secret_thing="x", value=Secret("y"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "vault_lost" in err
    assert "tries=5" in err
    assert "secret_thing=***" in err
    assert "value=***" in err
    assert "\x1b" not in err


def test_json_lines_are_one_object_each(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    log = structlog.get_logger()
    log.debug("unseen")
    log.warning("route_changed", route="FALLBACK", passphrase="horse", held=Secret("horse"))
    (line,) = capsys.readouterr().err.splitlines()
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "route_changed",
        "level": "warning",
        "route": "FALLBACK",
        "passphrase": "***",
        "held": "***",
    }


def test_an_exception_is_told_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("error", "json")
    try:
        raise ValueError("why")
    except ValueError:
        structlog.get_logger().exception("it_broke")
    assert "ValueError: why" in json.loads(capsys.readouterr().err)["exception"]


def test_what_the_command_itself_tells_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json", left_out={"session_failed"})
    structlog.get_logger().error("session_failed", error="told elsewhere")
    structlog.get_logger().error("history_failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "history_failed"
