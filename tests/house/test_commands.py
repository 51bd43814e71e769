"""Every command is there, explains itself with examples, and takes the options all commands take."""

from __future__ import annotations

import pytest

from adapters import main


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: forebay {name} " in out
    assert "Examples:" in out
    assert f"forebay {name}" in out.split("Examples:")[1] or f" {name}" in out.split("Examples:")[1]
    for option in ("--config FILE", "--json", "--progress", "--verbose", "--log"):
        assert option in out
